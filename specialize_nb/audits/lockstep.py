"""Lesions and coherence of several partitions, drawn look by look as the lists of one audit.

A plain module, not a notebook. The design says when to look. At each look the tests that are open get their controls,
equal groups lesioned once, and then all of them are asked together which go on: those beside matched groups as a list
of their own, those of both kinds of evidence for their two lists and the list of what is on both. The pages of
`stats.sequential` and `stats.many` tell the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base.devices import in_threads
from ..lesions.importance import Trial, grow_tallies, steer
from ..responses.coherence import CoherenceTally
from ..stats.sequential import Sequential, Standing, undecided, undecided_pairs

__all__ = ["measure_together"]


def measure_together(
    trial: Trial,  # Lesions of some partitions; filled with what is measured
    agreements: Mapping[int, Sequence[CoherenceTally]],  # Partition of the trial, from 0 -> its layers; filled as well
    *,
    progress: bool = False,  # Show a progress bar?
) -> dict[CoherenceTally, Exception]:  # What could not be measured of the coherence, and why
    """What do lesions cost, and how far do groups agree? All partitions go look by look until every verdict is clear.

    Keys of `agreements` beyond the partitions of the trial are of partitions without lesions. Parts of it that fail are
    left where they stopped.

    Parameters
    ----------
    trial : Trial
        Lesions of some partitions; filled with what is measured
    agreements : Mapping[int, Sequence[CoherenceTally]]
        Partition of the trial, from 0 -> its layers; filled as well
    progress : bool, default False
        Show a progress bar?

    Returns
    -------
    dict[CoherenceTally, Exception]
        What could not be measured of the coherence, and why

    Raises: what a lesion raises.
    """
    failed: dict[CoherenceTally, Exception] = {}
    design = trial.options.design
    for n in trial.options.looks:
        grow_tallies(trial, n, progress=progress)
        open_ones = [one for some in agreements.values() for one in some if one not in failed]
        title = "coherence" if progress else ""
        errors = in_threads(lambda one, n=n: _grown(one, n), open_ones, CoherenceTally.threads_of(open_ones), title)
        failed |= {one: error for one, error in zip(open_ones, errors, strict=True) if error is not None}
        if design is not None:
            _steer_all(trial, _steering(agreements, failed), design)
    return failed


def _grown(one: CoherenceTally, n: int) -> Exception | None:
    """Why a layer's groups cannot be measured; None if they could."""
    options = one.work.options
    try:
        one.grow(n if options.steers else options.looks[-1])
    except Exception as error:  # of whatever kind: the other layers go on, and the reason is told
        one.going = np.zeros_like(one.going)
        return error
    return None


def _steering(
    agreements: Mapping[int, Sequence[CoherenceTally]], failed: Mapping[CoherenceTally, Exception]
) -> dict[int, list[CoherenceTally]]:
    """Those whose main outcome says when to stop."""
    return {i: [one for one in some if one.work.options.steers and one not in failed] for i, some in agreements.items()}


@dataclass(frozen=True, eq=False)
class _Part:
    """Some tests of one kind: which sub-clusters they are of, where they stand, and what says that they go on."""

    owner: Any  # With a mark for each test, `going`
    keys: list[tuple[int, str, int]]  # Partition, layer, cluster
    standing: Standing


def _steer_all(trial: Trial, agreements: Mapping[int, Sequence[CoherenceTally]], design: Sequential) -> None:
    """Ask all tests together which go on."""
    plain, *matched = trial.lists or [()]
    for tallies in matched:
        steer(tallies, undecided(trial.standing(tallies), design))
    first, second = list(_lesioned(trial, plain)), list(_agreeing(agreements))
    keys = list(dict.fromkeys(key for part in (*first, *second) for key in part.keys))
    if not keys:
        return
    place = {key: i for i, key in enumerate(keys)}
    going = undecided_pairs(_spread(first, place, design), _spread(second, place, design), design)
    for parts, goes in zip((first, second), going, strict=True):
        for part in parts:
            part.owner.going = goes[[place[key] for key in part.keys]]


def _lesioned(trial: Trial, tallies: Sequence[Any]) -> Iterator[_Part]:
    for i, tally in enumerate(tallies):
        keys = [(i, sub.layer, sub.cluster) for sub in tally.subclusters]
        if keys:
            yield _Part(tally, keys, trial.standing([tally]))


def _agreeing(agreements: Mapping[int, Sequence[CoherenceTally]]) -> Iterator[_Part]:
    for i, some in agreements.items():
        for one in some:
            yield _Part(one, [(i, one.layer, cluster) for cluster in one.clusters], one.standing())


def _spread(parts: Sequence[_Part], place: Mapping[tuple[int, str, int], int], design: Sequential) -> Standing:
    """Tests at the places of their sub-clusters; a sub-cluster without one has no hope."""
    counts = np.full((len(design.looks), len(place)), np.nan)
    n_drawn, hopeless = np.zeros(len(place), dtype=np.int64), np.ones(len(place), dtype=bool)
    for part in parts:
        at = [place[key] for key in part.keys]
        counts[:, at], n_drawn[at], hopeless[at] = (
            part.standing.counts,
            part.standing.n_drawn,
            part.standing.hopeless,
        )
    return Standing(counts=counts, n_drawn=n_drawn, hopeless=hopeless)
