"""One traced program of a model: an ATen graph without in-place operations, that can be cut and rejoined at any node.

A plain module, not a notebook: mechanism without a story. The units notebook shows what it is good for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn

__all__ = ["Program", "export_program"]

# Operations that may hand back their input, or a view of it, without saying so in their schema.
_MAY_ALIAS = {"reshape", "flatten", "contiguous", "dropout", "to", "type_as", "expand_as", "view_as", "feature_dropout"}


class Program:
    """A model as one graph: run from any of its nodes to any others.

    `graph_module` owns the parameters (the model's own tensors, not copies) and the graph.
    """

    def __init__(self, graph_module: fx.GraphModule):
        self.root = graph_module
        self.nodes = {node.name: node for node in graph_module.graph.nodes}
        self.inputs = tuple(node.name for node in graph_module.graph.nodes if node.op == "placeholder")
        output = next(node for node in graph_module.graph.nodes if node.op == "output")
        self.outputs = tuple(node.name for node in output.all_input_nodes)
        self._extracted: dict[tuple, fx.GraphModule] = {}

    def extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> fx.GraphModule:
        """The part of the program that computes nodes `outputs` from given values of nodes `inputs`.

        Raises: `ValueError` if it would still need an input of the whole program.
        """
        key = (tuple(inputs), tuple(outputs))
        if key not in self._extracted:
            self._extracted[key] = self._extract(*key)
        return self._extracted[key]

    def _extract(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> fx.GraphModule:
        needed = self._needed(inputs, outputs)
        graph, copies = fx.Graph(), {}
        for name in inputs:
            copies[self.nodes[name]] = graph.placeholder(name)
        for node in self.root.graph.nodes:
            if node.name not in needed or node in copies:
                continue
            if node.op == "placeholder":
                raise ValueError(
                    f"nodes {list(outputs)} also need the program's input {node.name!r}: add it to `inputs`"
                )
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[self.nodes[name]] for name in outputs))
        return fx.GraphModule(self.root, graph)

    def _needed(self, inputs: Sequence[str], outputs: Sequence[str]) -> set[str]:
        stack, needed = list(outputs), set()
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                if name not in inputs:
                    stack += [node.name for node in self.nodes[name].all_input_nodes]
        return needed

    def dependents(self, site: str) -> set[str]:
        """Names of all nodes whose value depends on node `site`, itself included."""
        found = {site}
        for node in self.root.graph.nodes:
            if any(source.name in found for source in node.all_input_nodes):
                found.add(node.name)
        return found

    def boundary(self, site: str, outputs: Sequence[str]) -> tuple[str, ...]:
        """The values to keep so that `outputs` can be computed again after `site` has changed: `site` first."""
        later = self.dependents(site) & self._needed([site], outputs)
        sources = {source.name for name in later - {site} for source in self.nodes[name].all_input_nodes}
        kept = [name for name in self.nodes if name in sources - later and self.nodes[name].op != "get_attr"]
        return (site, *kept)

    def repeat(self, name: str, value: Any, times: int) -> Any:
        """The value of node `name` for a batch repeated `times` over."""
        known = self.nodes[name].meta["val"]
        if not isinstance(known, Tensor):
            if not _is_free(known):
                return value
            expression, (size,) = known.node.expr, known.node.expr.free_symbols
            batch = next(iter(sympy.solveset(expression - value, size)))
            return int(expression.subs(size, batch * times))
        if value.ndim == 0 or not _is_free(known.shape[0]):
            return value
        return value.repeat(times, *[1] * (value.ndim - 1))

    def attribute(self, name: str) -> Tensor:
        """The parameter, buffer or constant that `get_attr` node `name` reads."""
        return operator.attrgetter(self.nodes[name].target)(self.root)


def export_program(model: nn.Module, example: tuple[Tensor, ...]) -> Program:
    """Trace `model` on `example` inputs, the batch dimension left free.

    Raises: `ValueError` if torch cannot export the model, or its code fixes the batch size.
    """
    example = tuple(x if x.shape[0] > 1 else x.expand(2, *x.shape[1:]).contiguous() for x in example)
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in example)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
            if not _functionalize(program.graph):
                program = program.run_decompositions({})
    except Exception as error:  # export raises many kinds; the user needs one
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"torch.export could not trace {type(model).__name__}: {reason[0] if reason else type(error).__name__}. "
            "Data-dependent Python control flow is the usual cause"
        ) from error
    module = program.module()
    for node in list(module.graph.nodes):  # run-time guards on shapes: the engine feeds batches of its own
        if node.op == "call_module":
            module.graph.erase_node(node)
    module.recompile()
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    if not all(_is_free(node.meta["val"].shape[0]) for node in inputs):
        raise ValueError(
            f"the code of {type(model).__name__} fixes the batch size at {example[0].shape[0]}: "
            "compute shapes from `x.shape`, not from constants"
        )
    return Program(module)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch logs and prints while it exports from the screen: what matters of it is in the error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _is_free(size: int | torch.SymInt) -> bool:
    """True if a size varies with the batch; a symbol that the model's code has pinned to a number does not."""
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols)


def _functionalize(graph: fx.Graph) -> bool:
    """Replace in-place operations by their pure twins where that is plainly safe; False if one is not."""
    for node in list(graph.nodes):
        if node.op != "call_function" or not getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            continue
        packet, overload = str(node.target).removeprefix("aten.").rsplit(".", 1)
        pure = getattr(getattr(torch.ops.aten, packet.removesuffix("_"), None), overload, None)
        target = node.args[0]
        read_later = any(user > node for user in target.users)
        if pure is None or not packet.endswith("_") or read_later or not _owns_its_memory(target):
            return False
        node.target = pure
    return True


def _owns_its_memory(node: fx.Node) -> bool:
    """True if no other value shares the memory of `node`."""
    return not _may_alias(node) and not any(_may_alias(user) for user in node.users)


def _may_alias(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.name.removeprefix("aten::") in _MAY_ALIAS:
        return True
    return not schema.is_mutable and any(value.alias_info is not None for value in schema.returns)
