"""Simultaneous bounds of true findings, and tests of harmlessness: how often they are wrong, and how much they find.

    python nbs/studies/discoveries.py               # both tables: about 5 minutes on one core
    python nbs/studies/discoveries.py bounds        # one of them: bounds, equivalence
    python nbs/studies/discoveries.py equivalence

Writes discoveries_bounds.csv and discoveries_equivalence.csv beside this file. Seeds are fixed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from specialize_nb.stats.discoveries import true_discoveries
from specialize_nb.stats.effects import bootstrap_weights
from specialize_nb.stats.equivalence import equivalent
from specialize_nb.stats.many import max_t

HERE = Path(__file__).resolve().parent
N_BOOT = 200
LAWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "normal": lambda z: z,
    "lognormal": lambda z: np.exp(0.8 * z) / (np.exp(0.32) * np.sqrt(np.exp(0.64) - 1)),
    "t2": lambda z: stats.t.ppf(stats.norm.cdf(z), 2) / 3,
    "ties": lambda z: np.round(z),
}
DAMAGES: dict[str, tuple[Callable[..., np.ndarray], float]] = {  # law of the damage of an image, and its mean
    "normal": (lambda rng, s: rng.standard_normal(s), 0.0),
    "exponential": (lambda rng, s: rng.exponential(size=s), 1.0),
    "t3": (lambda rng, s: rng.standard_t(3, s), 0.0),
    "lognormal, sigma 1": (lambda rng, s: rng.lognormal(0, 1, s), np.exp(0.5)),
    "lognormal, sigma 1.5": (lambda rng, s: rng.lognormal(0, 1.5, s), np.exp(1.125)),
    "one image in ten": (lambda rng, s: (rng.random(s) < 0.1) * rng.exponential(10, s), 1.0),
    "accuracy": (lambda rng, s: (rng.random(s) < 0.06) * 1.0 - (rng.random(s) < 0.05), 0.01),
}


def table(rng: np.random.Generator, law: str, share: float, shift: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(m,) values and (n, m) draws; a factor has this share of the variance of each row."""
    z = np.sqrt(1 - share) * rng.standard_normal((1 + n, len(shift)))
    rows = LAWS[law](z + np.sqrt(share) * rng.standard_normal((1 + n, 1)))
    rows[0] += shift
    return rows[0], rows[1:]


def bounds(studies: int = 1000) -> Iterator[dict]:
    """How often any bound is wrong, how many findings are vouched for, and how many max-T names."""
    for law in LAWS:
        for share in (0.0, 0.7):
            for m, real, sd in ((12, 0, 0.0), (12, 1, 4.0), (12, 7, 2.0), (12, 7, 4.0), (46, 0, 0.0), (46, 20, 3.0)):
                for n in (199, 999) if m == 12 else (199,):
                    yield one_bound(np.random.default_rng(m + n + real), law, share, (m, real, sd, n), studies)


def one_bound(
    rng: np.random.Generator, law: str, share: float, case: tuple[int, int, float, int], studies: int
) -> dict:
    m, real, sd, n = case
    shift, counts = np.r_[np.full(real, sd), np.zeros(m - real)], []
    for _ in range(studies):
        value, draws = table(rng, law, share, shift, n)
        found = true_discoveries(value, draws)
        named = max_t(value, draws) <= 0.05
        wrong = found.at_least(range(real, m)) > 0
        counts.append([wrong, found.at_least(range(real)), found.alone[:real].sum(), named[:real].sum()])
    mean = np.mean(counts, axis=0).round(4)
    row = dict(law=law, factor=share, groups=m, real=real, sd=sd, draws=n, studies=studies)
    return row | dict(zip(("any_wrong", "at_least", "alone", "max_t"), mean, strict=True))


def equivalence(studies: int = 3000) -> Iterator[dict]:
    """How often is a damage called harmless that is exactly delta, or five standard errors less, by three tests?"""
    for law, (draw, mean) in DAMAGES.items():
        for n in (50, 200, 1_000):
            rng, at_delta, below = np.random.default_rng(n), [], []
            for block in range(studies // 100):
                damages = draw(rng, (n, 100)) - mean
                weights = bootstrap_weights(n, N_BOOT, seed=int(rng.integers(2**31)) + block)
                value, replicates, error = damages.mean(0), weights @ damages / n, damages.std() / np.sqrt(n)
                at_delta.append(tests(value, replicates, n))
                below.append(tests(value - 5 * error, replicates - 5 * error, n))
            wrong, right = ((pd.concat(some) <= 0.05).mean().round(4) for some in (at_delta, below))
            for test in wrong.index:
                yield dict(law=law, images=n, test=test, studies=studies, wrong=wrong[test], right=right[test])


def tests(excess: np.ndarray, replicates: np.ndarray, n: int) -> pd.DataFrame:
    """p-values of a damage of delta or more, of three tests, by what the damage is in excess of delta."""
    spread = np.maximum(replicates.std(0, ddof=1), 1e-12)
    return pd.DataFrame(
        {
            "here": equivalent(excess + 1, replicates + 1, delta=1).p_values,
            "t": stats.t.cdf(excess / spread, n - 1),
            "percentiles": (1 + (replicates >= 0).sum(0)) / (1 + len(replicates)),
        }
    )


def main(words: list[str]) -> None:
    for name, rows in {"bounds": bounds, "equivalence": equivalence}.items():
        if not words or name in words:
            pd.DataFrame(rows()).to_csv(HERE / f"discoveries_{name}.csv", index=False)


if __name__ == "__main__":
    main(sys.argv[1:])
