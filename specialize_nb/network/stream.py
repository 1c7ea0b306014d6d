"""What a direction of the residual stream adds to the scores, with nothing else changed: the direct path.

A plain module, not a notebook: mechanism without a story. In a transformer every block adds to one stream, and a norm
and one matrix read the scores off it. A unit that writes into the stream has a direction there, and so scores that it
raises by itself. What later blocks make of it is left out: that is what 'direct' means. The norm's divisor is held
still, at its usual size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from specialize_nb.base.devices import to_model
from specialize_nb.network.operations import op_name
from specialize_nb.network.program import Program
from specialize_nb.network.subject import Subject
from specialize_nb.network.units import Layer, Wire

__all__ = ["direct_scores"]

_PLAIN = {"dropout", "reshape", "view", "_unsafe_view", "to", "_to_copy", "clone", "contiguous", "alias", "expand"}
_FIXED = {"mul", "div", "add"}  # with what no input changes, on the way into the stream
_MIXED = {"scaled_dot_product_attention", "softmax", "_softmax", "bmm", "matmul", "baddbmm", "einsum"}
_NORMS = {"layer_norm", "native_layer_norm", "rms_norm", "rsqrt", "batch_norm", "group_norm"}
_OFF = 1e-3  # by which what is linear may differ from place to place, of its largest number


def direct_scores(
    subject: Subject,  # A network whose blocks add to one stream, from which the scores are read
    layer: str,  # Whose units write into the stream
    sizes: np.ndarray,  # (n_units,) how far each unit moves
) -> np.ndarray:  # (n_scores,) float64: by how much the scores of a position rise
    """What do units of a layer add to the scores by the direct path, if they move so far?

    Parameters
    ----------
    subject : Subject
        A network whose blocks add to one stream, from which the scores are read
    layer : str
        Whose units write into the stream
    sizes : np.ndarray
        (n_units,) how far each unit moves

    Returns
    -------
    np.ndarray
        (n_scores,) float64: by how much the scores of a position rise

    Raises: `KeyError` for a layer the network does not have; `ValueError` where there is no such path; it says why.
    Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits", on direct paths.
    """
    stream = subject.once("residual stream", lambda: _found(subject))
    if isinstance(stream, str):
        raise ValueError(f"{subject.network.model} has no direct path: {stream}")
    own = subject.network.layer(layer)
    writer, moved = _written(subject, stream, own, torch.as_tensor(np.asarray(sizes, dtype=np.float64)))
    return stream.scores(stream.into(writer, moved)).double().cpu().numpy()


@dataclass(frozen=True)
class _Stream:
    """Where the blocks of a network add up, and the values of a few examples there."""

    program: Program
    inputs: tuple[Tensor, ...]
    end: str  # The last sum
    output: str  # Node of the scores
    branches: dict[str, str]  # What is added, without what only lays it out -> that operand as it is added
    value: Tensor  # (n, positions, width) of the last sum

    def into(self, node: str, moved: Tensor) -> Tensor:
        """(width,) how far the stream moves if the value of a node that is added moves so far."""
        if node == self.branches.get(node, self.end):
            return moved
        run = self.program.extract([node, *self.program.inputs], [self.branches[node]])
        value = self.program.extract(self.program.inputs, [node])(*self.inputs)[0].detach()
        tangent = moved.to(value).expand_as(value).contiguous()
        found = _moved(lambda one: run(one, *self.inputs)[0], value, tangent)
        return _alike(found.flatten(0, -2), "what is added to the stream is more than a linear map of the units")

    def scores(self, moved: Tensor) -> Tensor:
        """(n_scores,) how far the scores move if the stream does, the divisor of the last norm held still."""
        moved = moved.to(self.value)
        probe = self._apart(moved)
        tangent = moved.expand_as(probe).contiguous()
        found = _moved(self._read, probe, tangent)
        found = self.program.examples_first(self.output, found)
        return _alike(found.flatten(0, -2), _MORE)

    def _read(self, value: Tensor) -> Tensor:
        return self.program.extract([self.end, *self.program.inputs], [self.output])(value, *self.inputs)[0]

    def _apart(self, moved: Tensor) -> Tensor:
        """Values at right angles to a direction, so that no norm's divisor moves with it, and of the usual size."""
        values = self.value.double()
        shifted = self._read(self.value + self.value.abs().mean())
        centred = _near(self._read(self.value), shifted)
        size = (values - values.mean(-1, keepdim=True)) if centred else values
        size = size.norm(dim=-1).median()
        axes = torch.stack([torch.ones_like(moved), moved]).double() if centred else moved.double()[None]
        basis = torch.linalg.svd(axes, full_matrices=False)[2]
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(values.device)
        probe = probe - probe @ basis.T @ basis
        return (probe / probe.norm(dim=-1, keepdim=True) * size).to(self.value)


_MORE = "between the residual stream and the scores stands more than a norm and a linear map"


def _moved(function: Callable[[Tensor], Tensor], value: Tensor, tangent: Tensor) -> Tensor:
    """How far what a function gives moves, if its input does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's own, of its rules for forward derivatives
        return torch.func.jvp(function, (value,), (tangent,))[1]


def _near(one: Tensor, other: Tensor) -> bool:
    one, other = one.detach(), other.detach()
    return float((one - other).abs().max()) <= _OFF * float(one.abs().max())


def _alike(rows: Tensor, why: str) -> Tensor:
    """The first of rows that are all the same."""
    if not _near(rows, rows[:1].expand_as(rows)):
        raise ValueError(f"there is no direct path: {why}")
    return rows[0].detach()


@torch.no_grad()
def _found(subject: Subject) -> _Stream | str:
    """The residual stream, or why there is none."""
    program = subject.network.program
    if not isinstance(program, Program):
        return "it could not be exported, so what its layers write is not known"
    output = subject.scores_node.node
    needed = program.needed((), [output])
    sums = [name for name, node in program.nodes.items() if name in needed and _is_sum(program, node)]
    if not sums:
        return "its blocks do not add to a residual stream"
    inputs = program.arguments(to_model(subject.data.example, subject.model))
    (value,) = program.extract(program.inputs, [sums[-1]])(*inputs)
    return _Stream(program, inputs, sums[-1], output, _branches(program, sums[-1]), value)


def _is_sum(program: Program, node: fx.Node) -> bool:
    """Are values of examples added to each other, at positions?"""
    read = [one for one in node.all_input_nodes if program.reads_inputs(one.name)]
    value = node.meta.get("val")
    return op_name(node) == "add" and len(read) == 2 and isinstance(value, Tensor) and value.ndim == 3


def _branches(program: Program, end: str) -> dict[str, str]:
    found, stack = {}, [program.nodes[end]]
    while stack:
        for operand in stack.pop().all_input_nodes:
            root = _root(program, operand)
            if _is_sum(program, root):
                stack.append(root)
                found.setdefault(root.name, root.name)
            else:
                found.setdefault(root.name, operand.name)
    return found


def _root(program: Program, node: fx.Node) -> fx.Node:
    """Where a value comes from, before it was laid out anew, or met what no input changes, such as places."""
    while op_name(node) in _PLAIN | _FIXED:
        read = [one for one in node.all_input_nodes if program.reads_inputs(one.name)]
        if len(read) != 1:
            return node
        node = read[0]
    return node


def _written(subject: Subject, stream: _Stream, layer: Layer, sizes: Tensor) -> tuple[str, Tensor]:
    """The node through which units of a layer are added to the stream, and how far it moves."""
    if layer.unit == "head":
        raise _without(layer, "a head writes as many directions as it has numbers")
    if layer.site in (*stream.branches, stream.end):
        return layer.site, sizes
    for wire in subject.network.wires:
        target = subject.network.layer(wire.target)
        if wire.source != layer.name or target.site not in stream.branches or not wire.parameter:
            continue
        if why := _hindered(stream.program, layer, target, wire):
            raise _without(layer, why)
        return target.site, _through(wire, sizes, target.n_units)
    raise _without(layer, "its units write neither into the residual stream nor into what is added to it")


def _without(layer: Layer, why: str) -> ValueError:
    return ValueError(f"layer {layer.name!r} has no direct path: {why}")


def _hindered(program: Program, layer: Layer, target: Layer, wire: Wire) -> str:
    """Why a layer's units have no direction of their own in what reads them; '' if they have."""
    between = program.dependents(layer.site) & program.needed([layer.site], [target.pre])
    names = {op_name(program.nodes[name]) for name in between - {layer.site}}
    if names & _MIXED:
        return "its units act through attention"
    if names & _NORMS:
        return "what it writes is normed first"
    return "" if wire.weight.shape[2] == 1 else "what reads it looks at several positions"


def _through(wire: Wire, sizes: Tensor, n_units: int) -> Tensor:
    """(n_units,) how far the units of the target move."""
    weight = wire.matrix(wire.weight.detach())[:, :, 0].double().cpu()
    columns = torch.zeros(weight.shape[1], dtype=torch.float64)
    for column, unit in _pairs(wire.columns):
        columns[column] = sizes[unit]
    moved = torch.zeros(n_units, dtype=torch.float64)
    for row, unit in _pairs(wire.rows):
        moved[unit] += (weight @ columns)[row]
    return moved


def _pairs(both: Any) -> Iterator[tuple[int, int]]:
    return zip(both[0].tolist(), both[1].tolist(), strict=True)
