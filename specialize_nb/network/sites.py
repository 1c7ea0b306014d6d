"""Where the units of a layer act: after its normalisation and activation, as far as no one looks in between.

A plain module, not a notebook: one step of `wiring`.
"""

from __future__ import annotations

from torch import Tensor, fx

from specialize_nb.network.flow import Flow, RawLayer
from specialize_nb.network.operations import NORMS, PASSES, RELAYS, WEIGHTED, module_path, op_name, shape_of
from specialize_nb.network.program import Program
from specialize_nb.network.strands import Strand

__all__ = ["find_site", "norms_another"]


def find_site(
    layer: RawLayer,  # Changed in place
    index: int,  # Its place among the layers of `flow`
    base: Strand,  # Its units as the operation puts them out
    program: Program,  # That the layer is of
    flow: Flow,  # What was found so far
) -> None:
    """Move `layer.site` from its operation to its activation, and `layer.pre` to what comes just before.

    A node ends the way if every path from the operation passes through it: then a lesion there is a lesion for all
    consumers. Where the value is laid out anew before its activation, `layer.axis` follows.

    Parameters
    ----------
    layer : RawLayer
        Changed in place
    index : int
        Its place among the layers of `flow`
    base : Strand
        Its units as the operation puts them out
    program : Program
        That the layer is of
    flow : Flow
        What was found so far
    """
    node, last, axis = program.nodes[layer.node], layer.node, layer.axis
    open_edges, shape = {(node, user) for user in node.users}, base.unit.shape
    while open_edges:
        node = min(user for _, user in open_edges)
        strand = _alone(node, index, flow)
        if strand is None:
            return
        if relaid := strand is not base:
            if op_name(node) not in RELAYS or strand.scale is not None:
                return
            if (axis := strand.layout_axis) is None or shape_of(node)[axis] != layer.n_units:
                return
        if _adds_of_its_own(node, layer, program, axis) or norms_another(node, layer, program):
            return
        normalises = layer.scale_in is not None and op_name(node) in NORMS
        open_edges = {edge for edge in open_edges if edge[1] is not node} | {(node, user) for user in node.users}
        base = strand
        if any(source is not node for source, _ in open_edges):
            continue
        if isinstance(node.meta["val"], Tensor) and not node.meta["val"].is_floating_point():
            return  # a comparison is no answer of a unit
        if not (relaid or normalises or op_name(node) in PASSES or _is_bias(node, program)):
            layer.site, layer.pre, layer.axis = node.name, last, axis
            return
        if isinstance(node.meta["val"], Tensor):
            last = node.name
            if base.unit.shape == shape and axis == layer.axis:  # the same shape may be another order of the axes
                layer.site = layer.pre = last


def norms_another(
    node: fx.Node,  # That may be a normalisation
    layer: RawLayer,  # Whose units come to it
    program: Program,  # That both are of
) -> bool:
    """Is a residual stream normed outside the module whose sum it is? Then it ends before: that module's output is it.

    A sum that its own module norms, as in BERT, is the stream after that norm, which is what the module puts out.

    Parameters
    ----------
    node : fx.Node
        That may be a normalisation
    layer : RawLayer
        Whose units come to it
    program : Program
        That both are of

    Returns
    -------
    bool
    """
    if layer.op != "sum" or op_name(node) not in NORMS:
        return False
    own = module_path(program.nodes[layer.node])
    return not own or not f"{module_path(node)}.".startswith(f"{own}.")


def _alone(node: fx.Node, index: int, flow: Flow) -> Strand | None:
    """The strand of layer `index` in a tensor that holds no other."""
    strands = flow.strands[node.name]
    single = isinstance(node.meta.get("val"), Tensor) or op_name(node) in NORMS
    return strands[0] if single and len(strands) == 1 and strands[0].layer == index else None


def _added(node: fx.Node, program: Program) -> fx.Node | None:
    """A tensor, the same for all inputs, that a node adds."""
    given = [one for one in node.args if isinstance(one, fx.Node)] if op_name(node) in ("add", "sub") else []
    return next((one for one in given if _is_constant(one, program) and shape_of(one)), None)


def _is_constant(node: fx.Node, program: Program) -> bool:
    """The same for all inputs of as many examples, such as the encoding of a type that nobody gives."""
    return program.is_fixed(node.name) or program.is_sized(node.name)


def _is_bias(node: fx.Node, program: Program) -> bool:
    return _added(node, program) is not None


def _adds_of_its_own(node: fx.Node, layer: RawLayer, program: Program, axis: int) -> bool:
    """Is a tensor added that is no bias of the layer's units: another's, such as an encoding of positions?"""
    other = _added(node, program)
    if other is None:
        return False
    shape, made = shape_of(other), program.nodes[layer.node]
    place = axis - len(shape_of(node)) + len(shape)
    wide = [i for i, size in enumerate(shape) if size > 1 and i != place]
    biased = len(made.args) > 2 and isinstance(made.args[2], fx.Node) and layer.op in WEIGHTED
    return bool(wide) or biased or layer.op == "embedding"
