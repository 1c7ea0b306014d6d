"""What a network says: which of its outputs holds the scores, what they are for all data, and of what kind they are.

A plain module, not a notebook: mechanism without a story. Everything that measures a model by what it says asks here
first, so that outputs that are not numbers, and scores that are probabilities already, are met before anything is
measured. `Subject` keeps what is found.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from specialize_nb.base.data import Batches
from specialize_nb.base.devices import to_model
from specialize_nb.base.targets import IGNORED, Task
from specialize_nb.base.words import check_choice, suggest
from specialize_nb.network.bounds import Bounds, bounds_of, is_logarithm, last_operation
from specialize_nb.network.inputs import naming_batch, which
from specialize_nb.network.operations import op_name
from specialize_nb.network.units import Network

__all__ = [
    "Dense",
    "Outputs",
    "Scale",
    "ScoresNode",
    "batches_of_outputs",
    "check_outputs",
    "choose_output",
    "dense_layouts",
    "least_probability",
    "read_outputs",
    "scale_of",
    "told_outputs",
]

Scale = Literal["logits", "probabilities"]

_MOST = 2**26  # numbers of all outputs that are kept
_OFF = 1e-3  # by which probabilities may miss 1 in sum, or lie outside 0 and 1


class _Disguise(NamedTuple):
    """What scores may be besides logits and probabilities."""

    make: Callable[[Tensor], Tensor]  # Probabilities of them
    off: float  # By which these may miss 1 in sum
    advice: str


_DISGUISES = {
    "percentages": _Disguise(lambda s: s / 100, 2e-2, "divide them by 100"),
    "logarithms to base 2 of probabilities": _Disguise(torch.exp2, _OFF, "multiply them by log(2)"),
    "logarithms to base 10 of probabilities": _Disguise(lambda s: 10.0**s, _OFF, "multiply them by log(10)"),
    "negative logarithms of probabilities": _Disguise(lambda s: (-s).exp(), _OFF, "turn their sign"),
    "odds of probabilities": _Disguise(lambda s: s / (1 + s), _OFF, "give their logarithms, or the probabilities"),
}


class Dense(NamedTuple):
    """How the scores of an example lie, where each of its positions has a class.

    Attributes
    ----------
    shape : tuple[int, ...]
        Of an example's scores
    axis : int
        Of that shape, which counts classes
    """

    shape: tuple[int, ...]  # Of an example's scores
    axis: int  # Of that shape, which counts classes

    @property
    def n_classes(self) -> int:
        """How many classes are scored at a position?"""
        return self.shape[self.axis]

    def rows(
        self,
        scores: Tensor,  # (..., numbers of an example)
    ) -> Tensor:  # (..., positions, classes)
        """Scores as a row for each position, in the order in which the targets lie.

        Parameters
        ----------
        scores : Tensor
            (..., numbers of an example)

        Returns
        -------
        Tensor
            (..., positions, classes)
        """
        lead = scores.ndim - 1
        return scores.unflatten(-1, self.shape).movedim(lead + self.axis, -1).flatten(lead, -2)


class ScoresNode(NamedTuple):
    """The output that holds the scores, or the numbers that are predicted.

    Attributes
    ----------
    node : str
        Of the traced program
    n : int
        Numbers an example; of 'dense' at a position
    label : str
        What the model calls it: a key, a place; '' for an output that is alone
    note : str
        Which it is, if there was a choice, a sentence; else ''
    dense : Dense | None, default None
        How the scores of positions lie; None for other tasks
    """

    node: str  # Of the traced program
    n: int  # Numbers an example; of 'dense' at a position
    label: str  # What the model calls it: a key, a place; '' for an output that is alone
    note: str  # Which it is, if there was a choice, a sentence; else ''
    dense: Dense | None = None  # How the scores of positions lie; None for other tasks


_NEEDED: dict[Task, str] = {
    "classes": "(batch, classes) scores, two classes or more",
    "dense": "(batch, positions, classes) or (batch, classes, positions) scores, two classes or more",
    "labels": "(batch,) or (batch, labels) floating numbers",
    "numbers": "floating numbers for each example",
    "none": "floating numbers for each example",
}


def choose_output(
    network: Network,  # Whose outputs
    *,
    task: Task = "classes",  # What is to be predicted
    output: str | int | None = None,  # Its name or place; None: the only one that can be it, or the one called 'logits'
    width: int | None = None,  # Numbers an example that the targets need, for classes at least; None: not known
    positions: tuple[int, ...] = (),  # Shape of an example's targets, for 'dense'
    class_axis: int | None = None,  # Of the output, which counts classes, for 'dense'; None: the one that can
) -> ScoresNode:
    """Where does the network put out its class scores, or the numbers it predicts?

    Parameters
    ----------
    network : Network
        Whose outputs
    task : Task, default 'classes'
        What is to be predicted
    output : str | int | None, default None
        Its name or place; None: the only one that can be it, or the one called 'logits'
    width : int | None, default None
        Numbers an example that the targets need, for classes at least; None: not known
    positions : tuple[int, ...], default ()
        Shape of an example's targets, for 'dense'
    class_axis : int | None, default None
        Of the output, which counts classes, for 'dense'; None: the one that can

    Returns
    -------
    ScoresNode

    Raises: `ValueError` if no output can be it, or more than one; it lists them, with their shapes.
    """
    if task == "dense":
        return _choose_dense(network, output, positions, class_axis)
    if class_axis is not None:
        told = "only scores at positions need it (task='dense')"
        raise ValueError(f"got class_axis={class_axis} and task={task!r}: {told}")
    pairs = _outputs(network)
    if output is not None:
        return _named(network, pairs, task, str(output))
    fitting = {node: label for label, node in reversed(pairs) if _fits(network, node, task)}
    called = [node for node, label in fitting.items() if label.split(".")[-1] == "logits"]
    sizes = {node: _size(network, node) for node in fitting}
    wide = [node for node, n in sizes.items() if width and (n >= width if task == "classes" else n == width)]
    chosen = next((found for found in (called, list(fitting), wide) if len(found) == 1), [])
    if chosen:
        label = fitting[chosen[0]]
        told = f"The scores are the output {label!r}, one of {told_outputs(network)}; `output=` chooses another."
        return ScoresNode(chosen[0], _size(network, chosen[0]), label, told if len(fitting) > 1 else "")
    raise ValueError(_refusal(network, pairs, task, len(fitting)))


def _refusal(network: Network, pairs: list[tuple[str, str]], task: Task, n_fitting: int) -> str:
    """Why no output could be chosen, and what to do."""
    found = f"the output of {network.model} is {told_outputs(network)}"
    if n_fitting > 1:
        return f"{found}: {n_fitting} of them can be it; say which with output={pairs[0][0]!r} or another name"
    one = [node for _, node in pairs if _fits(network, node, "labels") and _size(network, node) == 1]
    if task == "classes" and one:
        told = f"{network.model} puts out one score an example; class scores need two classes or more"
        return f"{told}: give labels of 0 and 1 (task='labels'), or numbers to predict (task='numbers')"
    needed = "it has to be" if len(pairs) == 1 else "one of them has to be"
    return f"{found}; {needed} one tensor of {_NEEDED[task]}, for task={task!r}"


def dense_layouts(
    network: Network,  # Whose
    node: str,  # One of its outputs
    positions: tuple[int, ...],  # Shape of an example's targets
) -> list[Dense]:
    """In which ways can an output hold scores of classes at these positions? Two, where both axes fit.

    Parameters
    ----------
    network : Network
        Whose
    node : str
        One of its outputs
    positions : tuple[int, ...]
        Shape of an example's targets

    Returns
    -------
    list[Dense]
    """
    if not positions or not _is_plain(network, node):
        return []
    shape = tuple(network.program.shape(node))
    axes = dict.fromkeys([0, len(shape) - 1]) if len(shape) == len(positions) + 1 else ()
    return [Dense(shape, a) for a in axes if shape[:a] + shape[a + 1 :] == positions and shape[a] >= 2]


def _choose_dense(
    network: Network, output: str | int | None, positions: tuple[int, ...], class_axis: int | None
) -> ScoresNode:
    """The output that holds scores of classes at positions, and how they lie."""
    pairs = _outputs(network)
    asked = pairs if output is None else [(label, node) for label, node in [_called(network, pairs, str(output))]]
    ways = {node: dense_layouts(network, node, positions) for _, node in asked}
    fitting = {node: label for label, node in reversed(asked) if ways[node]}
    called = [node for node, label in fitting.items() if label.split(".")[-1] == "logits"]
    chosen = next((found for found in (called, list(fitting)) if len(found) == 1), [])
    told = f"the output of {network.model} is {told_outputs(network)}, and targets are (batch, {_listed(positions)})"
    if not chosen and len(fitting) > 1:
        raise ValueError(f"{told}: {len(fitting)} outputs can hold the scores; say which with output={pairs[0][0]!r}")
    if not chosen:
        raise ValueError(f"{told}; for task='dense' one has to be {_NEEDED['dense']}, with a row for each position")
    node = chosen[0]
    dense = _of_axis(ways[node], class_axis, told)
    note = f"The scores are the output {fitting[node]!r}, one of {told_outputs(network)}; `output=` chooses another."
    return ScoresNode(node, dense.n_classes, fitting[node], note if len(fitting) > 1 else "", dense)


def _of_axis(ways: list[Dense], class_axis: int | None, told: str) -> Dense:
    """The way that is meant, by the axis that counts classes, the batch's counted."""
    if class_axis is not None:
        place = class_axis - 1 if class_axis > 0 else class_axis + len(ways[0].shape)
        ways = [one for one in ways if one.axis == place]
    if not ways:
        raise ValueError(f"{told}: axis {class_axis} cannot count classes; leave `class_axis` out")
    if len(ways) > 1:
        said = "say which with Subject.of(model, data, class_axis=1), or -1"
        raise ValueError(f"{told}: two axes can count classes; {said}")
    return ways[0]


def _listed(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes))


def _called(network: Network, pairs: list[tuple[str, str]], output: str) -> tuple[str, str]:
    """Name and node of the output of that name, or at that place."""
    labels = [label for label, _ in pairs]
    if output not in labels and output.removeprefix("-").isdecimal() and -len(labels) <= int(output) < len(labels):
        output = labels[int(output)]
    if output not in labels:
        alone = "" if labels != [""] else "it is alone and has no name: leave `output` out"
        close = alone or suggest(output, [label for label in labels if label], "output")
        raise ValueError(f"{network.model} has no output {output!r}: {close}; it puts out {told_outputs(network)}")
    return output, pairs[labels.index(output)][1]


def _named(network: Network, pairs: list[tuple[str, str]], task: Task, output: str) -> ScoresNode:
    """The output of that name, or at that place, if it will do."""
    output, node = _called(network, pairs, output)
    if not _fits(network, node, task):
        told = f"the output {output!r} of {network.model} is {_told(network, node)}"
        raise ValueError(f"{told}; for task={task!r} it has to be {_NEEDED[task]}; it puts out {told_outputs(network)}")
    return ScoresNode(node, _size(network, node), output, "")


def _outputs(network: Network) -> list[tuple[str, str]]:
    """Name and node of every output."""
    return list(zip(network.program.labels, network.program.outputs, strict=True))


def _fits(network: Network, node: str, task: Task) -> bool:
    """Can an output be the scores of such a task?"""
    if not _is_plain(network, node):
        return False
    value = network.program.value(node)
    if task == "classes":  # (n, C, 1, 1), as networks of convolutions put out, is (n, C)
        return sum(size != 1 for size in value.shape[1:]) == 1
    return _size(network, node) >= 1 and (value.ndim <= 2 or task != "labels")


def _is_plain(network: Network, node: str) -> bool:
    """Floating numbers, examples along the first axis, and nothing beside them?"""
    layout, value = network.program.layouts.get(node), network.program.value(node)
    plain = layout is not None and layout.axis == 0 and layout.outer * layout.inner == 1
    return plain and value.is_floating_point()


def _size(network: Network, node: str) -> int:
    """Numbers an example."""
    return math.prod(network.program.shape(node))


def told_outputs(
    network: Network,  # Whose outputs
) -> str:
    """Every output with its name and shape, in words.

    Parameters
    ----------
    network : Network
        Whose outputs

    Returns
    -------
    str
    """
    told = (f"{label!r} {_told(network, node)}".removeprefix("'' ") for label, node in _outputs(network))
    return "; ".join(told) or "no tensor"


def _told(network: Network, node: str) -> str:
    """The shape of a value in words."""
    value, layout = network.program.value(node), network.program.layouts.get(node)
    if layout is None:
        return "a plain number"
    sizes = [str(size) for size in value.shape]
    if layout.axis is not None:
        each = layout.outer * layout.inner
        sizes[layout.axis] = "batch" if each == 1 else f"{each} * batch"
    shape = f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"
    return shape if value.is_floating_point() else f"{shape} {str(value.dtype).removeprefix('torch.')}"


# What it says of all data


@dataclass(frozen=True, eq=False, kw_only=True)
class Outputs:
    """What a network says of all data, intact.

    Attributes
    ----------
    values : np.ndarray | None
        (n, d) of its own type, float32 at least, read-only; None if too many to be kept
    low : float
        Smallest number that is finite
    high : float
        Largest
    off : float
        By how much the numbers of an example miss 1 in sum, at most
    disguised : Mapping[str, float]
        The same of the probabilities that they would be, were they percentages, say
    masked : np.ndarray
        (n,) bool: examples with a number -inf
    broken : np.ndarray
        (n,) bool: examples with a number that is NaN or +inf
    wrong : np.ndarray
        (n,) bool: examples whose right class is -inf, or all of whose numbers are
    dtype : torch.dtype
        Of the model's output
    """

    values: np.ndarray | None  # (n, d) of its own type, float32 at least, read-only; None if too many to be kept
    low: float  # Smallest number that is finite
    high: float  # Largest
    off: float  # By how much the numbers of an example miss 1 in sum, at most
    disguised: Mapping[str, float]  # The same of the probabilities that they would be, were they percentages, say
    masked: np.ndarray  # (n,) bool: examples with a number -inf
    broken: np.ndarray  # (n,) bool: examples with a number that is NaN or +inf
    wrong: np.ndarray  # (n,) bool: examples whose right class is -inf, or all of whose numbers are
    dtype: torch.dtype  # Of the model's output


def batches_of_outputs(
    model: nn.Module,  # In eval mode; returned as it was found
    network: Network,  # Traced from it
    data: Batches,  # Checked data
    node: str,  # The output
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch by batch (n, d) numbers that the model puts out, and targets.

    Parameters
    ----------
    model : nn.Module
        In eval mode; returned as it was found
    network : Network
        Traced from it
    data : Batches
        Checked data
    node : str
        The output

    Returns
    -------
    Iterator[tuple[Tensor, Tensor]]

    Raises: `ValueError` if the model fails on a batch, or puts out another number of rows than there are examples.
    """
    run = network.program.extract(network.program.inputs, [node])
    for i, (x, y) in enumerate(data):
        tensors = network.program.arguments(to_model(x, model))
        with naming_batch(model, i, x), torch.no_grad(), network.program.drawing(tensors):
            (value,) = run(*tensors)
        value = network.program.examples_first(node, value)
        if len(value) != len(y):
            told = f"{network.model} puts out {tuple(value.shape)} for the {len(y)} examples of batch {i}"
            raise ValueError(f"{told}: the first axis of its output has to count examples")
        yield value.flatten(1) if value.ndim > 1 else value[:, None], y


def read_outputs(
    model: nn.Module,  # In eval mode; returned as it was found
    network: Network,  # Traced from it
    data: Batches,  # Checked data
    node: str,  # The output
    dense: Dense | None = None,  # How scores of positions lie, if that is what they are
) -> Outputs:
    """What does the model say of all data? One pass.

    Parameters
    ----------
    model : nn.Module
        In eval mode; returned as it was found
    network : Network
        Traced from it
    data : Batches
        Checked data
    node : str
        The output
    dense : Dense | None, default None
        How scores of positions lie, if that is what they are

    Returns
    -------
    Outputs

    Raises: `ValueError` if the model fails on a batch, or puts out another number of rows than there are examples.
    """
    parts: list[np.ndarray] = []
    seen, keep, dtype = _Seen(data.n), True, torch.float32
    for value, y in batches_of_outputs(model, network, data, node):
        dtype, start = value.dtype, seen.start
        for rows, own, example in _rows(value, y, dense):
            seen.take(rows.to(torch.promote_types(dtype, torch.float32)), own, start + example, data.task)
        seen.start += len(value)
        keep = keep and dense is None and data.n * value.shape[1] <= _MOST
        if keep:
            parts.append(value.to(torch.promote_types(dtype, torch.float32)).cpu().numpy())
        else:
            parts.clear()
    values = np.concatenate(parts) if keep else None
    if values is not None:
        values.setflags(write=False)
    flags = {name: getattr(seen, name) for name in ("masked", "broken", "wrong")}
    return Outputs(
        values=values, low=seen.low, high=seen.high, off=seen.off, disguised=seen.disguised, dtype=dtype, **flags
    )


_AT_ONCE = 2**23  # numbers of the scores of positions that are looked at together
_LOOKED_AT = 256  # rows of them that are looked at for disguises


def _rows(value: Tensor, y: Tensor, dense: Dense | None) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
    """Rows of scores with their targets and examples: one an example, or one for each position that counts."""
    if dense is None:
        yield value, y, np.arange(len(value))
        return
    table, own = dense.rows(value), y.flatten(1).to(value.device)
    example, place = (own != IGNORED).nonzero(as_tuple=True)
    size = max(1, _AT_ONCE // dense.n_classes)
    for e, p in zip(example.split(size), place.split(size), strict=True):
        yield table[e, p], own[e, p], e.cpu().numpy()


class _Seen:
    """What was seen of the scores of all data so far."""

    def __init__(self, n: int):
        self.start, self.low, self.high, self.off = 0, math.inf, -math.inf, 0.0
        self.masked, self.broken, self.wrong = (np.zeros(n, dtype=bool) for _ in range(3))
        self.disguised = dict.fromkeys(_DISGUISES, 0.0)

    def take(self, wide: Tensor, y: Tensor, example: np.ndarray, task: Task) -> None:
        """Look at rows of scores: their targets, and the examples that they belong to."""
        none, finite = wide == -math.inf, wide.isfinite()
        wrong = none.all(1) | _right_is_masked(none, y, task)
        found = ((self.masked, none.any(1)), (self.broken, (~(finite | none)).any(1)), (self.wrong, wrong))
        for flags, rows in found:
            np.logical_or.at(flags, example, rows.cpu().numpy())
        if bool(finite.any()):
            known = wide if bool(finite.all()) else wide[finite]
            self.low, self.high = min(self.low, float(known.min())), max(self.high, float(known.max()))
        self.off = max(self.off, float((wide.sum(1) - 1).abs().nan_to_num(math.inf, math.inf).max()))
        some = wide[:_LOOKED_AT] if task == "dense" else wide
        missed = {name: _missed(one.make(some)) for name, one in _DISGUISES.items()}
        self.disguised = {name: max(most, missed[name]) for name, most in self.disguised.items()}


def _missed(shares: Tensor) -> float:
    """By how much rows miss 1 in sum, at most; infinite if any number is below 0."""
    off = float((shares.sum(1) - 1).abs().nan_to_num(math.inf, math.inf).max())
    return math.inf if bool((shares < 0).any()) else off


def _right_is_masked(none: Tensor, y: Tensor, task: Task) -> Tensor:
    """(n,) bool: is the right answer said to be impossible?"""
    if task in ("classes", "dense"):
        inside = y.to(none.device).clamp(max=none.shape[1] - 1)
        return none.gather(1, inside[:, None])[:, 0] & (y.to(none.device) < none.shape[1])
    if task == "labels" and y.shape[1:] == none.shape[1:]:
        return (none & (y.to(none.device) == 1)).any(1)
    return none.any(1) if task == "numbers" else none.new_zeros(len(none))


def check_outputs(
    found: Outputs,  # Of all data
    model: str,  # Its name
    task: Task,  # What is to be predicted
    places: np.ndarray | None = None,  # (n,) where the examples stand in the data as given; None: as they come
) -> None:
    """Can the outputs be measured?

    -inf is fine where it masks a class that is not the right one.

    Parameters
    ----------
    found : Outputs
        Of all data
    model : str
        Its name
    task : Task
        What is to be predicted
    places : np.ndarray | None, default None
        (n,) where the examples stand in the data as given; None: as they come

    Raises: `ValueError` that names the examples for which they cannot.
    """
    advice = "leave these examples out, or mend the model, such as a logarithm or a division by zero"
    if found.broken.any():
        raise ValueError(
            f"{model} puts out NaN or +inf for {which(found.broken, places)}, with nothing lesioned: {advice}"
        )
    if found.wrong.any():
        told = "all scores or that of the right answer" if task in ("classes", "dense", "labels") else "numbers"
        raise ValueError(
            f"{model} puts out -inf as {told} for {which(found.wrong, places)}, with nothing lesioned: {advice}"
        )


def scale_of(
    found: Outputs,  # Of all data
    network: Network,  # Whose
    node: str,  # The output
    task: Task,  # What is to be predicted
    said: Scale | None = None,  # What the user says they are
) -> tuple[Scale, tuple[str, ...]]:
    """Are the scores logits, or probabilities already? And what was decided, a sentence each.

    Scores are taken as probabilities if they lie in [0, 1] and sum to 1 in every example; for several labels, if they
    lie in [0, 1] and the last operations of the model cannot make other numbers, or are not known.

    Parameters
    ----------
    found : Outputs
        Of all data
    network : Network
        Whose
    node : str
        The output
    task : Task
        What is to be predicted
    said : Scale | None, default None
        What the user says they are

    Returns
    -------
    tuple[Scale, tuple[str, ...]]

    Raises: `ValueError` if they cannot be the probabilities that they are said to be, or look like something else.
    Warns: `UserWarning` if they are taken as probabilities without being said to be.
    """
    if said is not None:
        check_choice("scores", said, ("logits", "probabilities"))
    off = _OFF if found.dtype in (torch.float32, torch.float64) else 10 * _OFF
    inside = found.low >= -off and found.high <= 1 + off and not found.masked.any()
    summed = found.off <= off
    if said == "probabilities" and not (inside and (summed or task not in ("classes", "dense"))):
        told = f"the scores of {network.model} lie between {found.low:.3g} and {found.high:.3g}"
        told += f" and miss 1 in sum by up to {found.off:.3g}" if task in ("classes", "dense") else ""
        raise ValueError(f"{told}: they are no probabilities; say scores='logits', or leave `scores` out")
    if said is not None:
        return said, _told_rough(found, network, task) if said == "probabilities" and task != "numbers" else ()
    if task == "numbers":
        return "logits", ()
    _check_scale(found, network, node, task, off)
    if not inside:
        return "logits", ()
    if not _squashed(network, node, task, summed):
        return "logits", _doubted(network, node, task)
    how = "lie in [0, 1] and sum to 1" if task != "labels" else "lie in [0, 1]"
    told = f"The scores of {network.model} {how}: they are taken as probabilities, not as logits"
    warnings.warn(f"{told}; say scores='logits' or scores='probabilities' to decide it", UserWarning, stacklevel=4)
    return "probabilities", (f"{told} (`scores=` says otherwise).", *_told_rough(found, network, task))


def _check_scale(found: Outputs, network: Network, node: str, task: Task, off: float) -> None:
    """Are the scores in the units of logits or probabilities, and not in others?"""
    told, what, advice = f"the scores of {network.model}", "", ""
    if task == "labels":
        last, held = last_operation(network, node), bounds_of(network, node)
        if last is not None and is_logarithm(last):
            name = op_name(last).removesuffix("_forward").lstrip("_").replace("_", "-")
            what, advice = f"come from a {name}: they are logarithms of probabilities", "give the model without it"
        elif held.low >= 0 and held.high == 100:
            what, advice = "are held between 0 and 100: they look like percentages", _DISGUISES["percentages"].advice
    elif found.low < found.high and network.program.shape(node)[-1:] != (1,):
        looks = [name for name, one in _DISGUISES.items() if found.disguised[name] <= max(one.off, off)]
        if looks:
            what, advice = f"look like {looks[0]}, not like logits", _DISGUISES[looks[0]].advice
    if what:
        raise ValueError(f"{told} {what}; {advice}, or say scores='logits' to take them as they are")


def least_probability(
    dtype: torch.dtype,  # Of the probabilities
) -> float:
    """What is taken for a probability of exactly 0: the smallest above it that its type tells well.

    Parameters
    ----------
    dtype : torch.dtype
        Of the probabilities

    Returns
    -------
    float
    """
    known = torch.finfo(dtype)
    return known.tiny * (known.eps if known.bits < 32 else 1.0)  # halves go on below `tiny`


def _told_rough(found: Outputs, network: Network, task: Task) -> tuple[str, ...]:
    """What probabilities cannot tell, as logits could, a sentence each."""
    notes, name, known = [], str(found.dtype)[6:], torch.finfo(found.dtype)
    if found.low <= 0 or (task == "labels" and found.high >= 1):
        least = least_probability(found.dtype)
        which_ones = "0 or 1" if task == "labels" else "0"
        told = f"Some probabilities that {network.model} puts out are exactly {which_ones}, as {name} tells them"
        held = f"they are taken as {least:.2g} away from it, and no loss of theirs is above {-math.log(least):.1f} nats"
        notes.append(f"{told}: {held}; logits would tell more.")
    if known.bits < 32:
        told = f"The probabilities that {network.model} puts out are {name}, which rounds each loss"
        notes.append(f"{told} by up to {known.eps / 2:.0e} nats; logits, or float32, would tell more.")
    return tuple(notes)


def _doubted(network: Network, node: str, task: Task) -> tuple[str, ...]:
    """Scores in [0, 1] that are taken as logits: is that meant?"""
    last = last_operation(network, node)
    if task == "labels":
        told = f"The scores of {network.model} lie in [0, 1], but nothing in the model is known to hold them there"
        return (f"{told}: they are taken as logits; say scores='probabilities' if they are probabilities.",)
    if task not in ("classes", "dense") or last is None or bounds_of(network, node) != Bounds(0.0, 1.0):
        return ()
    told = f"The scores of {network.model} come from a {op_name(last)} and lie in [0, 1], but do not sum to 1"
    advice = "give the model without it, or labels of 0 and 1 (task='labels'), if they are probabilities"
    warnings.warn(f"{told}: they are taken as logits; {advice}", UserWarning, stacklevel=5)
    return (f"{told}: they are taken as logits.",)


def _squashed(network: Network, node: str, task: Task, summed: bool) -> bool:
    """Do scores in [0, 1] come from operations that keep them there?"""
    if task != "labels":
        return summed and network.program.shape(node)[-1:] != (1,)
    return last_operation(network, node) is None or bounds_of(network, node).within(0, 1)
