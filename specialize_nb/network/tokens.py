"""What layers put out at each position of a sequence or a map, and which token stands there.

A plain module, not a notebook: mechanism without a story. A language model answers at every position, and so does a
network that says a class of every pixel. `answers_at` reads these answers, at the positions that count, a row each;
`tokens_of` finds the tokens among the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specialize_nb.base.devices import to_model
from specialize_nb.network.inputs import named_inputs, naming_batch, places_that_count
from specialize_nb.network.rows import NotFinite, misplaced_layers
from specialize_nb.network.subject import Subject
from specialize_nb.network.units import Layer

__all__ = [
    "Answers",
    "all_tokens",
    "answers_at",
    "has_tokens",
    "next_tokens",
    "positions_of",
    "tokens_of",
    "values_at",
]

_NO_TOKENS = ("mask", "type", "position", "length")  # in the names of inputs of whole numbers that are no tokens
_ROWS = 2**13  # positions whose answers are read, of all examples together
_KEPT = 2**30  # bytes of answers that are kept at a time


def tokens_of(
    subject: Subject,  # Whose inputs
    x: Any,  # The inputs of a batch
) -> Tensor:  # (n, positions) whole numbers
    """Which token stands at each position?

    Parameters
    ----------
    subject : Subject
        Whose inputs
    x : Any
        The inputs of a batch

    Returns
    -------
    Tensor
        (n, positions) whole numbers

    Raises: `ValueError` if no input, or more than one, holds whole numbers for each position.
    """
    given = named_inputs(subject.model, x)
    whole = [name for name, one in given.items() if one.ndim == 2 and one.dtype in (torch.int64, torch.int32)]
    whole = [name for name in whole if not any(part in name.lower() for part in _NO_TOKENS)]
    if len(whole) != 1 and "input_ids" not in whole:
        raise ValueError(f"the inputs {list(given)} hold no tokens (n, positions) of whole numbers")
    return given["input_ids" if "input_ids" in whole else whole[0]]


def has_tokens(
    subject: Subject,  # Whose inputs
) -> bool:
    """Are there tokens among the inputs?

    Parameters
    ----------
    subject : Subject
        Whose inputs

    Returns
    -------
    bool
    """
    try:
        return tokens_of(subject, subject.data.example).shape[1] > 1
    except ValueError:
        return False


def all_tokens(
    subject: Subject,  # Whose inputs
) -> np.ndarray:  # (n, positions) int64, read-only
    """Which token stands at each position of each example? Read once.

    Parameters
    ----------
    subject : Subject
        Whose inputs

    Returns
    -------
    np.ndarray
        (n, positions) int64, read-only
    """

    def read() -> np.ndarray:
        found = np.concatenate([tokens_of(subject, x).cpu().numpy() for x, _ in subject.data]).astype(np.int64)
        found.setflags(write=False)
        return found

    return subject.once("tokens", read)


def next_tokens(
    subject: Subject,  # Whose inputs
) -> tuple[np.ndarray, np.ndarray]:  # (n, positions) int64, and bool: True where a next position counts
    """Which token stands at the position after each one?

    Parameters
    ----------
    subject : Subject
        Whose inputs

    Returns
    -------
    tuple[np.ndarray, np.ndarray]
        (n, positions) int64, and bool: True where a next position counts
    """
    counted = np.concatenate([_counted(subject, x, len(y)) for x, y in subject.data])
    last = np.zeros((len(counted), 1), dtype=bool)
    known = np.concatenate([counted[:, 1:] & counted[:, :-1], last], axis=1)
    return np.roll(all_tokens(subject), -1, axis=1), known


def _counted(subject: Subject, x: Any, n: int) -> np.ndarray:
    """(n, positions) bool, which positions of a batch count, flattened."""
    sizes = positions_of(subject)
    own = places_that_count((n, *sizes), -1, subject.counts(x))
    return np.ones((n, math.prod(sizes)), dtype=bool) if own is None else own.cpu().numpy()


def positions_of(
    subject: Subject,  # Whose data
) -> tuple[int, ...]:  # Such as (length,) or (height, width); () if there are none
    """How many positions does an example have? Those of its tokens, or of targets at positions.

    Parameters
    ----------
    subject : Subject
        Whose data

    Returns
    -------
    tuple[int, ...]
        Such as (length,) or (height, width); () if there are none
    """
    if has_tokens(subject):
        return tuple(tokens_of(subject, subject.data.example).shape[1:])
    return tuple(subject.data.labels.shape[1:]) if subject.task == "dense" else ()


@dataclass(frozen=True, eq=False)
class Answers:
    """What the units of a layer answer at positions, a row each; those of an example stand together, in order.

    Attributes
    ----------
    values : np.ndarray
        (r, n_units) float32
    example : np.ndarray
        (r,) int64, to which each row belongs
    place : np.ndarray
        (r,) int64, where in it, positions in one row
    """

    values: np.ndarray  # (r, n_units) float32
    example: np.ndarray  # (r,) int64, to which each row belongs
    place: np.ndarray  # (r,) int64, where in it, positions in one row

    def beside(
        self,
        order: np.ndarray,  # (n,) whose answers stand beside each example's positions
    ) -> Answers:
        """The positions of each example with the answers of another one, first to first and so on.

        Parameters
        ----------
        order : np.ndarray
            (n,) whose answers stand beside each example's positions

        Returns
        -------
        Answers
        """
        n = np.bincount(self.example, minlength=len(order))
        starts = np.cumsum(n) - n
        both = [np.arange(min(n[i], n[other])) for i, other in enumerate(order)]
        own = np.concatenate([starts[i] + some for i, some in enumerate(both)])
        theirs = np.concatenate([starts[other] + some for other, some in zip(order, both, strict=True)])
        return Answers(self.values[theirs], self.example[own], self.place[own])


def answers_at(
    subject: Subject,  # Whose answers
    layer: str,  # Its name
) -> Answers | None:  # None: the layer has no answer at each position
    """What does every unit of a layer put out at the positions that count? Computed once, while it is kept.

    Of long data some positions of each example are taken, the same ones each time, and a note says so. Where a map has
    other sides than the targets, each of its positions stands for the target in its middle.

    Parameters
    ----------
    subject : Subject
        Whose answers
    layer : str
        Its name

    Returns
    -------
    Answers | None
        None: the layer has no answer at each position

    Raises: `KeyError` for a layer the network does not have; `ValueError` for one that puts out NaN or infinite
    numbers, or rows that are not those of the examples.
    """
    kept: dict[str, Answers | None] = subject.once("answers at positions", dict)
    if layer not in kept:
        found = _recorded(subject, _together(subject, layer))
        kept.clear()
        kept |= found
    return kept[layer]


def values_at(
    subject: Subject,  # Whose answers
    layers: Sequence[str],  # Names
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:  # Layer -> (n, positions, n_units); (n, positions) which ones count
    """Batch by batch: what does every unit put out at every position?

    Parameters
    ----------
    subject : Subject
        Whose answers
    layers : Sequence[str]
        Names

    Returns
    -------
    Iterator[tuple[dict[str, Tensor], Tensor]]
        Layer -> (n, positions, n_units); (n, positions) which ones count

    Raises: `KeyError` for a layer the network does not have; `ValueError` for one without an answer at each position.
    """
    sizes = positions_of(subject)
    maps = {name: _map(subject.network.layer(name), sizes) for name in layers}
    for name, lies in maps.items():
        if lies is None or len(lies.places) != math.prod(sizes):
            told = f"layer {name!r} puts out {subject.network.layer(name).shape} for an example"
            lack = f"of {' x '.join(map(str, sizes))} positions: it has no answer at each of them"
            raise ValueError(f"{told} {lack}; name other layers")
    for _, values, counted in _batches(subject, list(layers)):
        found = {name: _laid(value, maps[name]) for name, value in values.items()}
        device = next(iter(found.values())).device if found else None
        yield found, torch.as_tensor(counted, device=device)


def _together(subject: Subject, layer: str) -> list[Layer]:
    """This layer, and the hidden ones after it, as many as may be kept."""
    layers = list(subject.network.layers)
    first = subject.network.layer(layer)
    hidden, skipped = set(subject.network.hidden), misplaced_layers(subject)
    later = [one for one in layers[layers.index(first) + 1 :] if one.name in hidden and one.name not in skipped]
    rows = max(_ROWS, subject.data.n)
    chosen, left = [first], _KEPT - 4 * rows * first.n_units
    for one in later:
        left -= 4 * rows * one.n_units
        if left < 0:
            break
        chosen.append(one)
    return chosen


@dataclass(frozen=True)
class _Map:
    """How the answers of a layer lie: its axes in the order examples, positions, others, units."""

    order: tuple[int, ...]
    n_axes: int  # of positions
    places: np.ndarray  # (its positions,) which of the data's positions each stands for


def _map(layer: Layer, sizes: tuple[int, ...]) -> _Map | None:
    """None if no axes of the layer count the positions of the data."""
    shape = (0, *layer.shape)
    axes = [axis for axis in range(1, len(shape)) if axis != layer.unit_dim]
    if len(sizes) == 1:
        own = [axis for axis in axes if shape[axis] == sizes[0]][:1]
    else:
        own = axes if len(axes) == len(sizes) else []
    if not own:
        return None
    rest = [axis for axis in axes if axis not in own]
    nearest = [_middles(shape[axis], size) for axis, size in zip(own, sizes, strict=True)]
    places = np.ravel_multi_index(np.meshgrid(*nearest, indexing="ij"), sizes).ravel()
    return _Map((0, *own, *rest, layer.unit_dim), len(own), places)


def _middles(n: int, size: int) -> np.ndarray:
    """(n,) the middle, among `size` places, of each of n equal parts of them."""
    return ((np.arange(n) + 0.5) * size / n).astype(np.int64)


def _recorded(subject: Subject, layers: Sequence[Layer]) -> dict[str, Answers | None]:
    """The answers of layers at the positions that count, in one pass; of the first layer they must be finite."""
    maps = {one.name: _map(one, positions_of(subject)) for one in layers}
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name, lies in maps.items() if lies is not None}
    bad: set[str] = set()
    for start, values, counted in _batches(subject, list(parts)):
        for name in parts:
            rows, example, place = _rows(values[name], counted, maps[name], start, subject.data.n)
            if not np.isfinite(rows).all():
                bad.add(name)
                if name == layers[0].name:
                    raise NotFinite({name: int(example[~np.isfinite(rows).all(1)][0])})
            parts[name].append((rows, example, place))
    _note_chosen(subject, {name: maps[name] for name in parts})
    whole = {name: Answers(*map(np.concatenate, zip(*some, strict=True))) for name, some in parts.items()}
    return {one.name: whole.get(one.name) for one in layers if one.name not in bad}


@torch.no_grad()
def _batches(subject: Subject, names: list[str]) -> Iterator[tuple[int, dict[str, Tensor], np.ndarray]]:
    """The place of each batch's first example, what layers put out, and (n, positions) which positions count."""
    start = 0
    for i, (x, y) in enumerate(subject.data if names else ()):
        with naming_batch(subject.model, i, x):
            values = subject.network.activations(to_model(x, subject.model), names, at="site")
        for name, value in values.items():
            if len(value) != len(y):
                found = f"layer {name!r} puts out {tuple(value.shape)} for {len(y)} examples"
                raise ValueError(f"{found}: its first axis is not the batch, so name other layers")
        yield start, values, _counted(subject, x, len(y))
        start += len(y)


def _laid(value: Tensor, lies: _Map) -> Tensor:
    """(n, positions, units); of what else an answer has, such as the numbers of a head, the mean."""
    value = value.permute(lies.order).flatten(1, lies.n_axes)
    return value.flatten(2, -2).mean(2) if value.ndim > 3 else value


def _rows(value: Tensor, counted: np.ndarray, lies: _Map, start: int, n: int) -> tuple[np.ndarray, ...]:
    """(r, units) answers of a batch, and the example and place of each."""
    value = _laid(value, lies)
    chosen = _chosen(counted[:, lies.places], start, max(1, _ROWS // n))
    example, own = np.nonzero(chosen)
    rows = value[torch.as_tensor(example), torch.as_tensor(own)].float().cpu().numpy()
    return rows, example + start, lies.places[own]


def _chosen(counted: np.ndarray, start: int, most: int) -> np.ndarray:
    """Of those that count, so many of each example, drawn at random with the example's place as the seed."""
    if counted.shape[1] <= most:
        return counted
    found = np.zeros_like(counted)
    for i, own in enumerate(counted):
        some = np.flatnonzero(own)
        drawn = np.random.default_rng((0, start + i)).permutation(some)[:most]
        found[i, drawn] = True
    return found


def _note_chosen(subject: Subject, maps: dict[str, _Map]) -> None:
    most, sizes = max(1, _ROWS // subject.data.n), positions_of(subject)
    if any(len(lies.places) > most for lies in maps.values()):
        subject.note(f"Of answers at positions, {most:,} of each example are looked at, drawn at random.")
    other = [name for name, lies in maps.items() if len(lies.places) != math.prod(sizes)]
    if other:
        named = ", ".join(map(repr, other[:4])) + (f" and {len(other) - 4} more" if len(other) > 4 else "")
        told = "each of its positions stands for the one in its middle"
        subject.note(f"Maps of layers {named} have other sides than {' x '.join(map(str, sizes))}: {told}.")
