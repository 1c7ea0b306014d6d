"""Are modules that run through layers found, and does each layer have something to test?

    python nbs/studies/depth.py                 # all three tables: about 10 minutes on one core
    python nbs/studies/depth.py recovery        # one of them: recovery, null, networks

Writes depth_recovery.csv, depth_null.csv and depth_networks.csv beside this file, one row a graph or network. A table
that was broken off goes on where it was. Seeds are fixed.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import adjusted_rand_score

from specialize_nb import mlp, module_scan, spectral_partition, trace, weight_graph
from specialize_nb.graphs.graph import UnitGraph

HERE = Path(__file__).resolve().parent
STRENGTHS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "even": lambda rng, n: np.ones(n),
    "lognormal": lambda rng, n: rng.lognormal(0, 1, n),
    "pareto": lambda rng, n: rng.pareto(2.0, n) + 0.3,
}
CASES = {
    "plain": {},
    "unequal modules": {"unequal": True},
    "lognormal strengths": {"strengths": "lognormal"},
    "Pareto strengths": {"strengths": "pareto"},
    "skip connections": {"skip": 1},
    "weights of t3": {"law": "t3"},
    "128 units": {"n": 128},
}
VISION = ("vgg11", "resnet18", "mobilenet_v2", "densenet121", "googlenet", "squeezenet1_1", "shufflenet_v2_x0_5",
          "efficientnet_b0", "mnasnet0_5")  # fmt: skip


def planted(
    n_layers: int,
    factor: float,
    seed: int,
    *,
    n: int = 64,
    k: int = 4,
    skip: int = 0,
    unequal: bool = False,
    strengths: str = "even",
    law: str = "normal",
) -> tuple[UnitGraph, np.ndarray]:
    """A graph whose modules run through all layers, weights inside `factor` times as large; and the modules."""
    rng = np.random.default_rng(seed)
    size = np.arange(1, k + 1) if unequal else np.ones(k)
    counts = np.floor(size / size.sum() * n).astype(int)
    counts[-1] += n - counts.sum()
    labels = [rng.permutation(np.repeat(np.arange(k), counts)) for _ in range(n_layers)]
    blocks = {}
    for i in range(n_layers):
        for j in range(i + 1, min(n_layers, i + 2 + skip)):
            drawn = rng.standard_normal((n, n)) if law == "normal" else rng.standard_t(3, (n, n))
            scale = np.outer(STRENGTHS[strengths](rng, n), STRENGTHS[strengths](rng, n))
            inside = np.where(labels[i][:, None] == labels[j], factor, 1.0)
            blocks[str(i), str(j)] = torch.tensor(np.abs(drawn) * scale * inside)
    names = tuple(map(str, range(n_layers)))
    return UnitGraph(layers=names, sizes=(n,) * n_layers, blocks=blocks), np.concatenate(labels)


def recovery() -> Iterator[tuple[dict, dict]]:
    """How well the published cut, and the one with depth removed, agree with what was planted."""
    for factor in (2.0, 1.5):
        for case, options in CASES.items():
            for n_layers in (4, 8, 12, 24):
                if case != "plain" and (n_layers in (4, 24)):
                    continue
                for seed in range(20 if factor == 2 and case == "plain" else 5):
                    yield {"case": case, "n_layers": n_layers, "factor": factor, "seed": seed}, options


def recovered(row: dict, options: dict) -> dict:
    graph, truth = planted(row["n_layers"], row["factor"], row["seed"], **options)
    found = {}
    for depth in ("keep", "remove"):
        one = spectral_partition(graph, 4, depth=depth)
        found |= {f"{depth}_ari": adjusted_rand_score(truth, one.to_frame()["cluster"]), f"{depth}_depth": one.depth}
    return row | found


def null() -> Iterator[tuple[dict, dict]]:
    for strengths in ("even", "lognormal"):
        for seed in range(20):
            yield {"strengths": strengths, "seed": seed}, {}


def scanned(row: dict, options: dict) -> dict:
    graph, _ = planted(4, 1.0, row["seed"], n=32, strengths=row["strengths"])
    scan = module_scan(graph, (2, 4), n_null=19, n_seeds=1, seed=row["seed"])
    return row | {"p_fwer": scan.to_frame()["p_fwer"].min(), "k": scan.k or 1}


def networks() -> Iterator[tuple[dict, dict]]:
    yield {"network": "mlp of 10 layers"}, {}
    for name in VISION:
        yield {"network": name}, {}


def shared(row: dict, options: dict) -> dict:
    """Of hidden layers of 16 units or more, untrained: how many are shared out among several clusters?"""
    if row["network"] == "mlp of 10 layers":
        model, x = mlp((784, *[128] * 9, 10), seed=0), torch.zeros(2, 1, 28, 28)
    else:
        import torchvision

        torch.manual_seed(0)
        model = getattr(torchvision.models, row["network"])(weights=None).eval()
        x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network = trace(model, x)
    graph = weight_graph(network)
    hidden = [layer for layer in network.hidden if network.layer(layer).n_units >= 16 and layer in graph.layers]
    found = {"layers": len(hidden), "units": graph.n_units}
    for depth in ("keep", "remove"):
        start = time.process_time()
        one = spectral_partition(graph, 12, depth=depth)
        found[f"{depth}_seconds"] = time.process_time() - start
        found[f"{depth}_depth"] = one.depth
        testable = [layer for layer in hidden if len(set(one.labels[layer][one.labels[layer] >= 0].tolist())) > 1]
        found[f"{depth}_shared"] = len(testable)
    return row | found


TABLES = {"recovery": (recovery, recovered), "null": (null, scanned), "networks": (networks, shared)}


def _key(row: dict) -> tuple[str, ...]:
    """As text, whether it was read or made."""
    return tuple(value if isinstance(value, str) else f"{value:g}" for value in row.values())


def write(name: str) -> None:
    """One row after another, those that are there already left out."""
    path, (cases, measure) = HERE / f"depth_{name}.csv", TABLES[name]
    done = pd.read_csv(path).to_dict("records") if path.exists() else []
    keys = {_key({name: one[name] for name in next(iter(cases()))[0]}) for one in done}
    for row, options in cases():
        if _key(row) not in keys:
            done.append(measure(row, options))
            pd.DataFrame(done).to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or TABLES:
        write(chosen)
