"""Runs a model that torch.export refuses: cut at the calls of its modules, by hooks.

A plain module, not a notebook: mechanism without a story. It offers what `Program` offers to those who lesion, record
and visualise units. What it cannot know are the weights that join them.
"""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from specialize_nb.network.lookups import check_lookup
from specialize_nb.network.program import Layout, Program, without_fast_paths
from specialize_nb.network.state import as_found

__all__ = ["HookedLayer", "HookedProgram", "hooked_layers"]

_KEEPS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _DropoutNd, nn.Identity)  # A unit stays a unit
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid),
    *(nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold),
)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm)


class HookedLayer(NamedTuple):
    """The units of one call of a module, in the words of `Layer`; `pre` and `site` are calls.

    Attributes
    ----------
    name : str
        Dotted name of the module, and from its second call on 'name#2'
    kind : {'hidden', 'output'}
    op : str
        'linear', 'conv2d', 'embedding', 'attention', or the module's class in small letters
    unit : str
        'neuron', 'channel' or 'dimension'
    n_units : int
        Units, at least 1
    unit_dim : int
        Axis of the activations that counts units; examples are axis 0
    shape : tuple[int, ...]
        Shape of the activations of one example
    pre : str
        Call whose value comes just before the activation
    site : str
        Call whose value is what the units put out
    """

    name: str  # Dotted name of the module, and from its second call on 'name#2'
    kind: Literal["hidden", "output"]
    op: str  # 'linear', 'conv2d', 'embedding', 'attention', or the module's class in small letters
    unit: str  # 'neuron', 'channel' or 'dimension'
    n_units: int  # Units, at least 1
    unit_dim: int  # Axis of the activations that counts units; examples are axis 0
    shape: tuple[int, ...]  # Shape of the activations of one example
    pre: str  # Call whose value comes just before the activation
    site: str  # Call whose value is what the units put out


@dataclass(eq=False)
class _Call:
    """One call of a module, as seen in one pass."""

    owner: str  # Dotted name of the module
    module: nn.Module
    value: Tensor  # What it put out
    mark: tuple[int, int]  # Where that lies in memory, and how often it had been written to
    readers: list[str] = field(default_factory=list)  # Calls that took it
    looked_at: bool = False  # Did a function outside of these calls take it, or change it in place?


@dataclass(eq=False)
class _Pass:
    """What one pass showed: all calls in running order, and the outputs."""

    calls: dict[str, _Call] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    ends: set[tuple[int, int]] = field(default_factory=set)  # Where the outputs lie
    alive: list[Tensor] = field(default_factory=list)  # So that no place in memory is taken twice

    @property
    def values(self) -> dict[str, Tensor]:
        """What all calls and the model put out."""
        return {name: call.value for name, call in self.calls.items()} | self.outputs


class _Looks(TorchFunctionMode):
    """Tells `note` of every function that makes a tensor of other tensors."""

    def __init__(self, note: Callable[[list[Any]], None]):
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)):
            self.note(pytree.tree_leaves((args, kwargs)))
        return result


class HookedProgram:
    """A model run as it is, with hooks that read, or put in the place of another, what a module's call puts out.

    A site is a call: the module's dotted name, and from its second call in a pass on 'name#2'. No part of the model can
    be run alone, so running on from a site is a whole pass. Python code may look at the whole batch, so examples that
    belong to different lesions never share one: `any_batch` is False.

    Parameters
    ----------
    model : nn.Module
    args : tuple, default ()
    kwargs : Mapping[str, Any] | None, default None

    Raises: `ValueError` if the model fails on the example.
    """

    any_batch = False  # May lesions be stacked along the batch?
    random: tuple[str, ...] = ()  # What draws at random; set if two passes of one example differ
    arguments = Program.arguments
    examples_first, examples_back = Program.examples_first, Program.examples_back
    axis_first, drawing = Program.axis_first, Program.drawing

    def __init__(self, model: nn.Module, args: tuple = (), kwargs: Mapping[str, Any] | None = None):
        self.model, self._lock = model, threading.RLock()
        args, kwargs = tuple(args), dict(kwargs or {})
        leaves, self._spec = pytree.tree_flatten((args, kwargs))
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.keywords = tuple(name for name, value in kwargs.items() if isinstance(value, Tensor))
        self.inputs = _input_names(model, args, kwargs)
        self._modules = dict(_watched(model))
        self.left_out: dict[str, str] = {}  # Calls of modules that make units, but are no layers -> why
        example, found, more = self._observe([leaves[place] for place in self._places])
        self.calls, self._ends = found.calls, found.ends
        self.outputs = tuple(found.outputs)
        self.labels = tuple(name.removeprefix("output").strip() for name in self.outputs)
        self._learn(example, found, more)
        if self._differs(example, found):
            self.random = (type(model).__name__,)
        for call in self.calls.values():
            call.value = call.value.to("meta")

    def _observe(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], _Pass, _Pass | None]:
        """A pass of two examples, and one of three; of all as they are where the model takes no other number."""
        n = min((len(one) for one in tensors if one.ndim), default=1)
        few, more = ([one[rows] if one.ndim else one for one in tensors] for rows in _ROWS[min(n, 2)])
        try:
            return few, self._watch(few), self._watch(more)
        except Exception:  # the code of a model may raise anything
            pass
        try:
            return list(tensors), self._watch(tensors), None
        except Exception as error:
            check_lookup(self.model, error, lambda: self._watch(tensors), where=" on the example")
            told = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(f"{type(self.model).__name__} fails on the example: {told[0]}") from error

    def _differs(self, example: Sequence[Tensor], found: _Pass) -> bool:
        """True if another pass of the same example puts out something else."""
        again = self._watch(example).outputs
        pairs = ((one, again.get(name)) for name, one in found.outputs.items())
        return not all(b is not None and a.shape == b.shape and torch.allclose(a, b, equal_nan=True) for a, b in pairs)

    def _learn(self, example: Sequence[Tensor], found: _Pass, more: _Pass | None) -> None:
        """What the values are like, and where the examples lie in them."""
        n = min((len(one) for one in example if one.ndim), default=1)
        given = dict(zip(self.inputs, example, strict=True))
        values, others = found.values, {} if more is None else more.values
        self.layouts = {name: Layout(0) if one.ndim else Layout() for name, one in given.items()}
        for name, value in values.items():
            same = [axis for axis, size in enumerate(value.shape) if size == n]
            self.layouts[name] = Layout(same[0]) if same else Layout()
            if name in others:
                self.layouts[name] = self._layout(name, value, others[name])
        self._values = {name: value.detach().to("meta") for name, value in (given | values).items()}

    def _layout(self, name: str, two: Tensor, three: Tensor) -> Layout:
        """Where the examples lie, from the value for two examples and the value for them and another."""
        changed = [i for i, sizes in enumerate(zip(two.shape, three.shape, strict=False)) if sizes[0] != sizes[1]]
        if two.ndim != three.ndim or len(changed) != 1:
            return Layout()
        axis = changed[0]
        each = three.shape[axis] - two.shape[axis]
        if two.shape[axis] != 2 * each:
            return Layout()
        if each == 1:
            return Layout(axis)
        for inner in (size for size in range(each, 0, -1) if each % size == 0):
            self.layouts[name] = Layout(axis, each // inner, inner)
            one, other = self.examples_first(name, two), self.examples_first(name, three)[:2]
            if torch.allclose(one.double(), other.double(), rtol=1e-3, atol=1e-5, equal_nan=True):
                return self.layouts[name]
        return Layout(axis, 1, each)

    # --- what can be asked --------------------------------------------------------------------------------------------

    def value(self, name: str) -> Tensor:
        """A tensor without numbers, of the shape and type that the value has for the example.

        Parameters
        ----------
        name : str
            --- what can be asked
            --------------------------------------------------------------------------------------------

        Returns
        -------
        Tensor
        """
        return self._values[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value for one example, without the batch, as `examples_first` lays it out."""
        sizes, layout = list(self._values[name].shape), self.layouts[name]
        each = layout.outer * layout.inner
        if layout.axis is not None:
            sizes[layout.axis : layout.axis + 1] = [] if each == 1 else [each]
        return tuple(sizes)

    def boundary(self, site: str, outputs: Sequence[str]) -> tuple[str, ...]:
        """The values to keep so that `outputs` can be computed again after `site` has changed: `site` first."""
        return (site, *self.inputs)

    def extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> Callable[..., tuple[Tensor, ...]]:
        """A function from values of `inputs` to values of `outputs`: a pass in which given calls put out what is given.

        Raises: `ValueError` if inputs of the model are missing; `KeyError` for a name that is not known.
        """
        inputs, outputs = tuple(inputs), tuple(outputs)
        if missing := [name for name in self.inputs if name not in inputs]:
            raise ValueError(f"nodes {list(outputs)} also need the program's input {missing[0]!r}: add it to `inputs`")
        if unknown := [name for name in (*inputs, *outputs) if name not in self._values]:
            raise KeyError(f"no call {unknown[0]!r}: the calls are {list(self.calls)[:6]}")

        def run(*values: Tensor) -> tuple[Tensor, ...]:
            seen = self._run(dict(zip(inputs, values, strict=True)), set(outputs))
            return tuple(seen[name] for name in outputs)

        return run

    # --- passes -------------------------------------------------------------------------------------------------------

    def _call_model(self, tensors: Sequence[Tensor]) -> Any:
        leaves = list(self._leaves)
        for place, one in zip(self._places, tensors, strict=True):
            leaves[place] = one
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        with as_found(self.model), without_fast_paths(self.model):
            args, kwargs = pytree.tree_map_only(
                Tensor, Tensor.clone, (args, kwargs)
            )  # a model may change them in place
            return self.model(*args, **kwargs)

    def _run(self, given: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
        """One pass; what was asked for by name."""
        calls: Counter[str] = Counter()
        replaced = {name: value for name, value in given.items() if name not in self.inputs}
        seen, due = {name: given[name] for name in wanted & set(given)}, set(replaced)

        def after(name: str) -> Callable[..., Any]:
            def hook(module: nn.Module, _: Any, output: Any) -> Any:
                calls[name] += 1
                site = _numbered(name, calls[name])
                due.discard(site)
                if site in replaced:
                    return _with_value(module, output, replaced[site].clone())
                if site in wanted:
                    seen[site] = _value_of(output).clone()
                return None

            return hook

        owners = {self.calls[site].owner for site in {*wanted, *replaced} if site in self.calls}
        with self._lock, ExitStack() as hooks:
            for name in owners:
                hooks.callback(self._modules[name].register_forward_hook(after(name)).remove)
            seen |= _outputs(self._call_model([given[name] for name in self.inputs]))
        if missing := sorted(due | (wanted - set(seen))):
            told = "takes another way through its code than on the example it was traced with"
            raise ValueError(f"{missing[0]!r} did not come in this pass: {type(self.model).__name__} {told}")
        return seen

    @torch.no_grad()
    def _watch(self, tensors: Sequence[Tensor]) -> _Pass:
        """One pass with a hook on every module that makes units or takes no others in."""
        seen, counts, made, stack = _Pass(), Counter(), {}, []

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            taken = next((leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
            stack.append(made.get(id(taken)))

        def note(values: list[Any]) -> None:
            for value in [] if stack else values:
                if source := made.get(id(value)):
                    seen.calls[source].looked_at = True

        def after(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, _: Any, output: Any) -> None:
                counts[name] += 1
                site, value = _numbered(name, counts[name]), _value_of(output)
                call = None if value is None else _Call(name, module, value.clone(), _mark(value))
                if call is None and _makes_units(module):
                    self.left_out[site] = "puts out a packed sequence or quantized numbers, no number for each example"
                if source := stack.pop():
                    seen.calls[source].readers.append(site)
                if call is not None:
                    seen.alive.append(value)
                    made[id(value)], seen.calls[site] = site, call

            return hook

        with torch.inference_mode(False), self._lock, ExitStack() as hooks:
            for name, module in self._modules.items():
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(after(name)).remove)
            tensors = [one.clone() for one in tensors]
            with _Looks(note):
                seen.outputs = _outputs(self._call_model(tensors))
            seen.ends = {_mark(one) for one in seen.outputs.values()}
        return seen

    def followers(self, site: str) -> list[str]:
        """The call itself, and all that only lay its value out anew, scale or squash it, as far as can be seen."""
        found = [site]
        for one in found:
            found += [reader for reader in self.calls[one].readers if not _makes_units(self.calls[reader].module)]
        return found

    def puts_out(self, site: str) -> bool:
        """True if what a call puts out leaves the model without meeting another layer."""
        found = self.followers(site)
        readers = {reader for one in found for reader in self.calls[one].readers}
        return readers <= set(found) and any(self.leaves(one) for one in found)

    def leaves(self, site: str) -> bool:
        """True if what a call puts out is an output of the model."""
        return self.calls[site].mark in self._ends


_ROWS = {0: ([], []), 1: ([0, 0], [0, 0, 0]), 2: ([0, 1], [0, 1, 0])}  # Of an example of so many: two, and three


def hooked_layers(
    model: nn.Module,  # In eval mode; returned as it was found
    args: tuple = (),  # Inputs by place
    kwargs: Mapping[str, Any] | None = None,  # Inputs by name
) -> tuple[HookedProgram, list[HookedLayer]]:
    """Which units does a model have that torch.export refuses?

    A layer is a call of a module that owns a matrix or a kernel. Its units act after the batch norm and the activation
    that are called next on what it puts out, if those are modules too.

    Parameters
    ----------
    model : nn.Module
        In eval mode; returned as it was found
    args : tuple, default ()
        Inputs by place
    kwargs : Mapping[str, Any] | None, default None
        Inputs by name

    Returns
    -------
    tuple[HookedProgram, list[HookedLayer]]

    Raises: `ValueError` if the model fails on the example, or has no such module.
    """
    program = HookedProgram(model, args, kwargs)
    layers = [_layer(program, site) for site in program.calls if _is_layer(program, site)]
    made = [site for site, call in program.calls.items() if _makes_units(call.module)]
    told = "puts out no floating number for each of its units and each example"
    program.left_out |= {site: told for site in made if not _is_layer(program, site)}
    if not layers and made:
        names = ", ".join(map(repr, made[:3])) + " and more" * (len(made) > 3)
        raise ValueError(f"no units of {type(model).__name__} are known: each of {names} {told}")
    if not layers:
        raise ValueError(f"{type(model).__name__} calls no module that owns a matrix or a kernel: no units are known")
    if not any(layer.kind == "output" for layer in layers):
        layers[-1] = layers[-1]._replace(kind="output")
    return program, layers


def _is_layer(program: HookedProgram, site: str) -> bool:
    module, value, axis = program.calls[site].module, program.value(site), program.layouts[site].axis
    known = _makes_units(module) and value.is_floating_point() and axis is not None and value.ndim > 1
    return known and _unit_axis(module, value) != axis


def _layer(program: HookedProgram, name: str) -> HookedLayer:
    """The layer of one call."""
    module, value = program.calls[name].module, program.value(name)
    pre, site = _sites(program, name)
    axis = _unit_axis(module, value)
    unit = "channel" if axis < value.ndim - 1 else "dimension" if isinstance(module, nn.Embedding) else "neuron"
    fields = dict(kind="output" if program.puts_out(name) else "hidden", op=_op(module), unit=unit)
    place = dict(unit_dim=program.axis_first(site, axis), shape=program.shape(site), pre=pre, site=site)
    return HookedLayer(name=name, n_units=value.shape[axis], **fields, **place)


def _sites(program: HookedProgram, name: str) -> tuple[str, str]:
    """The calls whose values are a layer's before and after its activation."""
    site = name
    while len(readers := program.calls[site].readers) == 1:
        if program.calls[site].looked_at or program.leaves(site):
            break
        module = program.calls[readers[0]].module
        if isinstance(module, _ACTIVATIONS):
            return site, readers[0]
        if not isinstance(module, _KEEPS):
            break
        site = readers[0]
    return site, site


def _makes_units(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear | _ConvNd | nn.Embedding | nn.RNNBase | nn.MultiheadAttention):
        return True
    leaf = not any(True for _ in module.children())
    if "quantized" in type(module).__module__:
        return callable(getattr(module, "weight", None))  # packed, so that it is no parameter
    return leaf and not isinstance(module, _NORMS) and any(one.ndim > 1 for one in module.parameters(recurse=False))


def _watched(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that make units, and those that hold no others; not what lies within a module that makes units."""
    found, inside = [], []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside) or isinstance(module, torch.jit.ScriptModule):
            continue
        if _makes_units(module):
            inside.append(f"{name}." if name else "")
        if _makes_units(module) or not any(True for _ in module.children()):
            found.append((name or _op(module), module))
    return found


def _unit_axis(module: nn.Module, value: Tensor) -> int:
    """The axis of what a layer puts out that counts its units."""
    if isinstance(module, _ConvNd):
        return value.ndim - 1 - len(module.kernel_size)
    known = isinstance(module, nn.Linear | nn.Embedding | nn.RNNBase | nn.MultiheadAttention)
    return 1 if value.ndim > 3 and not known else value.ndim - 1


def _op(module: nn.Module) -> str:
    if isinstance(module, _ConvNd):
        return f"conv{'_transpose' * isinstance(module, _ConvTransposeNd)}{len(module.kernel_size)}d"
    for kind, name in ((nn.Linear, "linear"), (nn.Embedding, "embedding"), (nn.MultiheadAttention, "attention")):
        if isinstance(module, kind):
            return name
    return type(module).__name__.lower()


def _numbered(name: str, count: int) -> str:
    return name if count == 1 else f"{name}#{count}"


def _mark(value: Tensor) -> tuple[int, int]:
    return value.untyped_storage().data_ptr(), value._version


def _value_of(output: Any) -> Tensor | None:
    """The first tensor that a module puts out."""
    if any(isinstance(one, PackedSequence) for one in (output, *(output if isinstance(output, tuple) else ()))):
        return None  # its rows are tokens of all examples, as many as there happen to be
    found = next((leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)), None)
    return None if found is None or found.is_quantized else found


def _with_value(module: nn.Module, output: Any, value: Tensor) -> Any:
    """What a module puts out, with another first tensor."""
    if isinstance(module, nn.RNNBase):
        return value, _last_states(module, output[1], value)
    leaves, spec = pytree.tree_flatten(output)
    leaves[next(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))] = value
    return pytree.tree_unflatten(leaves, spec)


def _last_states(module: nn.RNNBase, states: Any, value: Tensor) -> Any:
    """The states that a recurrent module hands on, the last layer's as its sequence `value` ends."""
    hidden = states[0] if isinstance(states, tuple) else states
    steps = value.unbind(1 if module.batch_first else 0)
    ends = torch.stack([steps[-1]])
    if module.bidirectional:
        ends = torch.stack([steps[-1].chunk(2, -1)[0], steps[0].chunk(2, -1)[1]])
    hidden = torch.cat([hidden[: len(hidden) - len(ends)], ends])
    return (hidden, *states[1:]) if isinstance(states, tuple) else hidden


def _input_names(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """A name for every input tensor, in the order of the call; no module has a name with a space."""
    try:
        known = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        known = []
    known += [f"input {place}" for place in range(len(known), len(args))]
    names = []
    for name, value in [*zip(known, args, strict=False), *kwargs.items()]:
        tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        names += [f"input {name}" if len(tensors) == 1 else f"input {name} {place}" for place in range(len(tensors))]
    return tuple(names)


def _outputs(output: Any, label: str = "") -> dict[str, Tensor]:
    """Every tensor that a model puts out, under 'output' and the way to it."""
    if isinstance(output, Tensor):
        return {f"output {label}".strip(): output}
    found: dict[str, Tensor] = {}
    for key, value in _parts(output):
        found |= _outputs(value, f"{label}.{key}".strip("."))
    return found


def _parts(output: Any) -> list[tuple[Any, Any]]:
    """What a mapping, sequence or object holds, with names."""
    if isinstance(output, Mapping):
        return list(output.items())
    if isinstance(output, tuple | list):
        return list(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    if dataclasses.is_dataclass(output):
        return [(one.name, getattr(output, one.name)) for one in dataclasses.fields(output)]
    return list(vars(output).items()) if hasattr(output, "__dict__") and not callable(output) else []
