"""How often do the nulls of graphs reject where there are no modules, and how often where there are?

    python nbs/studies/nulls.py                 # both tables: about 20 minutes on one core
    python nbs/studies/nulls.py weights         # one of them: weights, activations

Writes nulls_weights.csv and nulls_activations.csv beside this file, one row a case. Seeds are fixed.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from specialize_nb import clusterability, digits, mlp, trace
from specialize_nb.clusters.modularity import modularity_test
from specialize_nb.clusters.nulls import activation_nulls, likeness_graph
from specialize_nb.graphs.activations import correlation_graph
from specialize_nb.graphs.graph import UnitGraph
from specialize_nb.network.answers import record

HERE = Path(__file__).resolve().parent
N_NULL, K = 19, 3
LAWS: dict[str, Callable[..., np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "Laplace": lambda rng, shape: rng.laplace(size=shape),
    "t5": lambda rng, shape: rng.standard_t(5, shape),
    "t3": lambda rng, shape: rng.standard_t(3, shape),
    "t2": lambda rng, shape: rng.standard_t(2, shape),
}
SHAPES = (24, 24, 24), (32, 16, 16, 8)
N_WEIGHTS, N_ANSWERS, N_POWER = 40, 60, 20  # Draws of each case without modules, of either kind, and of others


def summary(p: list[float], gap: list[float]) -> dict[str, float]:
    """Draws, how many p are at most 0.05 and 0.1, the mean of p and of the gap."""
    values = np.array(p)
    low, more = (int((values <= level + 1e-9).sum()) for level in (0.05, 0.1))
    return {"draws": len(p), "at_05": low, "at_10": more, "mean_p": values.mean(), "gap": float(np.mean(gap))}


# Graphs of weights ------------------------------------------------------------------------------------------------


def weights(sizes: tuple[int, ...], law: str, spread: float, inside: float, rng: np.random.Generator) -> UnitGraph:
    """A layered graph of independent weights, times strengths of both units, times 1 + `inside` within modules."""
    strengths, names = [np.exp(spread * rng.standard_normal(n)) for n in sizes], tuple(map(str, range(len(sizes))))
    blocks = {}
    for i, (a, b) in enumerate(pairwise(sizes)):
        same = np.equal.outer(np.arange(a) % K, np.arange(b) % K)
        block = np.outer(strengths[i], strengths[i + 1]) * np.abs(LAWS[law](rng, (a, b))) * (1 + inside * same)
        blocks[names[i], names[i + 1]] = torch.from_numpy(block)
    return UnitGraph(layers=names, sizes=sizes, blocks=blocks)


def of_weights() -> Iterator[dict]:
    """Level and power of degree nulls."""
    level = [(sizes, law, spread, 0.0) for sizes in SHAPES for spread in (0.0, 1.0) for law in LAWS]
    power = [(SHAPES[0], law, spread, 3.0) for spread in (0.0, 1.0) for law in ("normal", "t3", "t2")]
    for sizes, law, spread, inside in tqdm(level + power):
        p, gap, stay = [], [], []
        for seed in range(N_POWER if inside else N_WEIGHTS):
            graph = weights(sizes, law, spread, inside, np.random.default_rng([seed, 12]))
            found = clusterability(graph, K, null="degree", n_null=N_NULL, n_init=2, seed=seed)
            p, gap, stay = [*p, found.p_value], [*gap, found.gap], [*stay, found.in_place]
        case = {"sizes": "-".join(map(str, sizes)), "law": law, "strengths": spread, "inside": inside}
        yield case | summary(p, gap) | {"in_place": float(np.mean(stay))}


# Graphs of activations --------------------------------------------------------------------------------------------

Answers = dict[str, np.ndarray]


def factors(d: int, noise: float, rng: np.random.Generator) -> Answers:
    """Units of two layers that are random directions of one space of d dimensions, and noise of each unit."""
    space = rng.standard_normal((400, d))
    answers = {}
    for name in "ab":
        directions = rng.standard_normal((d, 32))
        answers[name] = space @ (directions / np.linalg.norm(directions, axis=0))
        answers[name] = answers[name] + noise * rng.standard_normal((400, 32))
    return answers


def common(noise: float, rng: np.random.Generator) -> Answers:
    """One factor that all units share alike."""
    one = rng.standard_normal((400, 1))
    return {name: one + noise * rng.standard_normal((400, 32)) for name in "ab"}


def modules(share: float, rng: np.random.Generator) -> Answers:
    """Four modules, through both layers, whose units share this part of their variance."""
    own = rng.standard_normal((400, 4))[:, np.arange(32) % 4]
    return {name: np.sqrt(share) * own + np.sqrt(1 - share) * rng.standard_normal((400, 32)) for name in "ab"}


def untrained_answers(rng: np.random.Generator) -> Answers:
    """Two hidden layers of a network that was never trained."""
    model, seen = mlp((64, 32, 32, 10), seed=int(rng.integers(2**31))), digits()
    data = seen.x[:400], seen.y[:400]
    return record(model, data, trace(model, data[0][:1]))


CASES: dict[str, Callable[[np.random.Generator], Answers]] = {
    "white noise": lambda rng: {name: rng.standard_normal((400, 32)) for name in "ab"},
    "2 factors": lambda rng: factors(2, 0.0, rng),
    "5 factors": lambda rng: factors(5, 0.0, rng),
    "20 factors": lambda rng: factors(20, 0.0, rng),
    "5 factors and noise": lambda rng: factors(5, 0.7, rng),
    "one common factor": lambda rng: common(1.0, rng),
    "untrained network": untrained_answers,
    "modules": lambda rng: modules(0.15, rng),
}


def relu(answers: Answers) -> Answers:
    """What is above 0."""
    return {layer: np.maximum(values, 0) for layer, values in answers.items()}


def judged(answers: Answers, kind: str, side: str, seed: int) -> Iterator[tuple[str, float, float]]:
    """Measure, p and gap: of n-cuts of squared rank correlations, and of modularities of the first layer."""
    apply = relu if side == "before the ReLU" else dict
    cut, q = (lambda one: likeness_graph(apply(one))), (lambda one: correlation_graph(apply(one)))
    nulls = activation_nulls(answers, kind, N_NULL, make=cut, seed=seed)
    found = clusterability(cut(answers), 4, null=nulls, n_init=2)
    yield "n-cut", found.p_value, found.gap
    first = {"a": next(iter(answers.values()))}
    nulls = {kind: activation_nulls(first, kind, N_NULL, make=q, seed=seed)}
    row = modularity_test(q(first), nulls, n_seeds=1).to_frame().iloc[0]
    yield "modularity", row["p_value"], row["gap"]


def of_activations() -> Iterator[dict]:
    """Level and power of turned layers and of permutations."""
    designs = [(case, kind, "none") for case in CASES for kind in ("rotated", "permuted")]
    designs.append(("5 factors", "rotated", "before the ReLU"))  # after it `activation_nulls` refuses to turn layers
    for case, kind, side in tqdm(designs):
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in range(N_POWER if kind == "permuted" or case == "modules" else N_ANSWERS):
            answers = CASES[case](np.random.default_rng([seed, 5]))
            for measure, p, gap in judged(answers, kind, side, seed):
                found.setdefault(measure, []).append((p, gap))
        for measure, pairs in found.items():
            p, gap = (list(one) for one in zip(*pairs, strict=True))
            yield {"case": case, "null": kind, "turned": side, "measure": measure} | summary(p, gap)


TABLES = {"weights": of_weights, "activations": of_activations}

if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)  # that a single weight may be most of a block: in the table
    torch.set_num_threads(1)
    for table in sys.argv[1:] or TABLES:
        pd.DataFrame(TABLES[table]()).round(4).to_csv(HERE / f"nulls_{table}.csv", index=False)
