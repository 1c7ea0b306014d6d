"""How often do 95% intervals of an effect hold the true one, in the population of images and of random groups?

    python nbs/studies/effect_intervals.py      # about five minutes on one core
    python nbs/studies/effect_intervals.py 50   # studies of each kind, instead of 400

Writes effect_intervals.csv beside this file: a row for each kind of noise,
number of images, number of controls, and effect.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from specialize_nb.stats.effects import bootstrap_weights, effect_replicates, effect_size, percentile_interval

HERE = Path(__file__).resolve().parent
EFFECTS = (0.0, 2.0, 6.0)
N_BOOT, REPLICATED = 200, 199  # draws of images, and how many controls are measured on them
NOISE = 50  # variance of what one image adds to the damage of one group; true damages of random groups have 2


def unit_noise(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """Mean 0, variance 1."""
    if kind == "t3":
        return rng.standard_t(3, shape) / np.sqrt(3)
    if kind == "lognormal":
        return (np.exp(rng.standard_normal(shape)) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
    return rng.standard_normal(shape)


def one_study(rng: np.random.Generator, kind: str, n_images: int, n_controls: int) -> tuple[np.ndarray, ...]:
    """True effects, the last of a random group; and for both intervals, their ends."""
    truth = np.r_[EFFECTS, (rng.gamma(2) - 2) / np.sqrt(2)]
    true = np.r_[2 + np.sqrt(2) * truth, rng.gamma(2, 1, n_controls)]  # random groups: mean 2, variance 2, skewed
    shared, own = unit_noise(rng, kind, (n_images, 1)), unit_noise(rng, kind, (n_images, len(true)))
    images = true * (1 + 0.5 * unit_noise(rng, kind, (n_images, 1))) + np.sqrt(NOISE) * (shared + own)
    m, some = len(truth), len(truth) + min(n_controls, REPLICATED)
    seen = images.mean(0)
    again = bootstrap_weights(n_images, N_BOOT, seed=int(rng.integers(2**31))) @ images[:, :some] / n_images
    moved = again[:, :m] - seen[:m] - (again[:, m:] - seen[m:some]).mean(1, keepdims=True)
    spread = again[:, m:].var(1, ddof=1, keepdims=True) / seen[m:some].var(ddof=1)
    draws = np.repeat(seen[m:, None], m, 1)
    _, sd, effect = effect_size(seen[:m], draws)
    both = effect_replicates(seen[:m], draws, moved, np.repeat(spread, m, 1), seed=int(rng.integers(2**31)))
    return truth, *percentile_interval(both, 0.95), *percentile_interval(effect + moved / sd, 0.95)


def measure(kind: str, n_images: int, n_controls: int, studies: int) -> list[dict]:
    """A row for each true effect, and one for random groups, whose effects differ from study to study."""
    rng = np.random.default_rng((n_images, n_controls, len(kind)))
    truth, low, high, old_low, old_high = np.moveaxis(
        [one_study(rng, kind, n_images, n_controls) for _ in range(studies)], 1, 0
    )
    rows = []
    for i, name in enumerate(["0", "2", "6", "random group"]):
        t, ends = truth[:, i], (low[:, i], high[:, i])
        row = dict(noise=kind, images=n_images, controls=n_controls, effect=name, studies=studies)
        row |= dict(
            coverage=np.mean((ends[0] <= t) & (t <= ends[1])), above=np.mean(t > ends[1]), below=np.mean(t < ends[0])
        )
        row |= dict(excludes_0=np.mean((ends[0] > 0) | (ends[1] < 0)), width=np.median(ends[1] - ends[0]))
        rows.append(row | dict(images_only=np.mean((old_low[:, i] <= t) & (t <= old_high[:, i]))))
    return rows


def main(studies: int) -> None:
    rows = []
    for kind in ("normal", "t3", "lognormal"):
        for n_images in (50, 200, 1000):
            for n_controls in (19, 99, 199, 999):
                rows += measure(kind, n_images, n_controls, studies)
        print(f"{kind} is done", flush=True)
    pd.DataFrame(rows).round(4).to_csv(HERE / "effect_intervals.csv", index=False)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
