"""Damage where each position of an example has a class, as in language models and segmentation.

A plain module, not a notebook: mechanism without a story. The scores of one lesion may be hundreds of millions of
numbers (sequences, times positions, times a vocabulary), so they are looked at in pieces, and what the intact network
says is summed up once, not once a lesion. An example's damage is the mean over its positions that count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specialize_nb.base.targets import IGNORED
from specialize_nb.network.outputs import Dense

__all__ = ["Prepared", "at_positions", "each_position", "prepared", "row_loss", "rows_at_positions"]

_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}  # numbers of scores that are looked at together


def row_loss(
    scores: Tensor,  # (..., r, C) logits
    y: Tensor,  # (r,) int64, the right classes
) -> Tensor:  # (..., r) nats, float64
    """What is the cross-entropy of each row? Exponentials in the type of the scores, their sums in float64.

    Parameters
    ----------
    scores : Tensor
        (..., r, C) logits
    y : Tensor
        (r,) int64, the right classes

    Returns
    -------
    Tensor
        (..., r) nats, float64
    """
    scores = scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
    wide = torch.float32 if scores.device.type == "mps" else torch.float64
    top = scores.amax(-1, keepdim=True)
    total = (scores - top).exp_().sum(-1, dtype=wide).log_()
    index = y.to(scores.device).expand(scores.shape[:-1]).unsqueeze(-1)
    return total + (top - scores.gather(-1, index)).squeeze(-1).to(wide)


class Prepared(NamedTuple):
    """What a measure needs of the intact scores of some examples.

    Attributes
    ----------
    rows : Tensor
        (n, positions, C) intact scores
    y : Tensor
        (R,) classes of the positions that count
    example : Tensor
        (R,) to which each belongs
    place : Tensor
        (R,) where in it
    counted : Tensor
        (n,) float64, how many count in each example
    known : Tensor | None
        (R,) what is known of the intact scores already
    """

    rows: Tensor  # (n, positions, C) intact scores
    y: Tensor  # (R,) classes of the positions that count
    example: Tensor  # (R,) to which each belongs
    place: Tensor  # (R,) where in it
    counted: Tensor  # (n,) float64, how many count in each example
    known: Tensor | None  # (R,) what is known of the intact scores already


def prepared(
    measure: Callable,  # (scores, intact, y) -> damage
    intact: Tensor,  # (n, numbers of an example)
    y: Tensor,  # (n, ...)
) -> Any:  # To be given to it in the place of the intact scores
    """What does a measure need of the intact scores? The scores themselves, unless it can sum them up.

    Parameters
    ----------
    measure : Callable
        (scores, intact, y) -> damage
    intact : Tensor
        (n, numbers of an example)
    y : Tensor
        (n, ...)

    Returns
    -------
    Any
        To be given to it in the place of the intact scores
    """
    return measure.prepared(intact, y) if isinstance(measure, _AtPositions) else intact


def at_positions(
    measure: Callable[[Tensor, Tensor, Tensor], Tensor],  # (scores (g, r, C), intact (r, C), y (r,)) -> (g, r)
    dense: Dense,  # How scores lie
    *,
    of: Callable[[Tensor, Tensor], Tensor] | None = None,  # (scores, y) -> (..., r), if the damage is its rise
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A measure of examples, from one of rows: the mean over the positions that count.

    Parameters
    ----------
    measure : Callable[[Tensor, Tensor, Tensor], Tensor]
        (scores (g, r, C), intact (r, C), y (r,)) -> (g, r)
    dense : Dense
        How scores lie
    of : Callable[[Tensor, Tensor], Tensor] | None, default None
        (scores, y) -> (..., r), if the damage is its rise

    Returns
    -------
    Callable[[Tensor, Tensor, Tensor], Tensor]
    """
    return _AtPositions(measure, dense, of)


def each_position(
    measure: Callable[[Tensor, Tensor, Tensor], Tensor],  # (scores (g, r, C), intact (r, C), y (r,)) -> (g, r)
    dense: Dense,  # How scores lie
    *,
    of: Callable[[Tensor, Tensor], Tensor] | None = None,  # (scores, y) -> (..., r), if the damage is its rise
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:  # (scores, intact, y) -> (g, n, positions)
    """A measure of every position, from one of rows; 0 where a position does not count.

    Parameters
    ----------
    measure : Callable[[Tensor, Tensor, Tensor], Tensor]
        (scores (g, r, C), intact (r, C), y (r,)) -> (g, r)
    dense : Dense
        How scores lie
    of : Callable[[Tensor, Tensor], Tensor] | None, default None
        (scores, y) -> (..., r), if the damage is its rise

    Returns
    -------
    Callable[[Tensor, Tensor, Tensor], Tensor]
        (scores, intact, y) -> (g, n, positions)
    """
    return _EachPosition(measure, dense, of)


@dataclass(frozen=True)
class _AtPositions:
    """A measure of rows, made one of examples; NaN where what is said at a position that counts is no number."""

    measure: Callable[[Tensor, Tensor, Tensor], Tensor]
    dense: Dense
    of: Callable[[Tensor, Tensor], Tensor] | None

    def prepared(self, intact: Tensor, y: Tensor) -> Prepared:
        """What is needed of the intact scores."""
        rows, own = self.dense.rows(intact), y.flatten(1).to(intact.device)
        counts = own != IGNORED
        example, place = counts.nonzero(as_tuple=True)
        found = Prepared(rows, own[example, place], example, place, counts.sum(1), None)
        if self.of is None:
            return found
        return found._replace(known=torch.cat([self.of(rows[e, p], found.y[part]) for part, e, p in _pieces(found, 1)]))

    def __call__(self, scores: Tensor, intact: Tensor | Prepared, y: Tensor) -> Tensor:
        held = intact if isinstance(intact, Prepared) else self.prepared(intact, y)
        found = self._each(scores, held)
        return found.sum(2) / held.counted.to(found.device)

    def _each(self, scores: Tensor, held: Prepared) -> Tensor:
        """(g, n, positions) of every position, 0 where it does not count."""
        rows, total = self.dense.rows(scores), None
        for part, e, p in _pieces(held, len(scores)):
            found = self._of_rows(rows[:, e, p], held, part)
            total = found.new_zeros(*rows.shape[:3]) if total is None else total
            total[:, e.to(total.device), p.to(total.device)] = found
        return total

    def _of_rows(self, after: Tensor, held: Prepared, part: slice) -> Tensor:
        if held.known is None:
            return self.measure(after, held.rows[held.example[part], held.place[part]], held.y[part])
        found = self.of(after, held.y[part]) - held.known[part]
        return torch.where(found.isfinite(), found, torch.nan)


class _EachPosition(_AtPositions):
    """A measure of rows, made one of positions."""

    @property
    def places(self) -> int:
        """Numbers that it gives for an example."""
        return math.prod(self.dense.shape) // self.dense.n_classes

    def __call__(self, scores: Tensor, intact: Tensor | Prepared, y: Tensor) -> Tensor:
        return self._each(scores, intact if isinstance(intact, Prepared) else self.prepared(intact, y))


def _pieces(held: Prepared, n_groups: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Positions that count, as many together as memory allows: which of all they are, their examples and places."""
    most = _AT_ONCE.get(held.rows.device.type, _AT_ONCE["cuda"])
    size = max(1, most // (n_groups * held.rows.shape[-1]))
    for start in range(0, len(held.example), size):
        part = slice(start, start + size)
        yield part, held.example[part], held.place[part]


def rows_at_positions(
    scores: Tensor,  # (n, numbers of an example)
    y: Tensor,  # (n, ...) classes
    dense: Dense,  # How scores lie
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:  # (r, C) scores, (r,) classes, (r,) examples, piece by piece
    """The scores of the positions that count, with their classes.

    Parameters
    ----------
    scores : Tensor
        (n, numbers of an example)
    y : Tensor
        (n, ...) classes
    dense : Dense
        How scores lie

    Returns
    -------
    Iterator[tuple[Tensor, Tensor, Tensor]]
        (r, C) scores, (r,) classes, (r,) examples, piece by piece
    """
    held = _AtPositions(lambda *_: None, dense, None).prepared(scores, y)
    for part, e, p in _pieces(held, 1):
        yield held.rows[e, p], held.y[part], e
