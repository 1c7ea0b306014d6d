"""A program cut at the layers to be lesioned: what comes before runs once, what comes after for many lesions at a time.

A plain module, not a notebook: mechanism without a story. The lesion notebook shows what it is good for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from specialize_nb.lesions.fuse import FusedProgram, is_pooling, peak
from specialize_nb.network.hooked import HookedProgram
from specialize_nb.network.operations import op_name, size_rule
from specialize_nb.network.program import (
    Layout,
    Program,
    boundary_of,
    examples_back,
    examples_first,
    first_met,
)
from specialize_nb.network.units import Layer, Network

__all__ = ["Cut", "ablate"]


def ablate(
    value: Tensor,  # (n or n_groups * n, ...) what a layer puts out, examples first
    mask: Tensor,  # (n_groups, n_units) bool, True for silenced units
    fill: Tensor | None,  # What those put out instead: as many axes as `value`, of its size or 1; None: zeros
    unit_dim: int,  # Axis of `value` that its units lie along, the examples' is 0
    *,
    stacked: bool,  # Does `value` hold the batch once for each lesion already?
) -> Tensor:  # (n_groups * n, ...)
    """Replace what groups of units put out; the batch comes once for each lesion.

    Parameters
    ----------
    value : Tensor
        (n or n_groups * n, ...) what a layer puts out, examples first
    mask : Tensor
        (n_groups, n_units) bool, True for silenced units
    fill : Tensor | None
        What those put out instead: as many axes as `value`, of its size or 1; None: zeros
    unit_dim : int
        Axis of `value` that its units lie along, the examples' is 0
    stacked : bool
        Does `value` hold the batch once for each lesion already?

    Returns
    -------
    Tensor
        (n_groups * n, ...)
    """
    value = value.unflatten(0, (len(mask), -1)) if stacked else value.unsqueeze(0)
    shape = [len(mask)] + [1] * (value.ndim - 1)
    shape[unit_dim + 1] = mask.shape[1]
    fill = None if fill is None else fill.unsqueeze(0).to(value.dtype)
    return _put(value, mask.view(shape), fill).flatten(0, 1)


_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}  # whole numbers of as many bytes


def _put(value: Tensor, mask: Tensor, fill: Tensor | None) -> Tensor:
    """`torch.where(mask, fill, value)`, the same bits; on a CPU by bits, measured five times as fast."""
    if value.device.type != "cpu" or not value.is_floating_point():
        return torch.where(mask, 0 if fill is None else fill, value)
    bits = _BITS[value.element_size()]
    keep = mask.to(bits).sub_(1)  # all bits where a value is kept, none where it is not
    found = value.view(bits) & keep
    if fill is not None:
        found = found.bitwise_or_(fill.view(bits) & ~keep)
    return found.view(value.dtype)


class _AblateInside(nn.Module):
    """`ablate` for a value met on the way, whose examples may lie anywhere. A module, so that a part can be pickled."""

    def __init__(self, layout: Layout, unit_dim: int):
        super().__init__()
        self.layout, self.unit_dim = layout, unit_dim

    def forward(self, value: Tensor, mask: Tensor, fill: Tensor | None) -> Tensor:
        rows = examples_first(value, self.layout)
        return examples_back(ablate(rows, mask, fill, self.unit_dim, stacked=True), self.layout)


class Cut:
    """The two parts of a program around some layers; it can be sent to other processes.

    Parameters
    ----------
    network : Network
        Whose layers they are
    program : FusedProgram | HookedProgram
        The network's own, or its fused twin
    layers : Sequence[str]
        All to be lesioned at once
    scores : str
        Node that holds what the network says
    reader : str | None, default None
        Layer that alone gets the lesioned values; None is all

    Raises: `ValueError` if a layer cannot be lesioned there, or what one reader gets cannot be told from what others
    do.
    """

    arguments = Program.arguments  # The tensors of one call's inputs

    def __init__(
        self,
        network: Network,  # Whose layers they are
        program: FusedProgram | HookedProgram,  # The network's own, or its fused twin
        layers: Sequence[str],  # All to be lesioned at once
        scores: str,  # Node that holds what the network says
        reader: str | None = None,  # Layer that alone gets the lesioned values; None is all
    ):
        self.layers = {name: network.layer(name) for name in layers}
        self.any_batch, self.keywords = program.any_batch, program.keywords
        if reader is not None:
            first, inside = [], list(self.layers.values())
        else:
            first, inside = first_met(program, list(self.layers.values()))
        self._check(program, len(first) + len(inside), reader)
        self._check_reached(program, scores)
        self.first = [layer.name for layer in first]
        self.kept = boundary_of(program, [layer.site for layer in first or inside], [scores])
        self._layouts = {name: program.layouts[name] for name in self.kept if name in program.layouts}
        self._sizes = {name: size_rule(program.nodes[name]) for name in self.kept if name not in program.layouts}
        self._before = program.extract(program.inputs, self.kept)
        self._after = program.extract(self.kept, [scores])
        self.has_maps = self.any_batch and _has_maps(self._after)
        self.inside = [layer.name for layer in inside]
        if inside:
            users = {layer.name: _readers(network, program, layer, reader) for layer in inside}
            part = fx.GraphModule(self._after, copy.deepcopy(self._after.graph))
            self._after = _with_lesions(part, inside, users, program)
        self.peak = peak(program, self.kept, [scores]) if self.any_batch else 1

    def _check(self, program: FusedProgram | HookedProgram, n: int, reader: str | None) -> None:
        for name, layer in self.layers.items():
            if program.layouts[layer.site].axis is None:
                raise ValueError(f"layer {name!r} puts out the same for all examples of a batch: it cannot be lesioned")
            if layer.shape[layer.unit_dim - 1] != layer.n_units:
                told = f"its values are {layer.shape} and its units {layer.n_units}, one for each number"
                raise ValueError(f"layer {name!r} cannot be lesioned: {told}; lesion the layers that read it")
        if not self.any_batch and (n > 1 or reader is not None):
            what = "groups across layers" if reader is None else "a lesion for one reader"
            raise ValueError(f"{what} cannot be lesioned: the model is read through hooks, so its wiring is not known")

    def _check_reached(self, program: FusedProgram | HookedProgram, scores: str) -> None:
        if isinstance(program, HookedProgram):
            return
        heard = program.needed((), [scores])
        if silent := [name for name, layer in self.layers.items() if layer.site not in heard]:
            told = f"layer {silent[0]!r} does not reach the output {scores!r}, so that no lesion of it changes anything"
            raise ValueError(f"{told}: lesion other layers, or choose another output")

    @property
    def parts(self) -> tuple[Any, Any]:
        """What computes the kept values, and what goes on from them."""
        return self._before, self._after

    @property
    def operations(self) -> frozenset[str]:
        """Names of the operations that every lesion goes through."""
        return frozenset(node.name for node in self._after.graph.nodes if node.op == "call_function")

    def keep(
        self,
        tensors: Sequence[Tensor],  # The `arguments` of one batch
    ) -> tuple[Any, ...]:
        """The values to keep of one batch: what layers put out, and what else is needed after them.

        Parameters
        ----------
        tensors : Sequence[Tensor]
            The `arguments` of one batch

        Returns
        -------
        tuple[Any, ...]
        """
        return tuple(self._laid_out(value) for value in self._before(*tensors))

    def _laid_out(self, value: Any) -> Any:
        """Maps that convolutions or pooling will read with their channels last in memory, once for all lesions."""
        if not self.has_maps or not isinstance(value, Tensor) or value.ndim != 4:
            return value
        return value.contiguous(memory_format=torch.channels_last)

    def scores(
        self,
        kept: Sequence[Any],  # From `keep`
        masks: Mapping[str, Tensor],  # Layer -> (n_groups, n_units) bool, True for silenced units
        fills: Mapping[str, Tensor | None],  # Layer -> what those put out instead, as in `ablate`
    ) -> Tensor:  # (n_groups, n, n_scores), or with the axes that the output has
        """What does the network say under each lesion?

        Parameters
        ----------
        kept : Sequence[Any]
            From `keep`
        masks : Mapping[str, Tensor]
            Layer -> (n_groups, n_units) bool, True for silenced units
        fills : Mapping[str, Tensor | None]
            Layer -> what those put out instead, as in `ablate`

        Returns
        -------
        Tensor
            (n_groups, n, n_scores), or with the axes that the output has
        """
        extra = [part[name] for name in self.inside for part in (masks, fills)]
        n_groups = len(next(iter(masks.values())))
        found = self._after(*self.stacked(kept, masks, fills), *extra)[0].unflatten(0, (n_groups, -1))
        return found if found.ndim > 2 else found.unsqueeze(2)

    def stacked(
        self,
        kept: Sequence[Any],  # From `keep`
        masks: Mapping[str, Tensor],  # Layer -> (n_groups, n_units) bool, True for silenced units
        fills: Mapping[str, Tensor | None],  # Layer -> what those put out instead, as in `ablate`
    ) -> list[Any]:
        """The kept values once for each lesion, the first layers' lesioned.

        Parameters
        ----------
        kept : Sequence[Any]
            From `keep`
        masks : Mapping[str, Tensor]
            Layer -> (n_groups, n_units) bool, True for silenced units
        fills : Mapping[str, Tensor | None]
            Layer -> what those put out instead, as in `ablate`

        Returns
        -------
        list[Any]
        """
        n_groups = len(next(iter(masks.values())))
        n = len(examples_first(kept[0], self._layouts[self.kept[0]]))
        values = [self._stacked(name, value, n, n_groups) for name, value in zip(self.kept, kept, strict=True)]
        for i, name in enumerate(self.first):
            layout, rows = self._layouts[self.kept[i]], examples_first(kept[i], self._layouts[self.kept[i]])
            rows = ablate(rows, masks[name], fills[name], self.layers[name].unit_dim, stacked=False)
            values[i] = examples_back(rows, layout)
        return values

    def _stacked(self, name: str, value: Any, n: int, times: int) -> Any:
        """A kept value for a batch of `n` repeated `times` over; the first sites are stacked as they are lesioned."""
        if name in self._sizes:
            return value if times == 1 else self._sizes[name](n * times)
        layout = self._layouts[name]
        if layout.axis is None or self.kept.index(name) < len(self.first):
            return value
        rows = examples_first(value, layout)
        return value if times == 1 else examples_back(rows.repeat(times, *[1] * (rows.ndim - 1)), layout)


def _has_maps(part: fx.GraphModule) -> bool:
    """Does it read maps with operations that want their channels last?"""
    return any(op_name(node) == "conv2d" or is_pooling(node) for node in part.graph.nodes)


def _readers(network: Network, program: Any, layer: Layer, reader: str | None) -> list[str]:
    """Names of the nodes that read a layer's units, all or on the way to one layer."""
    if reader is None:
        return [user.name for user in program.nodes[layer.site].users]
    users = [user.name for user in program.nodes[layer.site].users if user.op != "output"]
    stops = {other.pre: other.name for other in network.layers if other.name != layer.name and other.kind != "input"}
    network.layer(reader)
    reached = {user: _layers_reached(program, user, stops) for user in users}
    found = [user for user in users if reader in reached[user]]
    if not found:
        named = sorted(set.union(set(), *reached.values()))
        raise ValueError(f"layer {reader!r} does not read {layer.name!r}: its readers are {named}")
    if shared := sorted({name for user in found for name in reached[user]} - {reader}):
        told = f"what {reader!r} reads of {layer.name!r} also goes to {shared} by the same way"
        raise ValueError(f"{told}: trace with residual='stream', or lesion all readers")
    return found


def _layers_reached(program: Any, start: str, stops: Mapping[str, str]) -> set[str]:
    """Names of the layers that a node leads to without passing another layer."""
    found, stack, seen = set(), [start], set()
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in stops:
            found.add(stops[name])
        else:
            stack += [user.name for user in program.nodes[name].users if user.op != "output"]
    return found


def _with_lesions(
    part: fx.GraphModule, layers: Sequence[Layer], users: Mapping[str, list[str]], program: Any
) -> fx.GraphModule:
    """The part with a mask and a fill as further inputs for each layer, which is lesioned where it is met."""
    nodes = {node.name: node for node in part.graph.nodes}
    last = [node for node in part.graph.nodes if node.op == "placeholder"][-1]
    for i, layer in enumerate(layers):
        extra = []
        for kind in ("mask", "fill"):
            with part.graph.inserting_after(last):
                last = part.graph.placeholder(f"{kind}_{i}")
            extra.append(last)
        site = nodes[layer.site]
        after = last if site.op == "placeholder" else site
        part.add_submodule(f"lesion_{i}", _AblateInside(program.layouts[layer.site], layer.unit_dim))
        with part.graph.inserting_after(after):
            new = part.graph.call_module(f"lesion_{i}", (site, *extra))
        for name in users[layer.name]:
            if name in nodes:
                nodes[name].replace_input_with(site, new)
    part.recompile()
    return part
