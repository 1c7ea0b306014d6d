"""How often do tests that find nothing say that they do? Writes level_*.csv beside this file.

    python nbs/studies/level.py [matching|layers|interactions ...]

Parts are those named, all by default; each writes its table anew.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from specialize_nb import Partition, digits, fit, interactions, layer_groups, mlp, trace
from specialize_nb.controls.controls import draw_controls
from specialize_nb.controls.matching import evened, strata, strengths
from specialize_nb.stats.tests import p_values, passes_level

HERE = Path(__file__)

# Matched controls -------------------------------------------------------------------------------------------------

N_DRAWS = 20_000
DAMAGES: dict[str, Callable] = {  # What a unit costs: a function of its contribution, and noise
    "contribution + noise": lambda c, e: c + 0.3 * e,
    "contribution x noise": lambda c, e: c * np.exp(0.5 * e),
    "contribution squared + noise": lambda c, e: c**2 + 0.3 * e,
}
LAYERS = (128, 0.5), (64, 0.5), (128, 0.1), (128, 10.0)  # Units, and noise of the selection on strength


def layer(rng: np.random.Generator, n: int, selects: float) -> tuple[pd.DataFrame, np.ndarray]:
    """Properties of n units, and four clusters by strength, the strongest units in cluster 3."""
    into, out, scale = (np.exp(spread * rng.normal(size=n)) for spread in (0.2, 0.5, 0.1))
    columns = dict(in_norm=into, out_norm=out, activation_scale=into * scale, contribution=into * scale * out)
    labels = np.empty(n, int)
    labels[np.argsort(np.log(into * out) + selects * rng.normal(size=n))] = np.arange(n) * 4 // n
    return pd.DataFrame(dict(layer="fc", unit=range(n), **columns)), labels


def ranked(rows: np.ndarray) -> float:
    """p-value of row 0; NaN if no row is known beside it."""
    return np.nan if np.isnan(rows[1:]).all() else p_values(rows[0], rows[1:])[0]


def strongest(rng: np.random.Generator, n: int, selects: float, seed: int) -> dict[tuple, float]:
    """(damage, controls, number of them) -> p-value of the strongest cluster; what it has no match for is left out."""
    properties, labels = layer(rng, n, selects)
    partition, noise, found = Partition.from_labels({"fc": labels}), rng.normal(size=n), {}
    for size in (2, 4) if seed < N_DRAWS // 5 else (4,):  # strata of two only for comparison
        within = strata(properties, partition, size=size)
        controls = draw_controls(partition, n_controls=199, strata=within, seed=seed)
        clusters = [sub.cluster for sub in controls.subclusters]
        if 3 not in clusters:
            continue
        place = clusters.index(3)
        alone = replace(controls, subclusters=controls.subclusters[place : place + 1])
        strength = strengths(alone, properties) if size == 4 else None
        for name, damage in DAMAGES.items():
            units = damage(properties["contribution"].to_numpy(), noise)
            rows = (controls.groups(place) @ units)[:, None]
            found[name, f"strata of {size}", 199] = ranked(rows)
            for n_controls in (199, 19) if size == 4 else ():
                fair = evened(rows[: 1 + n_controls], strength[: 1 + n_controls])
                found[name, "strata of 4, evened", n_controls] = ranked(fair)
    return found


def matching() -> Iterator[dict]:
    for n, selects in LAYERS:
        rng, p = np.random.default_rng(0), {}
        for seed in range(N_DRAWS):
            for key, value in strongest(rng, n, selects, seed).items():
                p.setdefault(key, []).append(value)
        for (damage, told, n_controls), values in p.items():
            known = np.array(values)[~np.isnan(values)]
            at = {f"at_{level}": passes_level(known, level).mean() for level in (0.05, 0.01)}
            tried = N_DRAWS // 5 if told == "strata of 2" else N_DRAWS
            names = dict(n_units=n, selection_noise=selects, damage=damage, n_controls=n_controls, controls=told)
            yield names | dict(n=len(known), unmatched=1 - len(known) / tried) | at


# Groups of layers -------------------------------------------------------------------------------------------------

N_PATHS = 200


def walk(rng: np.random.Generator, n: int, d: int, keeps: float = 0.0, slows: float = 1.0) -> np.ndarray:
    """Random steps that keep a part of their direction, and become shorter."""
    steps = rng.standard_normal((n - 1, d))
    for i in range(1, n - 1):
        steps[i] = keeps * steps[i - 1] + np.sqrt(1 - keeps**2) * steps[i]
    return np.vstack([np.zeros(d), (steps * slows ** np.arange(n - 1)[:, None]).cumsum(0)])


def line(rng: np.random.Generator, n: int, d: int, noise: float) -> np.ndarray:
    """Equal steps in one direction, and noise in all."""
    return np.arange(n)[:, None] * np.eye(d)[0] + noise * rng.standard_normal((n, d))


def jumping(rng: np.random.Generator, n: int, d: int, straight: bool) -> np.ndarray:
    """A walk, or a line with noise, whose steps between blocks of three layers or more are three times the others."""
    while True:
        cuts = np.sort(rng.choice(np.arange(3, n - 2), rng.integers(1, 4), replace=False))
        if (np.diff(np.r_[0, cuts, n]) >= 3).all():
            break
    steps = np.tile(np.eye(d)[0], (n - 1, 1)) if straight else rng.standard_normal((n - 1, d)) / np.sqrt(d)
    steps[cuts - 1] *= 3 / np.linalg.norm(steps[cuts - 1], axis=1, keepdims=True)
    return np.vstack([np.zeros(d), steps.cumsum(0)]) + straight * 0.1 * rng.standard_normal((n, d))


PATHS: dict[str, Callable] = {
    "random walk": walk,
    **{f"keeps {k} of its direction": partial(walk, keeps=k) for k in (0.5, 0.8)},
    **{f"slows to {s} a step": partial(walk, slows=s) for s in (0.9, 0.8)},
    **{f"line, noise {s}": partial(line, noise=s) for s in (0.05, 0.2, 1.0)},
}


def beyond(x: np.ndarray, seed: int) -> bool:
    """Does the verdict speak of steps beyond drift?"""
    distances = np.linalg.norm(x[:, None] - x, axis=-1)
    return "times as large" in layer_groups(distances, n_null=99, seed=seed).headline


def layers() -> Iterator[dict]:
    jumps = {f"jumps of 3, {'line' if s else 'walk'}": partial(jumping, straight=s) for s in (False, True)}
    for n in (8, 12, 24):
        for d in (2, 10, 50):
            for kind, draw in (PATHS | (jumps if n > 8 else {})).items():
                rng = np.random.default_rng([n, d])
                share = np.mean([beyond(draw(rng, n, d), seed) for seed in range(N_PATHS)])
                yield dict(layers=n, dimensions=d, path=kind, n=N_PATHS, found=share)


# Interactions -----------------------------------------------------------------------------------------------------

N_NETWORKS, N_PARTITIONS = 8, 60


def dealt() -> Iterator[dict]:
    """Random partitions of trained networks, one pair in a layer and one in two."""
    test = digits("test")
    for seed in range(N_NETWORKS):
        model = mlp((64, 32, 32, 10), seed=seed)
        fit(model, digits("train"), epochs=10, seed=seed)
        network, data = trace(model, test.x[:2]), (test.x[::3], test.y[::3])
        a, b = network.hidden
        for i in range(N_PARTITIONS):
            rng = np.random.default_rng([seed, i])
            partition = Partition.from_labels({name: rng.permutation(32) % 4 for name in (a, b)})
            pairs = [((a, 0), (a, 1)), ((a, 2), (b, 2)), ((b, 0), (b, 1))]
            options = dict(n_controls=39, network=network, seed=1_000 * seed + i)
            found = interactions(model, data, partition, pairs=pairs, **options)
            for row in found.to_frame().itertuples():
                sure = row.interaction_low > 0 or row.interaction_high < 0
                told = dict(network=seed, partition=i, same_layer=row.layer == row.given_layer)
                yield told | dict(p_value=row.p_value, p_interaction=row.p_interaction, interval_leaves_0_out=sure)


PARTS = {"matching": matching, "layers": layers, "interactions": dealt}

if __name__ == "__main__":
    for name in sys.argv[1:] or PARTS:
        pd.DataFrame(PARTS[name]()).round(4).to_csv(HERE.with_name(f"level_{name}.csv"), index=False)
