"""Follows units through a traced program, operation by operation: which weights join which units.

A plain module, not a notebook: the units notebook tells the story and proves it on real forward passes. The idea: each
value carries, for every layer that feeds it, a tensor of *unit indices* of the value's own shape (batch of one). An
operation that only moves numbers is followed by running it on the indices; one that works number by number keeps them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from specialize_nb.program import Program

__all__ = ["Flow", "RawLayer", "RawWire", "follow"]

INPUT = -1  # stands for the input where a layer's index is asked

_MOVES = set(
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze transpose permute t slice select narrow chunk split "
    "split_with_sizes unbind expand repeat tile contiguous clone roll flip index_select pixel_shuffle pixel_unshuffle "
    "channel_shuffle alias detach movedim swapaxes repeat_interleave cat concat stack constant_pad_nd pad".split()
)
_CONSTANTS = set("zeros_like ones_like full_like empty_like new_zeros new_ones new_full sym_size".split())
_KEEPS = set(
    "dropout feature_dropout alpha_dropout to _to_copy type_as identity softmax _softmax log_softmax hardswish "
    "hardsigmoid hardtanh relu relu6 elu selu celu gelu silu mish leaky_relu softplus prelu clamp".split()
)
_POOLS = set(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d max_pool2d_with_indices _adaptive_avg_pool2d "
    "upsample_nearest2d upsample_bilinear2d".split()
)
_REDUCES = {"mean", "sum", "amax", "amin"}
_LINEAR_KEEPS = set("dropout feature_dropout contiguous clone to _to_copy alias detach getitem".split())


@dataclass(eq=False)
class Strand:
    """One layer's units in one value."""

    layer: int  # Index of the layer, INPUT for the input
    unit: Tensor  # The value's shape, batch of one; int32 unit indices, -1 where none
    scale: Tensor | None = None  # Same shape: product of the batch-norm factors met since; None is one


@dataclass(eq=False)
class RawLayer:
    """A layer as found: names of its nodes in the program."""

    name: str
    op: str
    n_units: int
    unit_dim: int
    node: str  # The operation itself
    pre: str  # The last node before the unit's activation
    site: str  # The unit's output after its activation
    scale_in: Tensor | None = None  # (n_units,) factor of a batch norm between operation and activation


@dataclass(eq=False)
class RawWire:
    """Weights that join the units of two layers."""

    source: int
    target: int
    parameter: str  # Node that holds the weight
    columns: np.ndarray  # (n_columns,) unit of the source that feeds each column of the weight, -1 for none
    scale_out: Tensor | None  # (n_columns,)


@dataclass(eq=False)
class Flow:
    """What following the units of one program has found."""

    layers: list[RawLayer] = field(default_factory=list)
    wires: list[RawWire] = field(default_factory=list)
    unknown: dict[str, set[int]] = field(default_factory=dict)  # Operation -> layers it cuts off
    strands: dict[str, tuple[Strand, ...]] = field(default_factory=dict)
    outputs: set[int] = field(default_factory=set)
    input_units: tuple[int, int | None] = (0, None)  # How many, and their axis (None: every input number is a unit)


class _Coarser(Exception):
    """The units of the input have to be taken along an axis: single numbers are mixed before any weight is met."""


def follow(program: Program) -> Flow:
    """Follow every unit of `program` to the weights it meets.

    The input's units are its single numbers where the weights tell them apart (a dense first layer), else its channels.
    """
    shape = _shape(program.nodes[program.inputs[0]])
    axes = [None, *(axis for axis in (1, len(shape) - 1) if 0 < axis < len(shape))]
    for axis in axes:
        try:
            return _Follower(program, axis).flow
        except _Coarser:
            continue
    return _Follower(program, axes[-1], strict=False).flow


class _Follower:
    """One pass over the program."""

    def __init__(self, program: Program, input_axis: int | None, strict: bool = True):
        self.program, self.axis, self.strict = program, input_axis, strict
        self.flow, self.base, self.uses = Flow(), {}, {}
        for node in program.root.graph.nodes:
            self.flow.strands[node.name] = self._strands_of(node)
        self.flow.outputs = {s.layer for name in program.outputs for s in self.flow.strands[name]}
        for index in range(len(self.flow.layers)):
            self._find_site(index)

    # --- one node ---------------------------------------------------------------------------------------------------

    def _strands_of(self, node: fx.Node) -> tuple[Strand, ...]:
        if node.op == "placeholder":
            return self._input(node)
        if node.op != "call_function":
            return ()
        sources = [source for source in node.all_input_nodes if self.flow.strands[source.name]]
        name = _op_name(node)
        if name in _PRODUCERS:
            return self._produce(node, name)
        if not sources or name in _CONSTANTS or not _is_tensor(node):
            return ()
        if node.target is operator.getitem:
            return self._getitem(node)
        if name in ("batch_norm", "_native_batch_norm_legit_no_training"):
            return self._batch_norm(node)
        if name in _MOVES:
            return self._move(node)
        if name in _POOLS:
            return self._pool(node)
        if name in _REDUCES:
            return self._reduce(node)
        if name in _KEEPS or torch.Tag.pointwise in getattr(node.target, "tags", ()):
            return self._pointwise(node, sources)
        return self._cut_off(node, sources)

    def _input(self, node: fx.Node) -> tuple[Strand, ...]:
        value = node.meta["val"]
        if node.name != self.program.inputs[0] or not value.is_floating_point():
            return ()
        shape = _shape(node)
        n_units = int(np.prod(shape[1:])) if self.axis is None else shape[self.axis]
        unit = torch.arange(n_units, dtype=torch.int32)
        unit = unit.view(shape) if self.axis is None else _along(unit, shape, self.axis)
        self.flow.input_units = (n_units, self.axis)
        return (Strand(INPUT, unit),)

    def _getitem(self, node: fx.Node) -> tuple[Strand, ...]:
        source, index = node.args
        found = self.flow.strands[source.name]
        if _op_name(source) in _MOVES:  # a split: strands of every part are kept as a list
            return tuple(Strand(s.layer, s.unit[index], None if s.scale is None else s.scale[index]) for s in found)
        return found if index == 0 else ()

    def _cut_off(self, node: fx.Node, sources: Sequence[fx.Node]) -> tuple[Strand, ...]:
        layers = {strand.layer for source in sources for strand in self.flow.strands[source.name]}
        self.flow.unknown.setdefault(str(node.target), set()).update(layers)
        return ()

    # --- operations that make units -----------------------------------------------------------------------------------

    def _produce(self, node: fx.Node, name: str) -> tuple[Strand, ...]:
        value, parameter = node.args[:2]
        sources = self.flow.strands[value.name]
        if not isinstance(parameter, fx.Node) or parameter.op != "get_attr":
            return self._cut_off(node, [n for n in node.all_input_nodes if self.flow.strands[n.name]])
        shape, axis = _shape(node), 1 if name.startswith("conv") else len(_shape(node)) - 1
        index, n_units = len(self.flow.layers), shape[axis]
        layer = RawLayer(self._layer_name(parameter), name, n_units, axis, node.name, node.name, node.name)
        wires = []
        for strand in sources:
            columns, scale = self._columns(strand, 1 if name.startswith("conv") else -1)
            if columns is None:
                self.flow.unknown.setdefault(f"{node.target} along another axis than units", set()).add(strand.layer)
                continue
            wire = RawWire(strand.layer, index, parameter.name, columns, scale)
            if not any(_same(wire, other) for other in wires):
                wires.append(wire)
        self.flow.layers.append(layer)
        self.flow.wires += wires
        strand = Strand(index, _along(torch.arange(n_units, dtype=torch.int32), shape, axis))
        self.base[index] = strand
        return (strand,)

    def _columns(self, strand: Strand, axis: int) -> tuple[np.ndarray | None, Tensor | None]:
        """The unit each slice along `axis` holds, if it holds one unit alone."""
        unit = self._constant_along(strand, [d for d in range(strand.unit.ndim) if d != axis % strand.unit.ndim])
        if unit is None:
            return None, None
        scale = None
        if strand.scale is not None:
            scale = strand.scale.movedim(axis, 0).flatten(1)[:, 0].clone()
        return unit.movedim(axis, 0).flatten(1)[:, 0].numpy().astype(np.int64), scale

    def _constant_along(self, strand: Strand, dims: Sequence[int]) -> Tensor | None:
        """`strand.unit` if it does not vary along `dims`; None, or a coarser input asked for, if it does."""
        dims = [d for d in dims if strand.unit.shape[d] > 1 and strand.unit.stride(d) != 0]
        if dims and not bool((strand.unit.amin(dims) == strand.unit.amax(dims)).all()):
            if strand.layer == INPUT and self.strict:
                raise _Coarser
            return None
        return strand.unit

    def _layer_name(self, parameter: fx.Node) -> str:
        name = str(parameter.target).removesuffix(".weight")
        self.uses[name] = self.uses.get(name, 0) + 1
        return name if self.uses[name] == 1 else f"{name}#{self.uses[name]}"

    # --- operations that keep units -----------------------------------------------------------------------------------

    def _pointwise(self, node: fx.Node, sources: Sequence[fx.Node]) -> tuple[Strand, ...]:
        """Every unit that meets in the operation; a unit that comes twice by the same way counts once."""
        strands = dict.fromkeys(strand for source in sources for strand in self.flow.strands[source.name])
        return tuple(_broadcast(strand, _shape(node)) for strand in strands)

    def _batch_norm(self, node: fx.Node) -> tuple[Strand, ...]:
        value, weight, _, _, variance = node.args[:5]
        epsilon = node.args[7] if _op_name(node) == "batch_norm" else node.args[6]
        variance = self.program.attribute(variance.name).detach().double()
        gain = self.program.attribute(weight.name).detach().double() if weight is not None else torch.ones(())
        factor = (gain.abs().to(variance.device) / (variance + epsilon).sqrt()).cpu()
        strands = self.flow.strands[value.name]
        owner = self._operation_of(value)
        if owner is not None and len(value.users) == 1:
            self.flow.layers[owner].scale_in = factor
            return strands
        return tuple(self._scaled(strand, factor, _shape(node)) for strand in strands)

    def _operation_of(self, node: fx.Node) -> int | None:
        """The layer whose operation `node` is, if it is one."""
        return next((i for i, layer in enumerate(self.flow.layers) if layer.node == node.name), None)

    def _scaled(self, strand: Strand, factor: Tensor, shape: tuple[int, ...]) -> Strand:
        factor = _along(factor, shape, 1)
        return Strand(strand.layer, strand.unit, factor if strand.scale is None else strand.scale * factor)

    def _pool(self, node: fx.Node) -> tuple[Strand, ...]:
        shape = _shape(node)
        n_spatial = int(_op_name(node).split("pool")[-1][0]) if "pool" in _op_name(node) else len(shape) - 2
        dims = list(range(len(shape) - n_spatial, len(shape)))
        return self._over(node, dims, shape)

    def _reduce(self, node: fx.Node) -> tuple[Strand, ...]:
        rank = len(_shape(node.args[0]))
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        dims = (
            list(range(rank)) if dims in (None, []) else [d % rank for d in ([dims] if isinstance(dims, int) else dims)]
        )
        keep = bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
        return self._over(node, dims, _shape(node), squeeze=[] if keep else dims)

    def _over(
        self, node: fx.Node, dims: Sequence[int], shape: tuple[int, ...], squeeze: Sequence[int] = ()
    ) -> tuple[Strand, ...]:
        """Strands after an operation that mixes positions along `dims`, which must hold one unit each."""
        strands = []
        for strand in self.flow.strands[node.args[0].name]:
            unit = self._constant_along(strand, dims)
            if unit is None:
                self.flow.unknown.setdefault(f"{node.target} over units", set()).add(strand.layer)
                continue
            parts = [unit] if strand.scale is None else [unit, strand.scale]
            for dim in dims:
                parts = [part.narrow(dim, 0, 1) for part in parts]
            for dim in sorted(squeeze, reverse=True):
                parts = [part.squeeze(dim) for part in parts]
            parts = [part.expand(shape) for part in parts]
            strands.append(Strand(strand.layer, *parts))
        return tuple(strands)

    # --- operations that move units -----------------------------------------------------------------------------------

    def _move(self, node: fx.Node) -> tuple[Strand, ...]:
        """Run the operation itself on unit indices, once a strand; other inputs hold no unit of that strand."""
        strands = []
        for source in dict.fromkeys(node.all_input_nodes):
            for strand in self.flow.strands[source.name]:
                unit = self._run(node, source, strand.unit, -1)
                scale = None if strand.scale is None else self._run(node, source, strand.scale, 1.0)
                strands.append(Strand(strand.layer, unit, scale))
        return tuple(strands)

    def _run(self, node: fx.Node, source: fx.Node, value: Tensor, empty: float) -> Any:
        def argument(other: fx.Node) -> Any:
            if other is source:
                return value
            known = other.meta["val"]
            if isinstance(known, Tensor):
                return torch.full(_shape(other), empty, dtype=value.dtype)
            return _number(known)

        args, kwargs = fx.map_arg((node.args, node.kwargs), argument)
        if _op_name(node) in ("constant_pad_nd", "pad"):
            mode = args[2] if _op_name(node) == "pad" and len(args) > 2 else "constant"
            if mode == "constant":
                return torch.constant_pad_nd(value, args[1], empty)
        if _op_name(node) == "zeros_like":
            return torch.full_like(value, empty)
        return node.target(*args, **kwargs)

    # --- where a unit acts --------------------------------------------------------------------------------------------

    def _find_site(self, index: int) -> None:
        """Extend a layer from its operation through batch norm and activation, as far as no one looks in between.

        A node ends the extension if every path from the operation passes through it: then a lesion there is a lesion
        for all consumers.
        """
        layer, base, activated = self.flow.layers[index], self.base[index], False
        node = self.program.nodes[layer.node]
        open_edges = {(node, user) for user in node.users}
        while open_edges:
            node = min(user for _, user in open_edges)
            strands = self.flow.strands[node.name]
            if len(strands) != 1 or strands[0] is not base:
                return
            linear = _op_name(node) in _LINEAR_KEEPS or (layer.scale_in is not None and "batch_norm" in _op_name(node))
            activated = activated or not linear
            open_edges = {edge for edge in open_edges if edge[1] is not node} | {(node, user) for user in node.users}
            if any(source is not node for source, _ in open_edges):
                continue
            layer.site = node.name
            if activated:
                return
            layer.pre = node.name


_PRODUCERS = {"linear", "conv1d", "conv2d", "conv3d"}


def _op_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return node.op
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else getattr(node.target, "__name__", str(node.target))


def _is_tensor(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value))


def _number(value: Any) -> int:
    """A size with the batch set to one."""
    if isinstance(value, torch.SymInt):
        expression = value.node.expr
        return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
    return value


def _shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's value for a batch of one."""
    return tuple(_number(size) for size in node.meta["val"].shape)


def _along(values: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    """`values` (shape[axis],) laid along `axis` of `shape`, without taking memory for the rest."""
    return values.view([-1 if d == axis else 1 for d in range(len(shape))]).expand(shape)


def _broadcast(strand: Strand, shape: tuple[int, ...]) -> Strand:
    if strand.unit.shape == shape:
        return strand
    scale = None if strand.scale is None else strand.scale.broadcast_to(shape)
    return Strand(strand.layer, strand.unit.broadcast_to(shape), scale)


def _same(wire: RawWire, other: RawWire) -> bool:
    """True if two strands bring the same units the same way, so that their edges are one."""
    if wire.source != other.source or not np.array_equal(wire.columns, other.columns):
        return False
    if wire.scale_out is None or other.scale_out is None:
        return wire.scale_out is other.scale_out
    return torch.equal(wire.scale_out, other.scale_out)
