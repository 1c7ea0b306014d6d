"""Does dropout make modules, and do upstream and downstream measures see the same? Writes modularity*.csv beside it.

    python nbs/studies/modularity.py --data ROOT --work FOLDER [--gather]

Trains MLPs 784-64-64-10 on MNIST, one regulariser at a time, and measures their layers on the test images. MNIST is
read from ROOT, which holds `MNIST/raw` with the four unzipped files. Networks, similarities and measurements are kept
in FOLDER as they are done, so a run that was stopped goes on where it was; --gather only writes the tables.
"""

import argparse
import os
import platform
import time
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn
from tqdm import tqdm

from specialize_nb import Network, accuracy, agreement, fit, mlp, modularity_partition, record, trace
from specialize_nb.base.data import Labelled, torchvision_images
from specialize_nb.clusters.modularity import modularity_test
from specialize_nb.clusters.nulls import activation_nulls
from specialize_nb.graphs.activations import correlation_graph
from specialize_nb.graphs.similarity import Similarity, measure_similarity

SIZES, HELD_OUT = (784, 64, 64, 10), 6_000
N_FIRST, N_SEEDS, N_UNTRAINED, N_NOISE = 2, 4, 24, 99
EPOCHS, PATIENCE, BATCH = 20, 6, 200
BASE_L2 = 1e-5  # wherever L2 is not what is varied
DROPOUT = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
L1 = tuple(10 ** (-5 + i / 2) for i in range(7))
L2 = tuple(10 ** (-5 + i / 2) for i in range(9))
MEASURES = "covariance", "input_jacobian", "output_jacobian", "loss_hessian"
AGREEMENTS = ("ami", "element_centric", "spearman", "transfer")
LEAST = 0.8  # accuracy below which a network is left out
N_RUNS, N_PERMUTED, N_PERMUTATIONS = 5, 19, 999
HERE = Path(__file__)


class Point(NamedTuple):
    """One network of the study."""

    sweep: str  # 'dropout', 'l1', 'l2' or 'untrained'
    setting: float  # How strong
    seed: int

    @property
    def name(self) -> str:
        return f"{self.sweep}_{self.setting:.3g}_{self.seed}"


def points() -> list[Point]:
    """All networks; L2 of 1e-5 and dropout of 0 are the same network, trained once as dropout 0."""
    sweeps = [("dropout", DROPOUT), ("l1", L1), ("l2", L2[1:])]
    trained = [[Point(name, v, seed) for name, values in sweeps for v in values] for seed in range(N_SEEDS)]
    untrained = [Point("untrained", 0.0, 1_000 + i) for i in range(N_UNTRAINED)]
    return list(chain(*trained[:N_FIRST], untrained, *trained[N_FIRST:]))


# Training ---------------------------------------------------------------------------------------------------------


def split(root: Path, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """90% of the training images to fit, 10% to validate, another split for each seed."""
    x, y = torchvision_images("MNIST", root, split="train")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    held, rest = order[:HELD_OUT], order[HELD_OUT:]
    return (x[rest], y[rest]), (x[held], y[held])


def kept(path: Path, content: Any) -> Any:
    """Written under another name first, so that what is there is whole."""
    part = path.with_suffix(".part")
    torch.save(content, part)
    os.replace(part, path)
    return content


def train(point: Point, root: Path, test: Labelled) -> dict[str, Any]:
    """Weights, test accuracy, epochs and seconds of one network."""
    start = time.perf_counter()
    chosen = {point.sweep: point.setting}
    model = mlp(SIZES, dropout=chosen.get("dropout", 0.0), seed=point.seed)
    found = {"epochs": 0, "best_epoch": 0}
    if point.sweep != "untrained":
        data, valid = split(root, point.seed)
        options = dict(l1=chosen.get("l1", 0.0), l2=chosen.get("l2", BASE_L2), batch_size=BATCH, seed=point.seed)
        run = fit(model, data, valid=valid, epochs=EPOCHS, patience=PATIENCE, **options)
        found = {"epochs": len(run.history), "best_epoch": run.best_epoch}
    found |= {"weights": model.state_dict(), "accuracy": accuracy(model, test)}
    return found | {"seconds": time.perf_counter() - start}


def trained(point: Point, root: Path, work: Path, test: Labelled) -> tuple[nn.Module, dict[str, Any]]:
    """The same as a model, from the folder if it is there."""
    path = work / f"{point.name}.net"
    found = torch.load(path) if path.exists() else kept(path, train(point, root, test))
    model = mlp(SIZES)  # no dropout: layers have the same names in all networks
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), found["weights"].values(), strict=True):
            parameter.copy_(value)
    return model, found


# Measuring --------------------------------------------------------------------------------------------------------


def similarity(path: Path, model: nn.Module, network: Network, test: Labelled, measure: str) -> Similarity:
    """Of all test images, from the folder if it is there."""
    if not path.exists():
        measure_similarity(model, test, network, measure=measure).save(path)
    return Similarity.load(path)


def measured(point: Point, model: nn.Module, work: Path, test: Labelled) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a layer, measure and normalisation; and one row a pair of measures, layer and measure of agreement."""
    graphs, partitions, rows, network = {}, {}, [], trace(model, test.x[:2])
    for measure in MEASURES:
        found = similarity(work / f"{point.name}.{measure}.npz", model, network, test, measure)
        for normalized in (True, False):
            graph = found.graph(normalized=normalized)
            partition = modularity_partition(graph, n_seeds=N_RUNS)
            rows.append(partition.summary.assign(measure=measure, normalized=normalized))
            if normalized:
                graphs[measure], partitions[measure] = graph, partition
    activations = record(model, test, network, at="site")
    graph = correlation_graph(activations)
    for layer in graph.layers:
        one, other = (g.block(layer, layer).double().numpy() for g in (graph, graphs["covariance"]))
        assert_allclose(one, other, rtol=1e-3, atol=1e-5, strict=True)
    nulls = {"permuted": activation_nulls(activations, "permuted", N_PERMUTED)}
    null = modularity_test(graph, nulls, n_seeds=1).to_frame()[["layer", "null_mean", "null_sd", "p_value"]]
    null = null.rename(columns={"null_mean": "permuted_mean", "null_sd": "permuted_sd", "p_value": "p_permuted"})
    frame = pd.concat(rows).merge(null.assign(measure="covariance", normalized=True), how="left")
    options = dict(measures=AGREEMENTS, n_permutations=N_PERMUTATIONS)
    pairs = agreement(partitions, graphs, **options).to_frame()
    return frame, pairs[["layer", "a", "b", "measure", "n_units", "value", "null_mean", "null_sd", "p_value", "p_fwer"]]


def noise() -> pd.DataFrame:
    """Q of white noise, of 64 units and 10,000 examples."""
    rows = []
    for seed in range(N_NOISE):
        values = np.random.default_rng(seed).standard_normal((10_000, SIZES[1]))
        summary = modularity_partition(correlation_graph({"noise": values}), n_seeds=N_RUNS).summary
        rows.append(summary.assign(sweep="noise", setting=0.0, seed=seed, measure="covariance", normalized=True))
    return pd.concat(rows)


def finish(point: Point, root: Path, work: Path, test: Labelled) -> None:
    """Train and measure one network, unless that is done."""
    path = work / f"{point.name}.rows"
    if path.exists():
        return
    model, about = trained(point, root, work, test)
    start, tables = time.perf_counter(), ()
    if point.sweep == "untrained" or about["accuracy"] >= LEAST:
        tables = measured(point, model, work, test)
    row = {name: about[name] for name in ("accuracy", "epochs", "best_epoch")} | {"train_seconds": about["seconds"]}
    row |= {"measure_seconds": time.perf_counter() - start, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    kept(path, (row, [table.to_dict("list") for table in tables]))


# Tables -----------------------------------------------------------------------------------------------------------


def gather(work: Path) -> None:
    """Write the tables of all networks that are done, of seeds that are whole."""
    done = [point for point in points() if (work / f"{point.name}.rows").exists()]
    count = pd.Series([point.seed for point in done]).value_counts()
    whole = len(DROPOUT) + len(L1) + len(L2) - 1
    done = [one for one in done if one.sweep == "untrained" or count[one.seed] == whole]
    networks, tables = [], ([], [])
    for point in done:
        row, found = torch.load(work / f"{point.name}.rows")
        networks.append(point._asdict() | row)
        for table, columns in zip(tables, found, strict=False):  # none of a network that was left out
            table.append(pd.DataFrame(columns).assign(**point._asdict()))
    noisy = work / "noise.rows"
    tables[0].append(pd.DataFrame(torch.load(noisy) if noisy.exists() else kept(noisy, noise().to_dict("list"))))
    parts = {"_networks": pd.DataFrame(networks), "": pd.concat(tables[0]), "_agreement": pd.concat(tables[1])}
    for name, frame in parts.items():
        first = [column for column in ("sweep", "setting", "seed", "measure", "normalized", "layer") if column in frame]
        frame = frame[[*first, *(column for column in frame if column not in first)]]
        frame.to_csv(HERE.with_name(f"modularity{name}.csv"), index=False, float_format="%.5g")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is done, outside of the repository")
    parser.add_argument("--gather", action="store_true", help="only write the tables of what is done")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    test = torchvision_images("MNIST", given.data, split="test")
    for point in [] if given.gather else tqdm(points(), "networks"):
        finish(point, given.data, given.work, test)
    gather(given.work)
