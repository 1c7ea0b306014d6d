"""Do the rows of what a layer puts out belong to the examples of the batch, one each, and are they finite?

A plain module, not a notebook: mechanism without a story. The traced program says where examples lie in a value.
A layer that sorts the batch, or lays it out in a way that cannot be read, has rows that are not the examples'. A few
examples in another order show it: the rows of a layer have to come in that order too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from specialize_nb.base.devices import to_model
from specialize_nb.network.subject import Subject
from specialize_nb.network.units import Layer

__all__ = ["NotFinite", "misplaced_layers", "over_finite"]

_FEW = 8  # examples that are tried
_OFF = 1e-4  # of the largest number of a layer


def misplaced_layers(
    subject: Subject,  # Whose layers
) -> tuple[str, ...]:
    """Layers whose rows are not those of the examples, looked at once. A note says so, and what depends on order.

    Two or three passes of at most eight examples. Models that answer at random are not looked at.

    Parameters
    ----------
    subject : Subject
        Whose layers

    Returns
    -------
    tuple[str, ...]
    """
    return subject.once("misplaced rows", lambda: _looked_at(subject))


class _Tried(NamedTuple):
    """A few examples, and what layers put out for them in other orders."""

    x: Any
    n: int
    run: Callable[[Any], dict[str, Tensor]]  # Inputs -> layer -> (n, ...)


def _looked_at(subject: Subject) -> tuple[str, ...]:
    tried = None if subject.network.program.random else _tried(subject)
    if tried is None or tried.n < 2:
        return ()
    try:
        off = _out_of_order(tried)
        misplaced = tuple(name for name in off if not _answers_its_example(tried, name))
    except Exception:  # the pass over all data tells what is wrong with the model, and on which batch
        return ()
    if misplaced:
        told = "the rows are not those of the examples, so that is left out where layers are not named"
        subject.note(f"{_named(misplaced)}: {told}.")
    if order := [name for name in off if name not in misplaced]:
        told = "what comes out for an example depends on its place in the batch and on the other examples there"
        subject.note(f"{_named(order)}: {told}.")
    return misplaced


def _named(names: Any) -> str:
    listed = ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"Layer{'s' * (len(names) > 1)} {listed}"


def _tried(subject: Subject) -> _Tried | None:
    """The first examples; the whole first batch if the model does not take fewer."""
    program = subject.network.program
    layers = [layer for layer in subject.network.layers if layer.kind != "input"]
    names = [layer.name for layer in layers if program.layouts[layer.site].axis is not None]
    x, y = next(iter(subject.data))

    @torch.no_grad()
    def run(x: Any) -> dict[str, Tensor]:
        return subject.network.activations(to_model(x, subject.model), names)

    for n in dict.fromkeys((min(_FEW, len(y)), len(y))):
        few = pytree.tree_map(lambda one, n=n: one[:n], x)
        try:
            run(few)
        except Exception:  # then with all of them, or not at all
            continue
        return _Tried(few, n, run)
    return None


def _out_of_order(tried: _Tried) -> list[str]:
    """Layers whose rows do not follow when the examples change places."""
    order = torch.randperm(tried.n, generator=torch.Generator().manual_seed(0))
    order = order.flip(0) if bool((order == torch.arange(tried.n)).all()) else order
    before, after = tried.run(tried.x), tried.run(_picked(tried.x, order))
    right = [name for name, one in before.items() if len(one) == tried.n]
    off = [name for name in right if not _near(before[name][order.to(before[name].device)], after[name])]
    again = tried.run(tried.x) if off else {}
    return [name for name in off if _near(before[name], again[name])]  # the others are random


def _answers_its_example(tried: _Tried, name: str) -> bool:
    """Does each row of a layer change if its own example does, and do rows differ as examples do?"""
    before, order = tried.run(tried.x)[name], torch.arange(tried.n).flip(0)
    if _near(before, tried.run(_picked(tried.x, order))[name]):
        return False  # the same rows in whatever order the examples come
    for row in range(min(tried.n, 4)):
        other = torch.arange(tried.n)
        other[row] = (row + 1) % tried.n
        after = tried.run(_picked(tried.x, other))[name]
        changed = [not _near(*pair) for pair in zip(before, after, strict=True)]
        if any(changed) and not changed[row]:
            return False
    return True


def _picked(x: Any, order: Tensor) -> Any:
    return pytree.tree_map(lambda one: one[order.to(one.device)], x)


def _near(a: Tensor, b: Tensor) -> bool:
    """Are they the same but for rounding?"""
    if a.shape != b.shape:
        return False
    wide = torch.float64 if a.device.type != "mps" else torch.float32
    a, b = (one.abs() if one.is_complex() else one for one in (a, b))
    size = float(a.to(wide).nan_to_num(0, 0, 0).abs().max()) if a.numel() else 0.0
    coarse = a.is_floating_point() and torch.finfo(a.dtype).eps > 1e-6
    off = (100 if coarse else 1) * _OFF * size
    return torch.allclose(a.to(wide), b.to(wide), rtol=0, atol=off, equal_nan=True)


# Rows of finite numbers


class NotFinite(ValueError):
    """Layers put out NaN or infinite numbers.

    Parameters
    ----------
    bad : Mapping[str, int]
        layer -> the first example that it does so for
    """

    def __init__(self, bad: Mapping[str, int]):  # layer -> the first example that it does so for
        self.bad = dict(bad)
        told = ", ".join(f"{name!r} for example {first}" for name, first in self.bad.items())
        advice = "leave out these layers or examples, or mend the model"
        super().__init__(f"activations hold NaN or infinite numbers, of layer {told}: {advice}")


T = TypeVar("T")


def over_finite(
    subject: Subject,  # Whose layers
    layers: Sequence[Layer],  # Those that are read
    named: Collection[str] | None,  # Those of them that must be there; None: none must
    run: Callable[[tuple[Layer, ...]], T],  # Reads layers; raises `NotFinite` for some of them
    *,
    least: int = 1,  # Layers that must be left
) -> tuple[tuple[Layer, ...], T]:  # The layers that could be read, and what `run` found of them
    """What does `run` find, without layers that put out NaN or infinite numbers? A note says which.

    Parameters
    ----------
    subject : Subject
        Whose layers
    layers : Sequence[Layer]
        Those that are read
    named : Collection[str] | None
        Those of them that must be there; None: none must
    run : Callable[[tuple[Layer, ...]], T]
        Reads layers; raises `NotFinite` for some of them
    least : int, default 1
        Layers that must be left

    Returns
    -------
    tuple[tuple[Layer, ...], T]
        The layers that could be read, and what `run` found of them

    Raises: `NotFinite` if one of them must be there, or if too few are left.
    """
    while True:
        try:
            return tuple(layers), run(tuple(layers))
        except NotFinite as error:
            places = subject.data.places
            bad = {name: first if places is None else int(places[first]) for name, first in error.bad.items()}
            layers = [layer for layer in layers if layer.name not in bad]
            if len(layers) < least or set(named or ()) & set(bad):
                raise NotFinite(bad) from error
            for name, first in bad.items():
                told = f"it puts out NaN or infinite numbers, first for example {first}"
                subject.note(f"Layer {name!r} is left out of activations: {told}.")
