"""Recurrent modules in a traced program: the hidden state as one value, for all steps, that can be changed.

A plain module, not a notebook: mechanism without a story. A fused operation computes the states of a whole sequence. A
copy of them is what others may read and change; `settle` then runs the recurrence again, in which the next step reads
what was changed, and hands on what came out.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from specialize_nb.network.operations import is_free, module_path, op_name

__all__ = ["SEQUENCES", "State", "name_states", "runs_across", "settle"]

SEQUENCES = ("lstm", "gru", "rnn_tanh", "rnn_relu")  # operations that run through a whole sequence


class State(NamedTuple):
    """The hidden state of one recurrent layer, in one direction.

    Attributes
    ----------
    name : str
        Of the module; of several layers or directions with torch's own ending, as in 'lstm.l1_reverse'
    op : str
        'lstm', 'gru', 'rnn_tanh' or 'rnn_relu'
    source : str
        Node that holds the sequence it reads
    first : str
        Node that holds the state before the first step
    weights : tuple[str, ...]
        Nodes that hold the weights: for the input, for the state, and to project it, if it is
    """

    name: str  # Of the module; of several layers or directions with torch's own ending, as in 'lstm.l1_reverse'
    op: str  # 'lstm', 'gru', 'rnn_tanh' or 'rnn_relu'
    source: str  # Node that holds the sequence it reads
    first: str  # Node that holds the state before the first step
    weights: tuple[str, ...]  # Nodes that hold the weights: for the input, for the state, and to project it, if it is


def settle(
    states: Tensor,  # (n, steps, n_units) or, steps first, (steps, n, n_units): maybe changed
    before: Tensor,  # The same as they were
    source: Tensor,  # (n, steps, n_inputs) or steps first: the sequence
    first: tuple[Tensor, ...],  # (1, n, n_units) each: state before the first step; of an LSTM the cell too
    weights: Sequence[Tensor],  # For input and state; two biases, if there are; to project, if it does
    op: str,  # 'lstm', 'gru', 'rnn_tanh' or 'rnn_relu'
    examples_first: bool,  # Is the first axis that of examples?
    backwards: bool,  # Does it run from the last step to the first?
) -> tuple[Tensor, Tensor, Tensor]:  # All states, (1, n, n_units) the last one, and (1, n, n_cells) the last cell
    """Run a recurrence in which some units have been given other values: every step reads what the one before has.

    A unit counts as changed in an example if it was at any step; then it has what it was given at all steps.

    Parameters
    ----------
    states : Tensor
        (n, steps, n_units) or, steps first, (steps, n, n_units): maybe changed
    before : Tensor
        The same as they were
    source : Tensor
        (n, steps, n_inputs) or steps first: the sequence
    first : tuple[Tensor, ...]
        (1, n, n_units) each: state before the first step; of an LSTM the cell too
    weights : Sequence[Tensor]
        For input and state; two biases, if there are; to project, if it does
    op : str
        'lstm', 'gru', 'rnn_tanh' or 'rnn_relu'
    examples_first : bool
        Is the first axis that of examples?
    backwards : bool
        Does it run from the last step to the first?

    Returns
    -------
    tuple[Tensor, Tensor, Tensor]
        All states, (1, n, n_units) the last one, and (1, n, n_cells) the last cell
    """
    if has_torch_function((states,)):  # a program that is written down again, as when it is sent to another process
        given = (states, before, source, first, weights, op, examples_first, backwards)
        return handle_torch_function(settle, (states,), *given)
    time = 1 if examples_first else 0
    changed, moved = (states != before).any(time), states - before
    projected = len(weights) in (3, 5)
    biases = list(weights[2:4]) if len(weights) > 3 else [None, None]
    projection = weights[-1] if projected else None
    hidden, cell = first[0].squeeze(0), first[-1].squeeze(0)
    into, found = F.linear(source, weights[0], biases[0]), {}
    order = range(source.shape[time])
    for step in reversed(order) if backwards else order:
        at = into.select(time, step)
        hidden, cell = _STEPS[op](at, F.linear(hidden, weights[1], biases[1]), hidden, cell, projection)
        hidden = torch.where(changed, states.select(time, step), hidden + moved.select(time, step))
        found[step] = hidden
    return torch.stack([found[step] for step in order], time), hidden.unsqueeze(0), cell.unsqueeze(0)


def _lstm(at: Tensor, back: Tensor, hidden: Tensor, cell: Tensor, projection: Tensor | None) -> tuple[Tensor, Tensor]:
    into, keep, new, out = (at + back).chunk(4, -1)
    cell = keep.sigmoid() * cell + into.sigmoid() * new.tanh()
    hidden = out.sigmoid() * cell.tanh()
    return hidden if projection is None else F.linear(hidden, projection), cell


def _gru(at: Tensor, back: Tensor, hidden: Tensor, cell: Tensor, projection: Tensor | None) -> tuple[Tensor, Tensor]:
    (reset, keep, new), (reset_back, keep_back, new_back) = at.chunk(3, -1), back.chunk(3, -1)
    new = (new + (reset + reset_back).sigmoid() * new_back).tanh()
    return (hidden - new) * (keep + keep_back).sigmoid() + new, cell


_STEPS = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": lambda at, back, hidden, cell, projection: ((at + back).tanh(), cell),
    "rnn_relu": lambda at, back, hidden, cell, projection: ((at + back).relu(), cell),
}


def name_states(
    root: fx.GraphModule,  # Changed in place
) -> dict[str, State]:  # By the node that holds the states of a sequence
    """Write every recurrent operation of a program as one for each layer and direction, with a value for its states.

    One that runs along the examples, as where `batch_first` was forgotten, is left as it is.

    Parameters
    ----------
    root : fx.GraphModule
        Changed in place

    Returns
    -------
    dict[str, State]
        By the node that holds the states of a sequence
    """
    found: dict[str, State] = {}
    for node in list(root.graph.nodes):
        if op_name(node) in SEQUENCES and not runs_across(node):
            with root.graph.inserting_before(node):
                found |= _Writer(root.graph, node).write()
    if found:
        root.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        root.graph.lint()
        root.recompile()
    return found


def runs_across(
    node: fx.Node,  # A recurrent operation
) -> bool:
    """Does a recurrent operation run along the examples of a batch, or through sequences of its own making?

    Parameters
    ----------
    node : fx.Node
        A recurrent operation

    Returns
    -------
    bool
    """
    value = node.args[0].meta["val"]
    known = isinstance(node.args[-1], bool) and value.ndim == 3
    return not known or is_free(value.shape[1 if node.args[-1] else 0])


class _Writer:
    """Writes one recurrent operation anew."""

    def __init__(self, graph: fx.Graph, node: fx.Node):
        self.graph, self.node, self.op = graph, node, op_name(node)
        self.source, first, self.weights, self.biased, self.n_layers, *_, both, self.examples_first = node.args
        self.first = list(first) if self.op == "lstm" else [first]
        self.directions = ("", "_reverse") if both else ("",)
        self.each = len(self.weights) // (self.n_layers * len(self.directions))
        self.ends: list[tuple[fx.Node, fx.Node]] = []

    def write(self) -> dict[str, State]:
        found, path = {}, module_path(self.node) or self.op
        for layer in range(self.n_layers):
            parts = []
            for direction in self.directions:
                alone = self.n_layers * len(self.directions) == 1
                name = path if alone else f"{path}.l{layer}{direction}"
                states, settled, state = self._layer(name, bool(direction))
                found[states.name] = state
                parts.append(self._call(operator.getitem, settled, 0))
                self.ends.append(tuple(self._call(operator.getitem, settled, place) for place in (1, 2)))
            self.source = parts[0] if len(parts) == 1 else self._call(torch.ops.aten.cat.default, parts, -1)
        lasts = [self._call(torch.ops.aten.cat.default, list(each), 0) for each in zip(*self.ends, strict=True)]
        for user in list(self.node.users):
            user.replace_all_uses_with([self.source, *lasts][user.args[1]])
            self.graph.erase_node(user)
        self.graph.erase_node(self.node)
        return found

    def _layer(self, name: str, backwards: bool) -> tuple[fx.Node, fx.Node, State]:
        """One layer in one direction: its states, what they settle to, and what it is."""
        aten, place, time = torch.ops.aten, len(self.ends), 1 if self.examples_first else 0
        weights = list(self.weights[place * self.each : (place + 1) * self.each])
        first = [self._first(one, place) for one in self.first]
        source = self._call(aten.flip.default, self.source, [time]) if backwards else self.source
        given = first if self.op == "lstm" else first[0]
        options = (self.biased, 1, 0.0, False, False, self.examples_first)
        shape, (n_units, n_cells) = (
            source.meta["val"].shape,
            [one.meta["val"].shape[-1] for one in (first[0], first[-1])],
        )
        n = shape[0 if self.examples_first else 1]
        new = source.meta["val"].new_empty
        values = new((*shape[:2], n_units)), new((1, n, n_units)), new((1, n, n_cells))
        whole = self._call(self.node.target, source, given, weights, *options, value=values)
        before = self._call(operator.getitem, whole, 0)
        before = self._call(aten.flip.default, before, [time]) if backwards else before
        states = self._call(aten.clone.default, before)
        fixed = (weights, self.op, self.examples_first, backwards)
        settled = self._call(settle, states, before, self.source, tuple(first), *fixed, value=values)
        named = (weights[0], weights[1], *weights[4 if self.biased else 2 :])
        told = State(name, self.op, self.source.name, first[0].name, tuple(one.name for one in named))
        return states, settled, told

    def _first(self, given: fx.Node, place: int) -> fx.Node:
        """The state of one layer before the first step; zeros are made of the sequence, without a batch size."""
        aten = torch.ops.aten
        if op_name(given) != "zeros":
            return self._call(aten.slice.Tensor, given, 0, place, place + 1)
        one = self._call(aten.select.int, self.source, 1 if self.examples_first else 0, 0)
        one = self._call(aten.zeros_like.default, self._call(aten.slice.Tensor, one, 1, 0, 1))
        wide = self._call(aten.expand.default, one, [-1, given.meta["val"].shape[-1]])
        return self._call(aten.unsqueeze.default, wide, 0)

    def _call(self, target: Any, *args: Any, value: Any = None) -> fx.Node:
        """A call with all that a traced node has: where it comes from, and a value without numbers."""
        node = self.graph.call_function(target, args)
        node.meta |= {key: one for key, one in self.node.meta.items() if key in ("nn_module_stack", "stack_trace")}
        if value is None:
            with self.node.args[0].meta["val"].fake_mode, torch.no_grad():
                value = target(*fx.map_arg(args, lambda one: one.meta["val"]))
        node.meta["val"] = value
        return node
