"""One traced program of a model: an ATen graph without in-place operations, that can be cut and rejoined at any node.

A plain module, not a notebook: mechanism without a story. The units notebook shows what it is good for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import sympy
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from specialize_nb.base.numbers import same_numbers
from specialize_nb.base.seeds import seeded
from specialize_nb.network.lookups import check_lookup
from specialize_nb.network.operations import (
    CONSTANTS,
    MAY_ALIAS,
    MOVES,
    RECURRENT,
    is_free,
    is_multiple,
    op_name,
    shape_at,
    size_at,
)
from specialize_nb.network.recurrence import SEQUENCES, State, name_states, runs_across
from specialize_nb.network.refusals import why_fixed, why_refused
from specialize_nb.network.state import as_found

__all__ = ["Layout", "Program", "export_program", "repeatable", "says_the_same"]


class Layout(NamedTuple):
    """Where the examples of a batch lie in a value: `axis` counts (outer, example, inner), row by row.

    Attributes
    ----------
    axis : int | None, default None
        None: the value does not depend on the batch size
    outer : int, default 1
        Size of what is counted more slowly than the examples, at least 1
    inner : int, default 1
        Size of what is counted faster, at least 1
    """

    axis: int | None = None  # None: the value does not depend on the batch size
    outer: int = 1  # Size of what is counted more slowly than the examples, at least 1
    inner: int = 1  # Size of what is counted faster, at least 1


def examples_first(
    value: Tensor,  # Of any shape
    layout: Layout,  # Where its examples lie
) -> Tensor:  # (n, ...)
    """A value with its examples along axis 0; what else lay on their axis follows in its place.

    Parameters
    ----------
    value : Tensor
        Of any shape
    layout : Layout
        Where its examples lie

    Returns
    -------
    Tensor
        (n, ...)
    """
    if layout.axis is None or layout == Layout(0):
        return value
    axis, n = layout.axis, value.shape[layout.axis] // (layout.outer * layout.inner)
    value = value.unflatten(axis, (layout.outer, n, layout.inner)).movedim(axis + 1, 0)
    value = value.flatten(axis + 1, axis + 2)
    return value.squeeze(axis + 1) if layout.outer * layout.inner == 1 else value


def examples_back(
    value: Tensor,  # (n, ...), from `examples_first`
    layout: Layout,  # Where its examples are to lie
) -> Tensor:
    """The inverse of `examples_first`.

    Parameters
    ----------
    value : Tensor
        (n, ...), from `examples_first`
    layout : Layout
        Where its examples are to lie

    Returns
    -------
    Tensor
    """
    if layout.axis is None or layout == Layout(0):
        return value
    axis = layout.axis
    value = value if layout.outer * layout.inner > 1 else value.unsqueeze(axis + 1)
    value = value.unflatten(axis + 1, (layout.outer, layout.inner)).movedim(0, axis + 1)
    return value.flatten(axis, axis + 2)


class Program:
    """A model as one graph: run from any of its nodes to any others.

    `root` owns the parameters (the model's own tensors, not copies) and the graph.

    Parameters
    ----------
    root : fx.GraphModule
    keywords : Sequence[str], default ()
    labels : Sequence[str], default ()
    states : Mapping[str, State] | None, default None
    """

    any_batch = True  # May lesions be stacked along the batch?

    def __init__(
        self,
        root: fx.GraphModule,
        keywords: Sequence[str] = (),
        labels: Sequence[str] = (),
        states: Mapping[str, State] | None = None,
    ):
        self.root, self.states = root, dict(states or {})  # Nodes that hold the states of a recurrent layer
        self.nodes = {node.name: node for node in root.graph.nodes}
        self.inputs = tuple(node.name for node in root.graph.nodes if node.op == "placeholder")
        output = next(node for node in root.graph.nodes if node.op == "output")
        leaves = pytree.tree_leaves(output.args[0])
        labels = labels if len(labels) == len(leaves) else [""] * len(leaves)
        named = [(leaf.name, label) for leaf, label in zip(leaves, labels, strict=True) if _is_value(leaf)]
        self.outputs, self.labels = (tuple(part) for part in zip(*named, strict=True)) if named else ((), ())
        self.keywords = tuple(keywords)  # Names of the inputs, if they are given by name
        self._extracted: dict[tuple, fx.GraphModule] = {}
        self._constants: dict[str, Tensor] = {}
        self._fixed = self._find_fixed()
        self.layouts, self.unclear = _layouts(root.graph)  # And nodes whose rows are not known to be the examples'

    def _holds_tensor(self, node: fx.Node) -> bool:
        return node.op == "get_attr" and isinstance(operator.attrgetter(node.target)(self.root), Tensor)

    def _find_fixed(self) -> set[str]:
        fixed: set[str] = set()
        for node in self.root.graph.nodes:
            leaves = pytree.tree_leaves(node.meta.get("val"))
            tensors = bool(leaves) and all(isinstance(leaf, Tensor) for leaf in leaves)
            made = self._holds_tensor(node) or (node.op == "call_function" and tensors)
            if made and not _is_random(node) and all(source.name in fixed for source in node.all_input_nodes):
                fixed.add(node.name)
        return fixed

    @property
    def state(self) -> set[str]:
        """Names of all parameters and buffers."""
        return {name for part in (self.root.named_parameters(), self.root.named_buffers()) for name, _ in part}

    @property
    def matrices(self) -> set[str]:
        """Names of all parameters with two axes or more."""
        return {name for name, one in self.root.named_parameters() if one.ndim > 1}

    def take_buffers(self, model: nn.Module) -> None:
        """Go on with the buffers that the model has now: `model.double()` and `model.to(device)` make new ones."""
        own = dict(model.named_buffers(remove_duplicate=False))
        old = {name: one for name, one in self.root.named_buffers() if name in own and own[name] is not one}
        for name in old:
            owner, _, last = name.rpartition(".")
            self.root.get_submodule(owner)._buffers[last] = own[name]
        if old:
            self._extracted.clear()
            self._constants.clear()

    @property
    def random(self) -> tuple[str, ...]:
        """Nodes that draw at random, in the order they run: two passes differ."""
        return tuple(name for name, node in self.nodes.items() if _is_random(node))

    def drawing(self, tensors: Sequence[Tensor]) -> AbstractContextManager:
        """Inside the block a program that draws at random draws the same for the same inputs of a batch.

        Global generators stay as they are.
        """
        return repeatable(tensors) if self.random else contextlib.nullcontext()

    def is_fixed(self, name: str) -> bool:
        """True if node `name` is the same for all inputs: a parameter, or made of such."""
        return name in self._fixed

    @torch.no_grad()
    def constant(self, name: str) -> Tensor:
        """The value of a node that is the same for all inputs."""
        if name not in self._constants:
            node = self.nodes[name]
            direct = node.op == "get_attr"
            value = operator.attrgetter(node.target)(self.root) if direct else self.extract((), [name])()[0]
            self._constants[name] = value.detach()
        return self._constants[name]

    def owners(self, name: str) -> list[str]:
        """Dotted names of the parameters and buffers that a fixed node is made of, the largest first."""
        nodes = [self.nodes[one] for one in self.needed((), [name]) if self.nodes[one].op == "get_attr"]
        order = {one: place for place, one in enumerate(self.nodes)}
        nodes.sort(key=lambda node: (-self.constant(node.name).numel(), order[node.name]))
        return [str(node.target) for node in nodes]

    def arguments(self, x: Any) -> tuple[Tensor, ...]:
        """The tensors of one call's inputs, in the order of `inputs`."""
        if self.keywords and isinstance(x, Mapping):
            if missing := [name for name in self.keywords if name not in x]:
                raise KeyError(f"inputs {missing} are missing: the model was traced with {list(self.keywords)}")
            x = {name: x[name] for name in self.keywords}
        return tuple(leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor))

    def extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> fx.GraphModule:
        """The part of the program that computes nodes `outputs` from given values of nodes `inputs`.

        Raises: `ValueError` if it would still need an input of the whole program.
        """
        key = (tuple(inputs), tuple(outputs))
        if key not in self._extracted:
            self._extracted[key] = self.cut_out(*key)
        return self._extracted[key]

    def cut_out(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> fx.GraphModule:
        """What `extract` keeps: made anew."""
        needed = self.needed(inputs, outputs)
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
        return fx.GraphModule(self.root, self.polished(graph))

    def polished(self, graph: fx.Graph) -> fx.Graph:
        """A part of the program as it is to run: as it was traced."""
        return graph

    def needed(self, inputs: Sequence[str], outputs: Sequence[str]) -> set[str]:
        """Names of all nodes that `outputs` are computed from, given `inputs`, themselves included."""
        stack, needed = list(outputs), set()
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                if name not in inputs:
                    stack += [node.name for node in self.nodes[name].all_input_nodes]
        return needed

    def reads_inputs(self, name: str) -> bool:
        """True if the value of node `name` holds numbers of the inputs, not only their sizes."""
        stack, seen = [self.nodes[name]], set()
        while stack:
            node = stack.pop()
            if node in seen or self.is_fixed(node.name) or op_name(node) in CONSTANTS:
                continue
            seen.add(node)
            if node.op == "placeholder":
                return True
            stack += node.all_input_nodes
        return False

    def is_sized(self, name: str) -> bool:
        """True for a tensor made of the batch size alone, such as the numbers of the examples."""
        node = self.nodes[name]
        tensor = node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)
        return tensor and self.layouts[name].axis is not None and not _is_random(node) and not self.reads_inputs(name)

    def dependents(self, site: str) -> set[str]:
        """Names of all nodes whose value depends on node `site`, itself included."""
        found = {site}
        for node in self.root.graph.nodes:
            if any(source.name in found for source in node.all_input_nodes):
                found.add(node.name)
        return found

    def boundary(self, site: str, outputs: Sequence[str]) -> tuple[str, ...]:
        """The values to keep so that `outputs` can be computed again after `site` has changed: `site` first."""
        later = self.dependents(site) & self.needed([site], outputs)
        return (site, *_sources(self, later - {site}, later))

    def examples_first(self, name: str, value: Tensor) -> Tensor:
        """The value of node `name` with its examples along axis 0; what else lay on their axis follows in its place."""
        return examples_first(value, self.layouts[name])

    def examples_back(self, name: str, value: Tensor) -> Tensor:
        """The inverse of `examples_first`."""
        return examples_back(value, self.layouts[name])

    def axis_first(self, name: str, axis: int) -> int:
        """Where `axis` of the value of node `name` is after `examples_first`; `axis` is not the examples' own."""
        layout = self.layouts[name]
        if layout.axis is None:
            return axis
        return axis + (axis < layout.axis or layout.outer * layout.inner > 1)

    def repeat(self, name: str, value: Any, times: int) -> Any:
        """The value of node `name` for a batch repeated `times` over."""
        known = self.nodes[name].meta["val"]
        if not isinstance(known, Tensor):
            if not is_free(known):
                return value
            expression, (size,) = known.node.expr, known.node.expr.free_symbols
            batch = next(iter(sympy.solveset(expression - value, size)))
            return int(expression.subs(size, batch * times))
        layout = self.layouts[name]
        if layout.axis is None:
            return value
        repeats = [times if axis == layout.axis else 1 for axis in range(value.ndim)]
        if layout.outer == 1:
            return value.repeat(repeats)
        value = self.examples_first(name, value)
        return self.examples_back(name, value.repeat(times, *[1] * (value.ndim - 1)))

    def value(self, name: str) -> Tensor:
        """A tensor without numbers, of the shape and type that the value has for the example."""
        return self.nodes[name].meta["val"]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of node `name` for one example, without the batch, as `examples_first` lays it out."""
        sizes, layout = list(shape_at(self.nodes[name].meta["val"], 1)), self.layouts[name]
        if layout.axis is not None and layout.outer * layout.inner == 1:
            del sizes[layout.axis]
        return tuple(sizes)


def export_program(
    model: nn.Module,  # In eval mode; returned as it was found
    args: tuple = (),  # Inputs by place, batch first
    kwargs: Mapping[str, Any] | None = None,  # Inputs by name
    *,
    recurrent: Literal["state", "gate"] = "state",  # Recurrent modules: one value for all states, or step by step
) -> Program:
    """Trace `model` on example inputs, the batch dimension of every tensor left free.

    Parameters
    ----------
    model : nn.Module
        In eval mode; returned as it was found
    args : tuple, default ()
        Inputs by place, batch first
    kwargs : Mapping[str, Any] | None, default None
        Inputs by name
    recurrent : {'state', 'gate'}, default 'state'
        Recurrent modules: one value for all states, or step by step

    Returns
    -------
    Program

    Raises: `ValueError` if torch cannot export the model, or its code fixes the batch size.
    """
    args, kwargs = pytree.tree_map_only(Tensor, _at_least_two, (tuple(args), dict(kwargs or {})))
    shapes = torch.export.ShapesCollection()
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and leaf.ndim:
            shapes[leaf] = {0: torch.export.Dim.AUTO}
    told = f"torch.export could not trace {type(model).__name__}"
    if reason := why_refused(model):
        raise ValueError(f"{told}: {reason}")
    try:
        inference = any(one.is_inference() for one in model.parameters())
        with _quiet(), as_found(model), without_fast_paths(model), torch.inference_mode(inference), torch.no_grad():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            if (table := _unrolled(program.graph, recurrent)) or not _functionalize(program.graph):
                program = program.run_decompositions(table)
            root = program.module()
            _tidy(root)
            states = name_states(root)
        _differentiable(root)
    except Exception as error:  # export raises many kinds; the user needs one
        raise ValueError(f"{told}: {why_refused(model, error)}") from error
    if any("generator" in node.kwargs for node in root.graph.nodes):
        raise ValueError(f"{told}: it draws from a generator of its own")
    inputs = [node for node in root.graph.nodes if node.op == "placeholder"]
    if not inputs or not all(is_free(node.meta["val"].shape[0]) for node in inputs):
        raise ValueError(_fixed(model, args, kwargs, shapes))
    try:
        return Program(root, tuple(kwargs), _labels(program.call_spec.out_spec), states)
    except Exception as error:  # shapes that no formula of the batch size gives
        raise ValueError(f"{told}: how its batch is laid out cannot be followed ({error})") from error


def _fixed(model: nn.Module, args: tuple, kwargs: dict[str, Any], shapes: Any) -> str:
    """What is said of a model whose batch size is a constant."""

    def export() -> None:
        with _quiet(), as_found(model), without_fast_paths(model), torch.no_grad():
            logging.disable(logging.DEBUG)  # `why_fixed` listens
            torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)

    sizes = sorted({leaf.shape[0] for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)})
    return why_fixed(model, sizes[-1] if sizes else "nothing", export)


def says_the_same(
    program: Program,  # Made of the model
    model: nn.Module,  # Returned as it was found
    args: tuple = (),  # Inputs by place, of as many examples as there are
    kwargs: Mapping[str, Any] | None = None,  # Inputs by name
) -> bool:
    """Does a traced program put out what its model does? It does not where code looks at the size of the batch.

    Parameters
    ----------
    program : Program
        Made of the model
    model : nn.Module
        Returned as it was found
    args : tuple, default ()
        Inputs by place, of as many examples as there are
    kwargs : Mapping[str, Any] | None, default None
        Inputs by name

    Returns
    -------
    bool

    Raises: `ValueError` if the model itself fails on these inputs.
    """
    if program.random:
        return True  # nothing to compare
    given = dict(kwargs or {})
    with as_found(model), without_fast_paths(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            copies = pytree.tree_map_only(Tensor, Tensor.clone, (args, given))  # which the model may change in place
            out = model(*copies[0], **copies[1])
        except Exception as error:  # the code of a model may raise anything
            check_lookup(model, error, lambda: model(*args, **given))
            shapes = [tuple(one.shape) for one in pytree.tree_leaves((args, given)) if isinstance(one, Tensor)]
            words = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{type(model).__name__} fails on inputs of shape {shapes}: {words}") from error
        said = [one.clone() for one in pytree.tree_leaves(out) if isinstance(one, Tensor)]
    with torch.no_grad():
        try:
            tensors = program.arguments(given if given else args)
            found = program.extract(program.inputs, program.outputs)(*tensors)
        except Exception:  # a size that was taken for fixed
            return False
    return len(said) != len(found) or all(same_numbers(*pair) for pair in zip(said, found, strict=True))


def _differentiable(root: fx.GraphModule) -> None:
    """Put copies in the place of what was made under `torch.inference_mode`, which nothing can be differentiated by."""
    for module in root.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, value in own:
            if value.is_inference():
                delattr(module, name)
                with torch.inference_mode(False):
                    module.register_buffer(name, value.detach().clone())


def _at_least_two(x: Tensor) -> Tensor:
    """Export takes a batch of one for a constant."""
    return x.expand(2, *x.shape[1:]).contiguous() if x.ndim and x.shape[0] == 1 else x


def _labels(spec: pytree.TreeSpec) -> list[str]:
    """The name of each output: its key in a dictionary, its place in a tuple; '' for an output that is alone."""
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths = pytree.tree_flatten_with_path(tree)[0]
    return [".".join(map(_key, path)) for path, _ in paths]


def _key(key: Any) -> str:
    """A step of the way to an output: a mapping's key, a field's name, or a place."""
    return str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), Tensor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch logs, prints and warns of while it exports from the screen: what matters is in the error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def without_fast_paths(model: nn.Module) -> Iterator[None]:
    """No fused encoder layers and no key-value caches while a model is traced: neither can be followed.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    Iterator[None]
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    configs = {id(c): c for m in model.modules() if getattr(c := getattr(m, "config", None), "use_cache", None) is True}
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for config in configs.values():
            config.use_cache = True


def _tidy(root: fx.GraphModule) -> None:
    """Take out guards on shapes (the engine feeds batches of its own), wrappers, and what nobody reads."""
    for node in list(root.graph.nodes):
        if node.op == "call_module":
            root.graph.erase_node(node)
    while _inline(root):
        pass
    for node in root.graph.nodes:  # a view is picky about how its input lies in memory
        if op_name(node) in ("view", "_unsafe_view"):
            node.target = torch.ops.aten.reshape.default
    for node in reversed(list(root.graph.nodes)):
        constant = node.op == "placeholder" and not isinstance(node.meta["val"], Tensor)
        if constant or (not node.users and "assert" in str(node.target)):
            root.graph.erase_node(node)
    root.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    root.recompile()


def _inline(root: fx.GraphModule) -> bool:
    """Replace calls of a part under other gradient or autocast settings by the part itself; False if there are none."""
    found = False
    for node in list(root.graph.nodes):
        name = getattr(node.target, "__name__", "")
        if node.op != "call_function" or name not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            continue
        place = next(i for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
        part, args = getattr(root, node.args[place].target), node.args[place + 1 :]
        copies = dict(zip((n for n in part.graph.nodes if n.op == "placeholder"), args, strict=True))
        with root.graph.inserting_before(node):
            result = root.graph.graph_copy(part.graph, copies)
        for name in [n.target for n in part.graph.nodes if n.op == "get_attr" and not hasattr(root, n.target)]:
            setattr(root, name, getattr(part, name))
        for user in list(node.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(result[user.args[1]])
                root.graph.erase_node(user)
        root.graph.erase_node(node)
        found = True
    return found


def _is_random(node: fx.Node) -> bool:
    """Does a node draw? Operations that drop numbers at random do not where they are told to drop none."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    names = [one.name for one in node.target._schema.arguments]
    given = {one.name: one.default_value for one in node.target._schema.arguments}
    given |= dict(zip(names, node.args, strict=False)) | node.kwargs
    switches = [given[name] for name in ("p", "dropout", "dropout_p", "train", "training") if name in given]
    return all(one is None or one for one in switches)  # None leaves it switched on


def _layouts(graph: fx.Graph) -> tuple[dict[str, Layout], set[str]]:
    """Where the examples lie in every value of a graph, and the values of which this is a guess."""
    found: dict[str, Layout] = {}
    unclear: set[str] = set()
    for node in graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            continue
        free = [axis for axis, size in enumerate(value.shape) if is_free(size)]
        axis = free[0] if free else None
        each = 1 if axis is None else shape_at(value, 1)[axis]
        sure = not free or (len(free) == 1 and is_multiple(value.shape[axis], each))
        layout = None if axis is None or each < 1 or not sure else _laid(node, axis, each, found)
        found[node.name] = layout or Layout(axis, 1, max(each, 1) if sure else 1)
        if axis is not None and layout is None:
            unclear.add(node.name)
    return found, unclear


def _laid(node: fx.Node, axis: int, each: int, found: Mapping[str, Layout]) -> Layout | None:
    """The layout of a value whose axis counts `each` places for every example; None if it cannot be told."""
    call = node.args[0] if node.target is operator.getitem and isinstance(node.args[0], fx.Node) else node
    sources = [source for source in call.all_input_nodes if found.get(source.name, Layout()).axis is not None]
    if sources and op_name(call) in MOVES:
        return _moved(node, call, sources, axis, each, found)
    same = [found[source.name] for source in sources]
    if each == 1:
        return Layout(axis)
    return next((one for one in same if one.axis == axis and one.outer * one.inner == each), None)


def _moved(
    node: fx.Node, call: fx.Node, sources: list[fx.Node], axis: int, each: int, found: Mapping[str, Layout]
) -> Layout | None:
    """Follow the numbers of three examples through an operation that lays them out anew."""
    numbers: dict[fx.Node, Tensor] = {}

    def given(one: fx.Node) -> Any:
        if one in numbers:
            return numbers[one]
        known = one.meta["val"]
        return torch.zeros(shape_at(known, _N), dtype=torch.int8) if isinstance(known, Tensor) else size_at(known, _N)

    try:
        numbers |= {source: _numbers(source, found[source.name]) for source in sources}
        args, kwargs = fx.map_arg((call.args, call.kwargs), given)
        value = call.target(*args, **kwargs)
        value = value if call is node else value[node.args[1]]
        line = value.movedim(axis, 0).reshape(_N * each, -1)
    except Exception:  # an operation on numbers of examples may be refused for many reasons
        return None
    if not line.numel():
        return Layout(axis) if each == 1 else None  # a value without numbers
    if (line != line[:, :1]).any():
        return None  # examples meet along another axis
    inner = int((line[:, 0] == line[0, 0]).int().cumprod(0).sum())
    wanted = torch.arange(_N).repeat_interleave(inner).repeat(each // inner) if each % inner == 0 else line[:0, 0]
    return Layout(axis, each // inner, inner) if torch.equal(line[:, 0].long(), wanted) else None


_N = 3  # examples that are followed: of two, one order is the other backwards


def _numbers(source: fx.Node, layout: Layout) -> Tensor:
    """For every place of a value the number of its example."""
    shape = shape_at(source.meta["val"], _N)
    line = torch.arange(_N, dtype=torch.int8).repeat_interleave(layout.inner).repeat(layout.outer)
    return line.view([-1 if i == layout.axis else 1 for i in range(len(shape))]).expand(shape)


def _unrolled(graph: fx.Graph, recurrent: str) -> dict[Any, Callable[..., Any]]:
    """How to write each recurrent operation of a graph as a step of plain ones for every step of the sequence."""
    found = {node.target for node in graph.nodes if op_name(node) in RECURRENT}
    if recurrent == "state":
        across = {node.target for node in graph.nodes if op_name(node) in SEQUENCES and runs_across(node)}
        found = {one for one in found if one in across or one._schema.name.split("::")[-1] not in SEQUENCES}
    known = torch.export.default_decompositions() if found else {}
    return {operation: known[operation] for operation in found}


def _functionalize(graph: fx.Graph) -> bool:
    """Replace in-place operations by their pure twins where that is plainly safe; False if one is not."""
    for node in list(graph.nodes):
        if node.op != "call_function" or not getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            continue
        packet, overload = str(node.target).removeprefix("aten.").rsplit(".", 1)
        pure = getattr(getattr(torch.ops.aten, packet.removesuffix("_"), None), overload, None)
        target = node.args[0]
        read_later = any(user > node for user in target.users)
        if pure is None or not packet.endswith("_") or read_later or not owns_its_memory(target):
            return False
        node.target = pure
    return True


def owns_its_memory(node: fx.Node) -> bool:
    """True if no other value shares the memory of `node`.

    Parameters
    ----------
    node : fx.Node

    Returns
    -------
    bool
    """
    return not _may_alias(node) and not any(_may_alias(user) for user in node.users)


def _may_alias(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.name.removeprefix("aten::") in MAY_ALIAS:
        return True
    return not schema.is_mutable and any(value.alias_info is not None for value in schema.returns)


def repeatable(
    tensors: Sequence[Tensor],  # Inputs of a batch
) -> AbstractContextManager:
    """PyTorch's generators start inside the block at a seed made of these numbers, and are put back after it.

    Parameters
    ----------
    tensors : Sequence[Tensor]
        Inputs of a batch

    Returns
    -------
    AbstractContextManager
    """
    some = [one.detach().flatten()[:_HASHED].double().cpu().numpy().tobytes() for one in tensors]
    return seeded(zlib.crc32(b"".join(some)), next((one.device for one in tensors), None))


_HASHED = 4096  # numbers of an input that make a seed


class Placed(Protocol):
    """Something that a program puts out at one of its nodes, such as a layer."""

    @property
    def name(self) -> str:
        """What it is called; no two are called the same."""

    @property
    def site(self) -> str:
        """The node that puts it out."""


P = TypeVar("P", bound=Placed)


def first_met(program: Any, layers: Sequence[P]) -> tuple[list[P], list[P]]:
    """Layers that no other of them comes before, and the others.

    Parameters
    ----------
    program : Any
    layers : Sequence[P]

    Returns
    -------
    tuple[list[P], list[P]]
    """
    if len(layers) == 1 or not program.any_batch:
        return list(layers), []
    after = {layer.name: program.dependents(layer.site) for layer in layers}
    later = [a for a in layers if any(a.site in after[b.name] for b in layers if b is not a)]
    return [layer for layer in layers if layer not in later], later


def boundary_of(program: Any, sites: Sequence[str], outputs: Sequence[str]) -> tuple[str, ...]:
    """The values to keep so that `outputs` can be computed again after the sites have changed: the sites first.

    Parameters
    ----------
    program : Any
    sites : Sequence[str]
    outputs : Sequence[str]

    Returns
    -------
    tuple[str, ...]
    """
    if len(sites) == 1:
        return program.boundary(sites[0], outputs)
    later = set.union(*(program.dependents(site) for site in sites)) & program.needed(sites, outputs)
    return (*dict.fromkeys(sites), *_sources(program, later - {*sites}, later))


def _sources(program: Program, readers: set[str], known: set[str]) -> list[str]:
    """What some nodes read besides those that are known, in the order it runs.

    Of a value that depends on the batch size, and on no input's numbers, the sizes it is made of: it is made anew for
    another batch.
    """
    found, stack = set(), [source for name in readers for source in program.nodes[name].all_input_nodes]
    while stack:
        node = stack.pop()
        if node.name in found | known or node.op == "get_attr":
            continue
        if program.is_sized(node.name):
            stack += node.all_input_nodes
        else:
            found.add(node.name)
    return [name for name in program.nodes if name in found]
