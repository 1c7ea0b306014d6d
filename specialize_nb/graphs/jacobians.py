"""Means over data of what units share: covariances, Jacobians and second derivatives of the loss.

A plain module, not a notebook: mechanism without a story. The page on similarity says what the four means are for, and
how each is computed. Here a `Measurement` says what is asked for, and each of `mean_covariance`, `mean_input_jacobian`,
`mean_output_jacobian` and `mean_loss_hessian` reads the data and adds what it finds to the `MatrixMean` of every layer.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from specialize_nb.base.devices import check_room, to_model
from specialize_nb.base.tasks import check_labels
from specialize_nb.network.answers import scores_of
from specialize_nb.network.gradients import Downstream, check_gradients, numbers_of
from specialize_nb.network.inputs import places_that_count
from specialize_nb.network.operations import KEEPS, KINKED, PRODUCTS, SMOOTH, STRAIGHT, argument, op_name
from specialize_nb.network.outputs import choose_output
from specialize_nb.network.program import Layout
from specialize_nb.network.subject import Subject
from specialize_nb.network.units import Layer, Network

__all__ = [
    "MatrixMean",
    "Measurement",
    "choose_layers",
    "choose_places",
    "in_order",
    "mean_covariance",
    "mean_input_jacobian",
    "mean_loss_hessian",
    "mean_output_jacobian",
    "reference_tensor",
]

_ROWS, _TILE = 4096, 64  # of one product


# What is asked for


class MatrixMean:
    """The mean over examples of a (n_units, n_units) matrix that each of them has, and of products of its entries.

    Parameters
    ----------
    n_units : int
    device : torch.device
    errors : bool
    """

    def __init__(self, n_units: int, device: torch.device, errors: bool) -> None:
        wide = {"dtype": torch.float64, "device": device}
        with torch.inference_mode(False), torch.no_grad():
            self.n, self.total = 0, torch.zeros(n_units, n_units, **wide)  # of the total the upper triangle counts
            self.products = torch.zeros(3, n_units, n_units, **wide) if errors else None
        self.held: Any = 0  # (n, n_units, n_units) what has come so far of the examples in hand

    def add(self, rows: Tensor, n_places: int) -> None:  # (n_rows, n, m, n_units)
        """Rows of n examples at some of their places; an example's matrix is their outer products, over the places."""
        if self.products is not None:
            rows = rows.movedim(1, 0).flatten(1, 2)
            self.held = self.held + rows.mT @ rows / n_places
            return
        for part in rows.flatten(0, 2).split(_ROWS):
            for start in range(0, part.shape[1], _TILE):
                found = part[:, start : start + _TILE].T @ part[:, start:]
                self.total[start : start + _TILE, start:] += found.to(self.total) / n_places

    def close(self, n: int) -> None:
        """There is no more to come of n examples."""
        self.n += n
        if isinstance(self.held, Tensor):
            self.add_matrices(self.held)
            self.held = 0

    def add_matrices(self, found: Tensor) -> None:  # (n, n_units, n_units), symmetric
        found = found.to(self.total)
        self.total += found.sum(0)
        if self.products is not None:
            own = found.diagonal(dim1=1, dim2=2)
            self.products[0] += found.square().sum(0)
            self.products[1] += (found * own[:, :, None]).sum(0)
            self.products[2] += own.T @ own

    def add_single(self, rows: Tensor) -> None:  # (n, n_units)
        """The one row of each of n examples."""
        rows = rows.to(self.total)
        self.n, self.total = self.n + len(rows), self.total + rows.T @ rows
        if self.products is not None:
            fourth = rows.square().T @ rows.square()
            self.products += torch.stack([fourth, rows.pow(3).T @ rows, fourth])


class Piece(NamedTuple):
    """Some examples of a batch.

    Attributes
    ----------
    tensors : tuple[Tensor, ...]
        Their inputs, as the program takes them
    y : Tensor
        Their targets
    counts : dict[int, Tensor]
        Length of a sequence -> (n, length) bool, which positions count; empty without padding
    """

    tensors: tuple[Tensor, ...]  # Their inputs, as the program takes them
    y: Tensor  # Their targets
    counts: dict[int, Tensor]  # Length of a sequence -> (n, length) bool, which positions count; empty without padding


def in_order(function: Callable[[Any], Any], things: Sequence[Any]) -> list:
    """What a function gives for each of some things, one after the other.

    Parameters
    ----------
    function : Callable[[Any], Any]
    things : Sequence[Any]

    Returns
    -------
    list
    """
    return [function(one) for one in things]


class Measurement(NamedTuple):
    """What is to be measured, on what.

    Attributes
    ----------
    subject : Subject
    layers : tuple[Layer, ...]
        In the order the network runs them
    positions : dict[str, Tensor]
        Layer -> (n_positions,) places whose matrices are averaged
    numbers : int
        Most numbers that gradients held at once may have, about
    means : dict[str, MatrixMean]
        Layer -> what is filled
    errors : bool
        Keep what standard errors need?
    title : str
        Of the progress bar; '' for none
    each : Callable[..., list], default in_order
        What a function gives for each of some things, perhaps side by side
    bounded : bool, default False
        Is that all there is room for?
    word : int, default 4
        Bytes of a number
    """

    subject: Subject
    layers: tuple[Layer, ...]  # In the order the network runs them
    positions: dict[str, Tensor]  # Layer -> (n_positions,) places whose matrices are averaged
    numbers: int  # Most numbers that gradients held at once may have, about
    means: dict[str, MatrixMean]  # Layer -> what is filled
    errors: bool  # Keep what standard errors need?
    title: str  # Of the progress bar; '' for none
    each: Callable[..., list] = in_order  # What a function gives for each of some things, perhaps side by side
    bounded: bool = False  # Is that all there is room for?
    word: int = 4  # Bytes of a number

    @property
    def network(self) -> Network:
        """The traced network."""
        return self.subject.network

    def batches(self, most: int) -> Iterator[Piece]:
        """The data in pieces of at most so many examples."""
        program = self.network.program
        for x, y in tqdm(self.subject.data, desc=self.title, disable=not self.title):
            step = most if program.any_batch else len(y)
            tensors = program.arguments(to_model(x, self.subject.model))
            tensors = tuple(one.clone() if one.is_inference() else one for one in tensors)
            counts = self.subject.counts(x)
            for start in range(0, len(y), step):
                part = slice(start, start + step)
                own = {length: one[part].to(tensors[0].device) for length, one in counts.items()}
                yield Piece(tuple(one[part] for one in tensors), y[part].to(tensors[0].device), own)

    def rows(self, layer: Layer, value: Tensor) -> Tensor:  # (n, n_positions, n_units)
        """What the units have at the places that were drawn, in 32 bits or more."""
        value = self.network.program.examples_first(layer.site, value).movedim(layer.unit_dim, -1)
        value = value.flatten(1, -2) if value.ndim > 2 else value.unsqueeze(1)
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        chosen = self.positions[layer.name]
        return value if len(chosen) == value.shape[1] else value[:, chosen]

    def weights(self, layer: Layer, counts: Mapping[int, Tensor]) -> Tensor | None:  # (n, n_positions)
        """What each place that was drawn weighs, so that an example's mean is over those that count; None: the same."""
        n = len(next(iter(counts.values()))) if counts else 0
        own = places_that_count((n, *layer.shape), layer.unit_dim, counts) if counts else None
        if own is None:
            return None
        own = own[:, self.positions[layer.name]].to(torch.float32)
        return own * own.shape[1] / own.sum(1, keepdim=True).clamp(min=1)

    def add(self, layer: Layer, slopes: Tensor, counts: Mapping[int, Tensor]) -> None:  # (n_rows, n, ...)
        """Count in derivatives of what a layer puts out, or by it, along several directions."""
        rows = torch.vmap(lambda one: self.rows(layer, one))(slopes)
        self.means[layer.name].add(_weighed(rows, self.weights(layer, counts)), rows.shape[2])

    def close(self, layer: Layer, piece: Piece) -> None:
        """There is no more to come of some examples; those of which no place was drawn that counts are none."""
        weights = self.weights(layer, piece.counts)
        n = len(piece.y) if weights is None else int((weights > 0).any(1).sum())
        self.means[layer.name].close(n)


def _weighed(rows: Tensor, weights: Tensor | None) -> Tensor:  # (..., n, m, n_units), (n, m)
    """Rows whose outer products weigh so much; what does not count is 0, whatever it is."""
    if weights is None:
        return rows
    weights = weights.to(rows)[..., None]
    return torch.where(weights > 0, rows, 0) * weights.sqrt()


def choose_layers(
    network: Network,
    layers: Sequence[str] | None,  # Names; None: all hidden layers
) -> tuple[Layer, ...]:  # In the order the network runs them
    """Which layers are compared?

    Parameters
    ----------
    network : Network
    layers : Sequence[str] | None
        Names; None: all hidden layers

    Returns
    -------
    tuple[Layer, ...]
        In the order the network runs them

    Raises: `ValueError` for none, or a layer without a floating number for each unit and example; `KeyError` for a
    name that the network does not have.
    """
    wanted = {network.layer(name).name for name in (network.hidden if layers is None else layers)}
    chosen = tuple(layer for layer in network.layers if layer.name in wanted)
    if not chosen:
        raise ValueError(f"{network.model} has no hidden layer to compare the units of: name its `layers`")
    program = network.program
    for layer in chosen:
        if program.layouts[layer.site].axis is None:
            raise ValueError(f"layer {layer.name!r} puts out the same for all examples: leave it out of `layers`")
        if layer.shape[layer.unit_dim - 1] != layer.n_units or not program.value(layer.site).is_floating_point():
            told = f"its values are {program.value(layer.site).dtype} of shape {layer.shape} an example"
            raise ValueError(f"layer {layer.name!r} has no number for each of its {layer.n_units} units: {told}")
    return chosen


def choose_places(
    network: Network,
    layer: Layer,
    most: int | None,  # Places, at least 1; None: all
    seed: int,  # Draws them, for each layer others
) -> np.ndarray:  # (n_places,) int64, sorted
    """Which places of a layer's maps, or which tokens, are looked at.

    Parameters
    ----------
    network : Network
    layer : Layer
    most : int | None
        Places, at least 1; None: all
    seed : int
        Draws them, for each layer others

    Returns
    -------
    np.ndarray
        (n_places,) int64, sorted
    """
    n_places = math.prod(layer.shape) // layer.n_units
    if most is None or most >= n_places:
        return np.arange(n_places)
    rng = np.random.default_rng([seed, network.layers.index(layer)])
    return np.sort(rng.choice(n_places, most, replace=False))


def reference_tensor(model: nn.Module) -> Tensor:
    """A tensor of the model's device and floating type.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    Tensor
    """
    own = [*model.parameters(), *model.buffers()]
    return next((one for one in own if one.is_floating_point()), torch.empty(0)).detach()


# Pieces that fit in memory


def _fit(task: Measurement, sizes: tuple[int, int], n_vectors: int, each: int = 0) -> tuple[int, int]:
    """How many examples, and how many directions, to take at once; `each` example needs so many numbers more."""
    most, total = sizes
    if task.bounded:
        need = task.word * (total + each + 3 * most) / 1e9
        room = task.word * task.numbers / 1e9
        check_room("one example with its gradients", need, room, advice="allow more, or name fewer `layers`")
    n = max(1, task.numbers // (total + each + 3 * n_vectors * most))
    return n, max(1, min(n_vectors, (task.numbers - n * (total + each)) // (3 * n * most)))


# Covariance


def mean_covariance(task: Measurement) -> None:
    """How far do units rise and fall together? Two passes: their means, then products of deviations from them.

    Parameters
    ----------
    task : Measurement
        Covariance
    """
    program = task.network.program
    sums, counted = (dict.fromkeys(task.means, torch.zeros(())) for _ in range(2))
    sites = [layer.site for layer in task.layers]
    part = program.extract(program.inputs, sites)
    squares = [layer.n_units**2 for layer in task.layers if task.errors and len(task.positions[layer.name]) > 1]
    n, _ = _fit(task, numbers_of(program, program.inputs, sites), 1, sum(squares))

    def answers() -> Iterator[tuple[Layer, Piece, Tensor, Tensor | None]]:
        for piece in task.batches(n):
            with torch.no_grad():
                values = part(*piece.tensors)
            for layer, value in zip(task.layers, values, strict=True):
                rows, weights = (
                    task.rows(layer, value).to(task.means[layer.name].total),
                    task.weights(layer, piece.counts),
                )
                yield layer, piece, rows, weights

    for layer, piece, rows, weights in answers():
        own = rows.new_full((1, 1), len(piece.y)) if weights is None else (weights > 0).to(rows).sum(0)[:, None]
        whole = rows if weights is None else torch.where(weights[..., None] > 0, rows, 0)
        sums[layer.name] = sums[layer.name].to(rows) + whole.sum(0)
        counted[layer.name] = counted[layer.name].to(rows) + own
    level = {name: sums[name] / counted[name].clamp(min=1) for name in sums}  # the mean of each place

    def add(answer: tuple[Layer, Piece, Tensor, Tensor | None]) -> None:
        layer, piece, rows, weights = answer
        rows = rows - level[layer.name]
        if rows.shape[1] == 1 and weights is None:
            task.means[layer.name].add_single(rows[:, 0])
        else:
            task.means[layer.name].add(_weighed(rows[None], weights), rows.shape[1])
            task.close(layer, piece)

    for some in zip(*[answers()] * len(task.layers), strict=True):  # of all layers, for some examples
        task.each(add, some)
    for layer in task.layers:
        _still(task.means[layer.name], level[layer.name], program.value(layer.site).dtype)


def _still(mean: MatrixMean, level: Tensor, dtype: torch.dtype) -> None:
    """Set to zero what belongs to units that vary no more than rounding makes them; `level` is their mean by place."""
    noise = level.square().mean(0) * (8 * torch.finfo(dtype).eps) ** 2
    constant = mean.total.diagonal() <= mean.n * noise
    for one in [mean.total] if mean.products is None else [mean.total, *mean.products]:
        one[constant] = 0
        one[:, constant] = 0


# Gradients by what a layer puts out


def mean_output_jacobian(task: Measurement) -> None:
    """How far does moving either unit move the same outputs? One vector is pulled back for every output.

    Parameters
    ----------
    task : Measurement
        Gradients by what a layer puts out
    """
    check_gradients(task.subject, "'output_jacobian'")
    asked = task.subject.asked.output
    node = _output(task.network) if asked is None else choose_output(task.network, task="none", output=asked).node
    _pull_all(task, node, math.prod(task.network.program.shape(node)), task.layers, _ones)


def _output(network: Network) -> str:
    """The node of the numbers that a network puts out."""
    program, labels = network.program, dict(zip(network.program.outputs, network.program.labels, strict=True))
    whole = [name for name in labels if program.layouts.get(name, Layout()).axis is not None]
    whole = [name for name in whole if program.value(name).is_floating_point()]
    chosen = [name for name in whole if labels[name] == "logits"] or whole
    if len(chosen) != 1:
        told = f"{network.model} puts out {len(labels)} values, of which {len(chosen)} are numbers for each example"
        raise ValueError(f"{told}: gradients need one, or one that is called 'logits'")
    return chosen[0]


def _pull_all(task: Measurement, node: str, n_outputs: int, layers: Sequence[Layer], vectors: Callable) -> None:
    """Add up outer products of the gradients of a node along `vectors` by what layers put out."""
    groups = [layers] if task.network.program.any_batch else [[layer] for layer in layers]
    for group in groups:
        part = Downstream(task.network, group, node)
        n, step = _fit(task, part.sizes, n_outputs, sum(4 * layer.n_units**2 for layer in group) * task.errors)
        for piece in task.batches(n):
            values, found = part.run(piece.tensors)
            for start in range(0, n_outputs, step):
                slopes = _pull(found, values, vectors(found, slice(start, start + step)))
                own = list(zip(part.layers, slopes, strict=True))
                task.each(lambda one, piece=piece: task.add(*one, piece.counts), own)
            for layer in group:
                task.close(layer, piece)


def _pull(y: Tensor, by: Sequence[Tensor], vectors: Tensor) -> list[Tensor]:
    """Gradients of `y` (n, m) along `vectors` (n_vectors, n, m) by each of some values: (n_vectors, *its shape)."""
    options = {"grad_outputs": vectors, "retain_graph": True, "is_grads_batched": True, "allow_unused": True}
    found = torch.autograd.grad(y, by, **options) if y.requires_grad else [None] * len(by)
    zeros = (value.new_zeros(1).expand(len(vectors), *value.shape) for value in by)
    return [zero if one is None else one for zero, one in zip(zeros, found, strict=True)]


def _unit_rows(n: int, rows: slice, like: Tensor) -> Tensor:  # (n_rows, n)
    """Some rows of the identity."""
    places = torch.arange(n, device=like.device)
    return (places[rows, None] == places).to(like.dtype)


def _ones(y: Tensor, rows: slice) -> Tensor:  # (n, m) -> (n_rows, n, m)
    """Some of the unit vectors, for every example."""
    return _unit_rows(y.shape[1], rows, y)[:, None].expand(-1, len(y), -1)


# Second derivatives of the loss


def mean_loss_hessian(task: Measurement) -> None:
    """How far does moving one unit change what moving the other costs? Differentiated twice only where it curves.

    Parameters
    ----------
    task : Measurement
        Second derivatives of the loss
    """
    check_gradients(task.subject, "'loss_hessian'")
    node, n_classes = scores_of(task.subject)
    if task.subject.scores == "probabilities":
        told = f"the scores of {task.network.model} are probabilities, and 'loss_hessian' needs what they are made of"
        raise ValueError(f"{told}: give the model without its last softmax, or scores='logits' if they are logits")
    check_labels(task.subject.data, n_classes)
    flat = [layer for layer in task.layers if _in_pieces(task.network.program, layer.site, node)]
    if flat:
        _pull_all(task, node, n_classes, flat, _roots)
    rest = [layer for layer in task.layers if layer not in flat]
    task.each(lambda layer: _differentiate_twice(task, node, layer), rest)


def _roots(y: Tensor, rows: slice) -> Tensor:  # (n, m) -> (n_rows, n, m)
    """Vectors whose outer products add up to the second derivative of the cross-entropy by the scores."""
    p = y.detach().softmax(1)
    vectors = _unit_rows(y.shape[1], rows, y)[:, None] - p
    return vectors * p[:, rows].sqrt().T.unsqueeze(2)


def _in_pieces(program: Any, site: str, node: str) -> bool:
    """Is a node linear in pieces as a function of a site?"""
    if not program.any_batch:
        return False
    varying = program.dependents(site)
    between = (varying & program.needed([site], [node])) - {site}
    return all(_is_linear(program.nodes[name], varying, kinks=True) for name in between)


def _is_linear(node: fx.Node, varying: set[str], kinks: bool) -> bool:
    """Is an operation linear in the values that vary, or, with `kinks`, linear in pieces?"""
    name, inputs = op_name(node), {one for one in node.all_input_nodes if one.name in varying}
    if name in STRAIGHT or (kinks and name in KINKED):
        return True
    if name == "batch_norm" and (argument(node, "training", 5) or argument(node, "running_mean", 3) is None):
        return False
    places = [place for place, one in enumerate(node.args) if isinstance(one, fx.Node) and one in inputs]
    alone = len(inputs) == len(places) == 1  # a product of a value with itself has it at two places
    return name in PRODUCTS and alone and (name not in ("div", "batch_norm") or places == [0])


def _differentiate_twice(task: Measurement, node: str, layer: Layer) -> None:
    """Add up the second derivatives of one layer, at one place at a time."""
    part, mean, n_units = Downstream(task.network, [layer], node), task.means[layer.name], layer.n_units
    n, step = _fit(task, (2 * part.sizes[0], 3 * part.sizes[1]), n_units, 4 * n_units**2)
    n_places = len(task.positions[layer.name])
    for piece in task.batches(n):
        (value,), scores = part.run(piece.tensors)
        y, weights = piece.y, task.weights(layer, piece.counts)
        loss = F.cross_entropy(scores, y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, value, create_graph=True, allow_unused=True)
        slope = torch.zeros_like(value) if slope is None else slope  # nothing the loss sees comes from here
        slopes = task.rows(layer, slope)
        found = slopes.new_zeros(len(y), n_units, n_units)
        for place in range(n_places):
            for start in range(0, n_units, step):
                rows = slice(start, start + step)
                (twice,) = _pull(slopes[:, place], [value], _ones(slopes[:, place], rows))
                twice = torch.vmap(lambda one, place=place: task.rows(layer, one)[:, place])(twice)
                twice = twice.transpose(0, 1) / n_places
                if weights is not None:
                    own = weights[:, place, None, None]
                    twice = torch.where(own > 0, twice, 0) * own
                found[:, rows] += twice
        mean.add_matrices((found + found.mT) / 2)
        task.close(layer, piece)


# Gradients by the inputs: back from every unit, or ahead from every input


def mean_input_jacobian(task: Measurement) -> None:
    """How far do the same changes of the input move both units? Ahead where that is less work, else back.

    Parameters
    ----------
    task : Measurement
        Gradients by the inputs: back from every unit, or ahead from every input
    """
    check_gradients(task.subject, "'input_jacobian'")
    program = task.network.program
    whole = [program.value(name).is_floating_point() for name in program.inputs]
    others = {name: program.value(name).dtype for name, one in zip(program.inputs, whole, strict=True) if not one}
    if not any(whole) or set(others.values()) - {torch.bool}:
        told = (
            f"inputs {list(others)} of {task.network.model} are whole numbers, which nothing can be differentiated by"
        )
        raise ValueError(f"{told}: take measure='covariance', or trace the part of the model after its embedding")
    ahead = _push_all(task) if program.any_batch and len(program.inputs) == 1 else ()
    task.each(lambda layer: _pull_back(task, layer), [layer for layer in task.layers if layer not in ahead])


def _pull_back(task: Measurement, layer: Layer) -> None:
    """Pull every unit of a layer, at every place, to the inputs; works with any model."""
    program, mean, n_units = task.network.program, task.means[layer.name], layer.n_units
    part, n_places = program.extract(program.inputs, [layer.site]), len(task.positions[layer.name])
    n_inputs = sum(math.prod(program.shape(name)) for name in program.inputs)
    n, step = _fit(task, numbers_of(program, program.inputs, [layer.site]), n_units, 3 * n_units * n_inputs)
    for piece in task.batches(n):
        given = [one.detach().requires_grad_(one.is_floating_point()) for one in piece.tensors]
        weights = task.weights(layer, piece.counts)
        by = [one for one in given if one.is_floating_point()]
        units = task.rows(layer, part(*(one.clone() for one in given))[0])
        for place in range(n_places):
            slopes = []
            for start in range(0, n_units, step):
                parts = _pull(units[:, place], by, _ones(units[:, place], slice(start, start + step)))
                slopes.append(torch.cat([one.flatten(2) for one in parts], 2))
            rows = torch.cat(slopes).to(units).permute(2, 1, 0)[:, :, None]
            mean.add(_weighed(rows, None if weights is None else weights[:, place, None]), n_places)
        task.close(layer, piece)


def _push_all(task: Measurement) -> list[Layer]:
    """Serve those layers that have more units than there are directions of the inputs; returns them."""
    program, found = task.network.program, []
    start = program.inputs[0]
    varying = program.dependents(start)
    for layer in task.layers:
        names = (varying & program.needed([start], [layer.site])) - {start}
        nodes = [program.nodes[name] for name in names]
        if all(op_name(node) in SMOOTH or _is_linear(node, varying, kinks=True) for node in nodes):
            found.append(layer)
    front = _find_front(program, [layer.site for layer in found])
    n_rows = min(math.prod(program.shape(name)) for name in (start, front))
    found = [layer for layer in found if layer.n_units * len(task.positions[layer.name]) >= n_rows]
    if found:
        single = [layer for layer in found if _is_pointwise(program, front, layer)]
        rows = _directions(program, front, reference_tensor(task.subject.model))
        _push_ahead(task, single, [layer for layer in found if layer not in single], front, rows)
        for layer in single:
            _weigh(task.means[layer.name], rows.double().T @ rows.double())
    return found


def _push_ahead(task: Measurement, single: list[Layer], others: list[Layer], front: str, rows: Tensor) -> None:
    """Push directions of the front to the layers; one push of ones serves those whose units each see one number."""
    program, sites = task.network.program, [layer.site for layer in single + others]
    before, part = program.extract(program.inputs, [front]), _pushable(program.extract([front], sites))
    squares = sum(4 * layer.n_units**2 for layer in others) * task.errors
    n, step = _fit(task, numbers_of(program, [front], sites), len(rows), squares)
    for piece in task.batches(n):
        with torch.no_grad():
            (value,) = before(*piece.tensors)
        for layer, slope in zip(single, _push(part, value, torch.ones_like(value)[None]), strict=False):
            task.means[layer.name].add_single(task.rows(layer, slope[0])[:, 0])
        for start in range(0, len(rows) if others else 0, step):
            directions = rows[start : start + step].view(-1, 1, *value.shape[1:]).expand(-1, *value.shape)
            own = list(zip(others, _push(part, value, directions)[len(single) :], strict=True))
            task.each(lambda one, piece=piece: task.add(*one, piece.counts), own)
        for layer in others:
            task.close(layer, piece)


def _push(part: Callable, value: Tensor, directions: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of what a part puts out along each of some directions (n_directions, *shape of the value)."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, as it loads what this needs
        return torch.vmap(lambda one: torch.func.jvp(part, (value,), (one,))[1])(directions)


def _pushable(part: fx.GraphModule) -> fx.GraphModule:
    """The part with products and biases apart: pushed together, a bias would be made into large arrays of zeros."""
    part = fx.GraphModule(part, copy.deepcopy(part.graph))
    for node in part.graph.nodes:
        if op_name(node) == "linear":
            node.target = _product_and_bias
    part.recompile()
    return part


def _product_and_bias(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found = x @ weight.T
    return found if bias is None else found + bias


def _find_front(program: Any, sites: Sequence[str]) -> str:
    """The inputs, or a value of no more numbers that is linear in them and that all else comes from."""
    start, needed = program.inputs[0], program.needed(program.inputs, sites)
    varying, linear = program.dependents(start), {start}
    for name in (name for name in program.nodes if name in (varying & needed) - {start}):
        before = {one.name for one in program.nodes[name].all_input_nodes} & varying
        if before <= linear and _is_linear(program.nodes[name], varying, kinks=False):
            linear.add(name)
    ends = {name for name in linear if {one.name for one in program.nodes[name].users} & (needed - linear)}
    ends |= linear & set(sites)
    name = ends.pop() if len(ends) == 1 else start
    small = math.prod(program.shape(name)) <= math.prod(program.shape(start))
    return name if small and program.layouts[name] == Layout(0) else start


def _directions(program: Any, front: str, like: Tensor) -> Tensor:  # (n_directions, n_numbers)
    """Directions at the front whose outer products add up to those of its derivatives by the inputs."""
    start = program.inputs[0]
    eye = torch.eye(math.prod(program.shape(start)), dtype=like.dtype, device=like.device)
    if front == start:
        return eye
    zero = like.new_zeros(1, *program.shape(start))
    (columns,) = _push(program.extract([start], [front]), zero, eye.view(-1, *zero.shape))
    return torch.linalg.qr(columns.flatten(1).double(), mode="r").R.to(like)


def _is_pointwise(program: Any, front: str, layer: Layer) -> bool:
    """Does each unit of a layer depend on one number of the front alone?"""
    names = program.needed([front], [layer.site]) & program.dependents(front)
    same = all(program.value(name).shape == program.value(front).shape for name in names)
    kept = all(op_name(program.nodes[name]) in KEEPS for name in names - {front})
    return same and kept and layer.shape == (layer.n_units,) and program.layouts[layer.site] == Layout(0)


def _weigh(mean: MatrixMean, weight: Tensor) -> None:  # (n_units, n_units), symmetric
    """Multiply every example's matrix by a weight, number by number."""
    weight = weight.to(mean.total)
    mean.total *= weight
    if mean.products is not None:
        own = weight.diagonal()
        mean.products *= torch.stack([weight.square(), weight * own[:, None], own[:, None] * own])
