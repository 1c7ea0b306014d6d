"""A traced program made fast without changing what it computes: constants folded, batch norms too, memory used again.

A plain module, not a notebook: mechanism without a story. The lesion notebook shows what it is good for.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from specialize_nb.network.operations import NEW_VALUES, WEIGHTED, argument, batch_norm_factor, op_name, shape_at
from specialize_nb.network.program import Program, owns_its_memory

__all__ = ["FusedProgram", "aligned_linear", "fuse", "is_pooling", "peak"]

_FEW, _MANY = 16, 256  # places of a map, and channels of a convolution
_WIDE, _LINE = 2**12, 16  # outputs of a product, as those of a vocabulary; numbers of float32 in a line of the cache


class FusedProgram(Program):
    """A program whose parts write into memory that is read no more."""

    def polished(
        self,
        graph: fx.Graph,  # A part of the program, nobody else's
    ) -> fx.Graph:
        """A part as it is to run: writing over what is read no more.

        Parameters
        ----------
        graph : fx.Graph
            A part of the program, nobody else's

        Returns
        -------
        fx.Graph
        """
        _align(graph)
        _write_in_place(graph)
        return graph


def fuse(
    program: Program,  # Traced; it stays as it is
    keep: Iterable[str],  # Nodes that stay: where the program will be cut, or read
    *,
    dtype: torch.dtype | None = None,  # Of the weights of convolutions and products; None leaves them as they are
) -> FusedProgram:
    """The same program with fixed values computed once, and batch norms folded into the convolutions before them.

    Parameters
    ----------
    program : Program
        Traced; it stays as it is
    keep : Iterable[str]
        Nodes that stay: where the program will be cut, or read
    dtype : torch.dtype | None, default None
        Of the weights of convolutions and products; None leaves them as they are

    Returns
    -------
    FusedProgram
    """
    keep, root, graph = {*keep, *program.outputs}, nn.Module(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.root.graph.nodes:
        if node.op == "output":
            graph.output(fx.map_arg(node.args[0], copies.__getitem__))
        elif program.is_fixed(node.name):
            if any(not program.is_fixed(user.name) for user in node.users):
                copies[node] = _constant(root, graph, node.name, program.constant(node.name))
        elif (folded := _folded(program, node, keep)) is not None:
            copies[node] = _merged(root, graph, node, folded, copies, program)
        elif not _is_folded_away(program, node, keep):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    _lay_out(graph)
    if dtype is not None:
        _cast_weights(root, graph, dtype)
    fused = FusedProgram(fx.GraphModule(root, graph), program.keywords)
    fused.outputs, fused.labels = program.outputs, program.labels
    return fused


def _constant(root: nn.Module, graph: fx.Graph, name: str, value: Tensor) -> fx.Node:
    """A node that holds a fixed tensor; fixed for all inputs, so gradients stop here."""
    target = f"fixed_{name}"  # a node may be called like a method of modules: "to"
    root.register_buffer(target, value.detach(), persistent=False)
    node = graph.create_node("get_attr", target, name=name)
    node.meta["val"] = value
    return node


def _batch_norm_of(node: fx.Node, program: Program, keep: set[str]) -> fx.Node | None:
    """The batch norm that alone reads a convolution, if both can become one."""
    if op_name(node) not in WEIGHTED or len(node.users) != 1 or node.name in keep:
        return None
    norm = next(iter(node.users))
    rows = op_name(node) != "linear" or node.meta["val"].ndim == 2
    if op_name(norm) != "batch_norm" or norm.args[0] is not node or norm.args[5] or not rows:
        return None
    known = [*node.args[1:3], *norm.args[1:5]]
    fixed = all(one is None or (isinstance(one, fx.Node) and program.is_fixed(one.name)) for one in known)
    whole = isinstance(node.args[1], fx.Node) and all(isinstance(one, fx.Node) for one in norm.args[3:5])
    return norm if fixed and whole else None


def _is_folded_away(program: Program, node: fx.Node, keep: set[str]) -> bool:
    return _batch_norm_of(node, program, keep) is not None


def _folded(program: Program, node: fx.Node, keep: set[str]) -> tuple[fx.Node, Tensor, Tensor] | None:
    """For a batch norm that becomes part of the convolution it reads: that one, its new weight and bias."""
    source = node.args[0] if op_name(node) == "batch_norm" else None
    if not isinstance(source, fx.Node) or _batch_norm_of(source, program, keep) is not node:
        return None

    def known(one: fx.Node | None, default: float, like: Tensor) -> Tensor:
        return torch.full_like(like, default) if one is None else program.constant(one.name).double()

    weight = program.constant(source.args[1].name)
    mean, var = (program.constant(one.name).double() for one in node.args[3:5])
    scale = batch_norm_factor(var, node.args[7], known(node.args[1], 1.0, var))
    bias = argument(source, "bias", 2)
    shift = known(node.args[2], 0.0, var) + (known(bias, 0.0, var) - mean) * scale
    new = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
    return source, new.to(weight), shift.to(weight)


def _merged(root: nn.Module, graph: fx.Graph, node: fx.Node, folded: tuple, copies: dict, program: Program) -> fx.Node:
    """The convolution in the batch norm's place, under the batch norm's name."""
    source, *tensors = folded
    names = [_unused(f"{node.name}_{kind}", program.nodes) for kind in ("weight", "bias")]
    weight, bias = (_constant(root, graph, *pair) for pair in zip(names, tensors, strict=True))
    kwargs = {key: value for key, value in source.kwargs.items() if key not in ("weight", "bias")}
    args = (copies[source.args[0]], weight, bias, *source.args[3:])
    new = graph.create_node("call_function", source.target, args, kwargs, name=node.name)
    new.meta = dict(node.meta)
    return new


def _unused(name: str, taken: Container[str]) -> str:
    return _unused(name + "_", taken) if name in taken else name


def _cast_weights(root: nn.Module, graph: fx.Graph, dtype: torch.dtype) -> None:
    """Store the weights of convolutions and products in `dtype`; under autocast they are then used as they are."""
    weights = set()
    for node in graph.nodes:
        if op_name(node) in WEIGHTED:
            weights |= {one for one in node.args[1:3] if isinstance(one, fx.Node) and one.op == "get_attr"}
    for one in weights:
        value = getattr(root, one.target)
        if value.is_floating_point() and all(op_name(user) in WEIGHTED for user in one.users):
            setattr(root, one.target, value.to(dtype))


def _lay_out(graph: fx.Graph) -> None:
    """Let operations on maps read what they are fast with.

    Convolutions of many channels over few places get their channels first, measured up to three times as fast; a CPU
    pools maps whose channels lie last ten times as fast.
    """
    for node in list(graph.nodes):
        if op_name(node) == "conv2d":
            few = math.prod(node.meta["val"].shape[2:]) <= _FEW and node.meta["val"].shape[1] >= _MANY
            layout = torch.contiguous_format if few else None
        else:
            layout = torch.channels_last if is_pooling(node) else None
        if layout is None:
            continue
        with graph.inserting_before(node):
            new = graph.call_function(torch.ops.aten.contiguous.default, (node.args[0],), {"memory_format": layout})
        new.meta = dict(node.args[0].meta)
        node.args = (new, *node.args[1:])


def is_pooling(
    node: fx.Node,  # Of a program
) -> bool:
    """Does an operation pool windows of maps on a CPU?

    Parameters
    ----------
    node : fx.Node
        Of a program

    Returns
    -------
    bool
    """
    if op_name(node) not in ("max_pool2d", "avg_pool2d"):
        return False
    value = node.args[0].meta["val"]
    return value.ndim == 4 and value.device.type == "cpu"


def aligned_linear(
    x: Tensor,  # (..., k)
    weight: Tensor,  # (n, k)
    bias: Tensor | None = None,  # (n,)
) -> Tensor:  # (..., n), each row of it starting a line of the cache
    """`linear` for many outputs, the same to the last bit or nearly so; where n is odd, measured 1.4 times as fast.

    Without it the rows of a vocabulary's scores start anywhere in a line of the cache, and stores straddle two. It is
    plain `linear` for types and devices that gained nothing.

    Parameters
    ----------
    x : Tensor
        (..., k)
    weight : Tensor
        (n, k)
    bias : Tensor | None, default None
        (n,)

    Returns
    -------
    Tensor
        (..., n), each row of it starting a line of the cache
    """
    n = len(weight)
    plain = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not plain or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    found = x.new_empty(len(rows), n + -n % _LINE)[:, :n]
    if bias is None:
        torch.mm(rows, weight.t(), out=found)
    else:
        torch.addmm(bias, rows, weight.t(), out=found)
    return found.unflatten(0, x.shape[:-1])


def _align(graph: fx.Graph) -> None:
    """Let products of very many outputs put them where rows start a line of the cache."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if op_name(node) == "linear" and isinstance(value, Tensor) and value.ndim > 1:
            if value.shape[-1] >= _WIDE and value.shape[-1] % _LINE:
                node.target = aligned_linear


def _write_in_place(graph: fx.Graph) -> None:
    """Let operations number by number overwrite a value that only they read."""
    for node in graph.nodes:
        if (twin := _twin(node)) is not None:
            node.target = twin


def _twin(node: fx.Node) -> torch._ops.OpOverload | None:
    """The operation that writes its result over its first argument, if nobody else needs that."""
    target = node.target
    if node.op != "call_function" or torch.Tag.pointwise not in getattr(target, "tags", ()) or not node.args:
        return None
    source = node.args[0]
    packet, overload = target._schema.name.removeprefix("aten::"), target._overloadname
    twin = getattr(getattr(torch.ops.aten, packet + "_", None), overload, None)
    if twin is None or not isinstance(source, fx.Node) or source.op != "call_function" or len(source.users) > 1:
        return None
    if node.all_input_nodes.count(source) != 1 or not owns_its_memory(source) or not _same(source, node):
        return None
    return twin if op_name(source) in NEW_VALUES or not _is_made_of_others(source.target) else None


def _is_made_of_others(operation: torch._ops.OpOverload) -> bool:
    return operation.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _same(a: fx.Node, b: fx.Node) -> bool:
    """Do two values have one shape and one type?"""
    one, other = a.meta.get("val"), b.meta.get("val")
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.dtype != other.dtype:
        return False
    return one.is_floating_point() and all(shape_at(one, n) == shape_at(other, n) for n in (2, 3))


def peak(
    program: Program,  # Traced, or fused
    inputs: Sequence[str],  # Nodes whose values are given
    outputs: Sequence[str],  # Nodes whose values are wanted
) -> int:
    """How many numbers does the largest value of a part have for one example?

    Parameters
    ----------
    program : Program
        Traced, or fused
    inputs : Sequence[str]
        Nodes whose values are given
    outputs : Sequence[str]
        Nodes whose values are wanted

    Returns
    -------
    int
    """
    names = program.needed(inputs, outputs)
    values = [program.nodes[name].meta.get("val") for name in names if not program.is_fixed(name)]
    return max((math.prod(shape_at(value, 1)) for value in values if isinstance(value, Tensor)), default=1)
