"""Are the derivatives of a traced program those of its model, example by example? And the part to differentiate.

A plain module, not a notebook: what everyone asks who differentiates a traced program. They are not if the model draws
at random, has a backward of its own, or lets examples meet. `Downstream` is the part of a program from some layers on,
made ready for gradients by what those layers put out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.func import functional_call
from torch.utils import _pytree as pytree

from specialize_nb.base.devices import to_model
from specialize_nb.base.seeds import seeded
from specialize_nb.network.apart import is_apart
from specialize_nb.network.program import Layout, Program, boundary_of, first_met
from specialize_nb.network.subject import Subject
from specialize_nb.network.units import Layer, Network

__all__ = ["Downstream", "check_backward", "check_gradients", "numbers_of", "own_backwards"]


class Downstream:
    """The part of a network from some layers to a node, made for gradients by what those layers put out.

    Parameters
    ----------
    network : Network
        Traced
    layers : Sequence[Layer]
        If it is read through hooks, one
    node : str
        Of its program
    """

    def __init__(
        self,
        network: Network,  # Traced
        layers: Sequence[Layer],  # If it is read through hooks, one
        node: str,  # Of its program
    ):
        self.program, self.node = network.program, node
        first, later = first_met(self.program, layers)
        self.layers, self.n_first = (*first, *later), len(first)
        ends = [*(layer.site for layer in later), node]
        kept = boundary_of(self.program, [layer.site for layer in first], ends)
        self.before, self.after = self.program.extract(self.program.inputs, kept), self.program.extract(kept, ends)
        self.sizes = numbers_of(self.program, kept, ends)

    def keep(
        self,
        tensors: Sequence[Tensor],  # Inputs, as the program takes them
    ) -> list[Any]:
        """What the first layers put out, in the order of `layers`, and what else is needed after them.

        Parameters
        ----------
        tensors : Sequence[Tensor]
            Inputs, as the program takes them

        Returns
        -------
        list[Any]
        """
        with torch.no_grad():
            return list(self.before(*tensors))

    def go_on(
        self,
        kept: Sequence[Any],  # From `keep`; the first layers' may be others
    ) -> tuple[list[Tensor], Tensor]:
        """What the layers put out, ready to be differentiated by, and what the node says, (n, n_outputs).

        Parameters
        ----------
        kept : Sequence[Any]
            From `keep`; the first layers' may be others

        Returns
        -------
        tuple[list[Tensor], Tensor]
        """
        first = [one.requires_grad_() for one in kept[: self.n_first]]
        *inner, found = self.after(*first, *kept[self.n_first :])
        found = self.program.examples_first(self.node, found)
        return first + inner, found.reshape(len(found), -1)

    def run(
        self,
        tensors: Sequence[Tensor],  # Inputs, as the program takes them
    ) -> tuple[list[Tensor], Tensor]:
        """`go_on` from some inputs.

        Parameters
        ----------
        tensors : Sequence[Tensor]
            Inputs, as the program takes them

        Returns
        -------
        tuple[list[Tensor], Tensor]
        """
        return self.go_on(self.keep(tensors))


def numbers_of(
    program: Any,  # Whole
    inputs: Sequence[str],  # Nodes that a part of it starts from
    outputs: Sequence[str],  # Nodes that it computes
) -> tuple[int, int]:
    """Numbers of one example: of the largest value of a part, and of all its values.

    Parameters
    ----------
    program : Any
        Whole
    inputs : Sequence[str]
        Nodes that a part of it starts from
    outputs : Sequence[str]
        Nodes that it computes

    Returns
    -------
    tuple[int, int]
    """
    names = program.needed(inputs, outputs) if program.any_batch else program.layouts
    names = [name for name in names if name in program.layouts and program.layouts[name].axis is not None]
    sizes = [math.prod(program.shape(name)) for name in names]
    return max(sizes, default=1), sum(sizes)


def check_gradients(
    subject: Subject,  # Its network is what is to be differentiated
    what: str,  # That is asked for, as the error calls it
) -> None:
    """Refuse to differentiate where the result would not be the model's derivative.

    Parameters
    ----------
    subject : Subject
        Its network is what is to be differentiated
    what : str
        That is asked for, as the error calls it

    Raises: `ValueError` if the model draws at random, has a backward of its own that the program does not, or lets the
    examples of a batch meet.
    """
    network = subject.network
    if network.program.random:
        told = f"{network.model} draws at random in evaluation, by {', '.join(network.program.random[:3])}"
        advice = "give `training=self.training` to `F.dropout`, and take noise out"
        raise ValueError(f"{told}: {what} would be of one draw, and another the next time; {advice}")
    check_backward(subject, what)
    for node, layout in ((node, network.program.layouts.get(node)) for node in network.program.outputs):
        if layout == Layout(0) and not is_apart(subject, node):
            told = f"what {network.model} says of an example depends on the others in its batch"
            raise ValueError(f"{told}: {what} is of single examples, and not defined here. Leave it out")


def check_backward(
    subject: Subject,  # Its network is what is to be differentiated
    what: str,  # That is asked for, as the error calls it
) -> None:
    """Refuse to differentiate a program whose model has a backward of its own.

    Parameters
    ----------
    subject : Subject
        Its network is what is to be differentiated
    what : str
        That is asked for, as the error calls it

    Raises: `ValueError` if the model's derivatives are not those of its program.
    """
    network = subject.network
    if own := subject.once("own backwards", lambda: own_backwards(subject)):
        told = f"{network.model} has a backward of its own, by {', '.join(own)}"
        raise ValueError(
            f"{told}: torch.export keeps the forward alone, so {what} would be of another model. "
            "Leave it out; what needs no derivatives is right"
        )


def own_backwards(
    subject: Subject,  # Model, network and data
) -> tuple[str, ...]:
    """What makes a model's derivatives another's than its program's: its `torch.autograd.Function`s, or `detach`.

    The model and its program are differentiated once, along one random direction, by inputs and parameters.

    Parameters
    ----------
    subject : Subject
        Model, network and data

    Returns
    -------
    tuple[str, ...]
    """
    program = subject.network.program
    if not isinstance(program, Program):
        return ()  # run as it is, and differentiated as it is
    with torch.inference_mode(False), torch.enable_grad():
        try:
            return _compared(subject, subject.data.example)
        except Exception:  # the model's own code: it may need a batch as it is
            return _compared(subject, subject.once("first batch", lambda: next(iter(subject.data)))[0])


def _compared(subject: Subject, x: Any) -> tuple[str, ...]:
    """What `own_backwards` returns, from some inputs."""
    model, program = subject.model, subject.network.program
    x = pytree.tree_map_only(Tensor, lambda one: one.clone(), to_model(x, model))
    args, kwargs = (x if isinstance(x, tuple | list) else (x,)), {}
    if isinstance(x, Mapping):
        args, kwargs = (), dict(x)
    wanted, tensors = {name for name, _ in model.named_parameters()}, program.arguments(x)
    slopes, names = _slopes(model, wanted, tuple(args), kwargs, tensors)
    part = program.extract(program.inputs, program.outputs)
    traced, _ = _slopes(part, wanted, tensors, {}, tensors)
    again = any("`CheckpointFunction`" in name for name in names)  # it reads parameters again, past those given here
    both = [(slopes[name], one) for name, one in traced.items() if name in slopes and not (again and name in wanted)]
    size = max((float(one.abs().max()) for pair in both for one in pair if one.numel()), default=0.0)
    same = all(_close(one, other, size) for one, other in both)
    return () if same else tuple(sorted(names)) or ("`detach` or `no_grad`",)


def _slopes(
    model: nn.Module, wanted: set[str], args: tuple, kwargs: dict[str, Any], leaves: tuple[Tensor, ...]
) -> tuple[dict[Any, Tensor], set[str]]:
    """Derivatives along a random direction of the outputs, by input's place and parameter's name; and own backwards."""
    state = {name: _leaf(one, name in wanted) for name, one in _state(model).items()}
    given = {id(one): _leaf(one, True) for one in leaves}
    by: dict[Any, Tensor] = {name: one for name, one in state.items() if one.requires_grad}
    by |= {place: given[id(one)] for place, one in enumerate(leaves) if given[id(one)].requires_grad}
    args, kwargs = pytree.tree_map_only(Tensor, lambda one: given.get(id(one), one), (args, kwargs))
    with seeded(0):
        out = functional_call(model, state, args, kwargs)
    values = [one for one in pytree.tree_leaves(out) if isinstance(one, Tensor) and one.requires_grad]
    if not values:
        return {}, set()
    generator, names = torch.Generator().manual_seed(0), _functions(values)
    directions = [torch.randn(one.shape, generator=generator).to(one) for one in values]
    torch.autograd.backward(values, directions)
    return {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in by.items()}, names


def _state(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _leaf(value: Tensor, differentiated: bool) -> Tensor:
    """The same numbers, as a tensor of its own that can be differentiated by, if it is asked for and floating."""
    own = value.detach().clone()  # of what was made under `inference_mode`, too
    return own.requires_grad_() if differentiated and own.is_floating_point() else own


def _functions(values: list[Tensor]) -> set[str]:
    """Names of the functions with a backward written in Python, among all that some values come from."""
    stack, seen, names = [one.grad_fn for one in values], set(), set()
    while stack:
        function = stack.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        stack += [one for one, _ in function.next_functions]
        if isinstance(function, BackwardCFunction):
            names.add(f"`{type(function).__name__.removesuffix('Backward')}` (a `torch.autograd.Function`)")
    return names


def _close(one: Tensor, other: Tensor, size: float) -> bool:
    """Are two derivatives the same, but for rounding, where the largest of all has some size?"""
    rough = 1e-3 if one.dtype in (torch.float32, torch.float64) else 5e-2
    most = max(float(one.abs().max()), float(other.abs().max())) if one.numel() else 0.0
    return not one.numel() or float((one - other).abs().max()) <= rough * (most + 1e-2 * size)
