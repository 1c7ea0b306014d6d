"""Equal groups are lesioned once: what a lesion of some units of a layer cost does not depend on who asks.

A plain module, not a notebook. Two ways to cluster may find the same group, a sub-cluster is compared with two kinds
of controls, and in a small layer random groups come again and again. `Known.share` says which of the lesions that are
asked for have to be done, and hands out what they cost. The page of `lesions.importance` shows what that spares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = ["Known", "Shared", "Wanted"]

_MOST = 2**26  # bytes of what is kept of earlier lesions

Costs = Mapping[str, np.ndarray]  # Outcome -> (n_groups, 1 or 1 + n_boot)


class Wanted(NamedTuple):
    """Groups of one layer whose lesions are asked for.

    Attributes
    ----------
    layer : str
        Where they are
    groups : np.ndarray
        (n_groups, n_units) bool, True where a unit is silenced
    replicates : bool
        Also on the bootstrap draws?
    again : np.ndarray
        (n_groups,) bool: is it of so few that later ones will be equal to it?
    """

    layer: str  # Where they are
    groups: np.ndarray  # (n_groups, n_units) bool, True where a unit is silenced
    replicates: bool  # Also on the bootstrap draws?
    again: np.ndarray  # (n_groups,) bool: is it of so few that later ones will be equal to it?


class _Kept(NamedTuple):
    """Lesions of an earlier look."""

    packed: np.ndarray  # (n_groups, bytes) uint8, a bit a unit
    costs: Costs
    replicates: bool


class Known:
    """What lesions have cost so far, of groups that are likely to be asked for again.

    Parameters
    ----------
    most : int, default _MOST
        Bytes that may be kept; what does not fit is lesioned again where it is asked for again
    """

    def __init__(
        self,
        most: int = _MOST,  # Bytes that may be kept; what does not fit is lesioned again where it is asked for again
    ):
        self.most, self.n_bytes = most, 0
        self.n_asked = self.n_lesioned = 0  # Lesions so far: asked for, and done
        self._kept: dict[str, list[_Kept]] = {}

    def share(
        self,
        wanted: Sequence[Wanted],  # All that are asked for at a time
    ) -> Shared:
        """Which of these lesions have to be done?

        Parameters
        ----------
        wanted : Sequence[Wanted]
            All that are asked for at a time

        Returns
        -------
        Shared
        """
        sources: list = [None] * len(wanted)
        for layer in dict.fromkeys(one.layer for one in wanted):
            mine = [i for i, one in enumerate(wanted) if one.layer == layer]
            for i, source in zip(mine, self._sources(layer, [wanted[i] for i in mine], mine), strict=True):
                sources[i] = source
        return Shared(known=self, wanted=tuple(wanted), sources=tuple(sources))

    def _sources(self, layer: str, wanted: Sequence[Wanted], places: Sequence[int]) -> list[np.ndarray]:
        """For each request of a layer, (n_groups, 2): which request, or if negative which of those kept, and the row.

        What has replicates stands before what has none, so that the first of all equal ones has what each of them asks.
        """
        kept = [(-1 - k, one.replicates, one.packed) for k, one in enumerate(self._kept.get(layer, ()))]
        asked = [(i, one.replicates, _packed(one.groups)) for i, one in zip(places, wanted, strict=True)]
        parts = sorted([*kept, *asked], key=lambda part: not part[1])
        rows = np.concatenate([packed for _, _, packed in parts])
        owner = np.concatenate([np.full(len(packed), place) for place, _, packed in parts])
        row = np.concatenate([np.arange(len(packed)) for _, _, packed in parts])
        _, first, which = np.unique(_as_words(rows), return_index=True, return_inverse=True)
        source = np.stack([owner, row], axis=1)[first[which.ravel()]]
        return [source[owner == place] for place in places]

    def cost_of(
        self,
        layer: str,  # Where
        place: int,  # Negative, as `_sources` gives it
    ) -> Costs:
        """What was kept of some lesions.

        Parameters
        ----------
        layer : str
            Where
        place : int
            Negative, as `_sources` gives it

        Returns
        -------
        Costs
        """
        return self._kept[layer][-1 - place].costs

    def keep(
        self,
        wanted: Wanted,  # Of which some were lesioned
        rows: np.ndarray,  # (n,) those of them
        costs: Costs,  # Of these n
    ) -> None:
        """Count what was lesioned, and keep what is likely to come again, as far as there is room.

        Parameters
        ----------
        wanted : Wanted
            Of which some were lesioned
        rows : np.ndarray
            (n,) those of them
        costs : Costs
            Of these n
        """
        self.n_asked, self.n_lesioned = self.n_asked + len(wanted.groups), self.n_lesioned + len(rows)
        likely = wanted.again[rows]
        packed = _packed(wanted.groups[rows[likely]])
        size = packed.nbytes + sum(one[likely].nbytes for one in costs.values())
        if likely.any() and self.n_bytes + size <= self.most:
            own = {name: one[likely] for name, one in costs.items()}
            self._kept.setdefault(wanted.layer, []).append(_Kept(packed, own, wanted.replicates))
            self.n_bytes += size


@dataclass(frozen=True, eq=False, kw_only=True)
class Shared:
    """Lesions that are asked for, and from where the cost of each is had; made by `Known.share`.

    Attributes
    ----------
    known : Known
        What came before
    wanted : tuple[Wanted, ...]
        What is asked for
    sources : tuple[np.ndarray, ...]
        For each, (n_groups, 2): which request, or if negative which of those kept, and
    """

    known: Known  # What came before
    wanted: tuple[Wanted, ...]  # What is asked for
    sources: tuple[np.ndarray, ...]  # For each, (n_groups, 2): which request, or if negative which of those kept, and
    # the row there

    @property
    def due(self) -> list[np.ndarray]:
        """For each request, (n,) rows that have to be lesioned: of equal ones the first, if it is not known."""
        return [
            np.flatnonzero((source == np.stack([np.full(len(source), i), np.arange(len(source))], axis=1)).all(1))
            for i, source in enumerate(self.sources)
        ]

    def told(
        self,
        measured: Sequence[Costs],  # For each request the costs of what was due, nothing where nothing was
    ) -> Iterator[dict[str, np.ndarray]]:  # For each: outcome -> (n_groups, 1 or 1 + n_boot)
        """What does each lesion cost? Those that were done are counted, and kept where they are likely to come again.

        Parameters
        ----------
        measured : Sequence[Costs]
            For each request the costs of what was due, nothing where nothing was

        Returns
        -------
        Iterator[dict[str, np.ndarray]]
            For each: outcome -> (n_groups, 1 or 1 + n_boot)
        """
        due = self.due
        for wanted, rows, costs in zip(self.wanted, due, measured, strict=True):
            self.known.keep(wanted, rows, costs)
        return (self._joined(*one, due, measured) for one in zip(self.wanted, self.sources, strict=True))

    def _joined(
        self, wanted: Wanted, source: np.ndarray, due: Sequence[np.ndarray], measured: Sequence[Costs]
    ) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for place in np.unique(source[:, 0]):
            mine = source[:, 0] == place
            costs = self.known.cost_of(wanted.layer, place) if place < 0 else measured[place]
            rows = source[mine, 1] if place < 0 else np.searchsorted(due[place], source[mine, 1])
            for name, one in costs.items():
                own = one[rows] if wanted.replicates else one[rows, :1]
                found.setdefault(name, np.empty((len(source), own.shape[1])))[mine] = own
        return found


def _packed(groups: np.ndarray) -> np.ndarray:
    """(n_groups, bytes) uint8."""
    return np.packbits(groups, axis=1)


def _as_words(packed: np.ndarray) -> np.ndarray:
    """(n_groups,) the bytes of each as one thing that can be compared."""
    return np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
