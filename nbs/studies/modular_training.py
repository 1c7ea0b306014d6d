"""Does training for modularity make a network's clusters matter? Writes modular_training*.csv beside this file.

    python nbs/studies/modular_training.py --data ROOT [--work FOLDER] [--seeds 3]

MNIST is read from ROOT, which holds `MNIST/raw` with the four unzipped files. Each network that is done is kept in
FOLDER, and passed over when the program is run again; at the end all are gathered.
"""

import argparse
import copy
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import adjusted_mutual_info_score
from torch import nn
from tqdm.auto import tqdm

from specialize_nb import (
    Network,
    Partition,
    accuracy,
    clusterability,
    coherence,
    fit,
    importance,
    mlp,
    spectral_partition,
    trace,
    weight_graph,
)
from specialize_nb.base.data import Labelled, torchvision_images
from specialize_nb.stats.evidence import Evidence
from specialize_nb.training.cost import clusterability_cost
from specialize_nb.training.pruning import magnitude_pruning
from specialize_nb.training.rescaling import relu_rescaling
from specialize_nb.training.start import clusterable_init

SIZES = (784, 128, 128, 128, 10)
N_TRAIN, EPOCHS, BATCH, K = 30_000, 3, 128, 12
N_NULL, N_CONTROLS, N_IMAGES, MIN_UNITS = 19, 199, 1_000, 3
HERE = Path(__file__)


class Setting(NamedTuple):
    """How a network is trained."""

    strength: float = 0.0  # Of the clusterability cost
    rescaled: bool = False  # Weights into each hidden unit brought to norm sqrt 2 after every step?
    planted: bool = False  # Clusterable initialisation?
    pruned: float = 0.0  # Share of the weights that is gone in the end
    dropout: float = 0.0


SETTINGS = {
    "plain": Setting(),
    "dropout": Setting(dropout=0.5),
    "cost 0.001": Setting(strength=0.001),
    "cost 0.01": Setting(strength=0.01),
    "cost 0.1": Setting(strength=0.1),
    "cost 0.01, rescaled": Setting(strength=0.01, rescaled=True),
    "planted": Setting(planted=True),
    "planted, cost 0.01": Setting(strength=0.01, planted=True),
    "pruned": Setting(pruned=0.9),
}


def after_all(steps: list[Callable[[nn.Module], Any]]) -> Callable[[nn.Module], None] | None:
    """Several changes after a step, one after the other."""

    def every(model: nn.Module) -> None:
        for step in steps:
            step(model)

    return every if steps else None


def trained(setting: Setting, seed: int, train: Labelled) -> tuple[nn.Module, Partition | None]:
    """A network of one setting, and the modules it was given to start with."""
    model, modules = mlp(SIZES, dropout=setting.dropout, seed=seed), None
    if setting.planted:
        modules = clusterable_init(model, train.x[:1], n_modules=10, d=0.6, seed=seed)
    steps, per_epoch = [], -(-len(train.y) // BATCH)
    if setting.rescaled:
        steps.append(relu_rescaling(model, train.x[:1]))
    if setting.pruned:
        steps.append(magnitude_pruning(model, setting.pruned, begin=per_epoch // 2, end=2 * per_epoch, every=20))
    cost = None
    if setting.strength:
        cost = clusterability_cost(model, train.x[:1], strength=setting.strength, tol=1e-4)
    fit(model, train, epochs=EPOCHS, batch_size=BATCH, cost=cost, after_step=after_all(steps), seed=seed)
    return model, modules


def cuts(network: Network, seed: int, sparse: bool) -> dict[str, float]:
    """The n-cut beside those of each kind of null."""
    found = {}
    for null in ("layer", "nonzero", "degree") if sparse else ("layer", "degree"):
        one = clusterability(network, K, null=null, n_null=N_NULL, n_init=10, seed=seed)
        named = dict(null=one.null_ncuts.mean(), gap=one.gap, z=one.z, p=one.p_value)
        found |= {"ncut": one.ncut} | {f"{name}_{null}": float(value) for name, value in named.items()}
    return found


def without_blank(model: nn.Module, blank: torch.Tensor, train: Labelled, seed: int) -> dict[str, float]:
    """The n-cut when weights on pixels that are always blank, which change nothing, are set to 0."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[1].weight[:, blank] = 0
    one = clusterability(trace(model, train.x[:2]), K, null="nonzero", n_null=N_NULL, n_init=10, seed=seed)
    return dict(ncut_lit=one.ncut, gap_lit=one.gap, p_lit=one.p_value)


def judged(evidence: Evidence, name: str) -> tuple[dict[str, float], pd.DataFrame]:
    """What the networks are compared by, and the rows of the sub-clusters, for the outcome `name`."""
    rows = evidence.to_frame()
    rows = rows[rows["outcome"] == name]
    kept = ["layer", "cluster", "n_units", "outcome", "effect", "p_value", "matched_effect", "p_matched"]
    pooled = dict(effect=rows["effect"].mean(), joint_p=rows["p_fwer"].min(), n=rows["value"].notna().sum())
    return {f"{name}_{key}": float(value) for key, value in pooled.items()}, rows[kept]


def measured(name: str, seed: int, train: Labelled, test: Labelled) -> dict[str, Any]:
    """Train one network and judge it: a row about the network, and rows about its sub-clusters."""
    start, cpu = time.perf_counter(), time.process_time()
    model, modules = trained(SETTINGS[name], seed, train)
    training_s = time.perf_counter() - start
    network = trace(model, train.x[:2])
    partition = spectral_partition(weight_graph(network), K, n_init=10, seed=seed)
    labels = {layer: partition.labels[layer] for layer in network.hidden}
    layer, cluster = np.repeat(list(labels), [len(one) for one in labels.values()]), np.concatenate([*labels.values()])
    row = dict(setting=name, seed=seed, accuracy=accuracy(model, test), eigenvalues=partition.eigenvalues[1:4].mean())
    row["share_zero"] = float(np.mean([float((p == 0).double().mean()) for p in model.parameters() if p.ndim > 1]))
    first, blank = model[1].weight.detach().abs(), train.x.flatten(1).amax(0) == 0
    row |= dict(share_blank=float(blank.double().mean()), weight_blank=float(first[:, blank].sum() / first.sum()))
    row["dead_hidden"] = float((cluster < 0).mean())
    row["layer_ami"] = adjusted_mutual_info_score(layer[cluster >= 0], cluster[cluster >= 0])
    row["planted_ari"] = np.nan if modules is None else partition.agreement(modules)
    row |= without_blank(model, blank, train, seed)
    row |= cuts(network, seed, sparse=bool(SETTINGS[name].pruned))
    hidden = Partition.from_labels(labels)
    some = torch.randperm(len(test.y), generator=torch.Generator().manual_seed(0))[:N_IMAGES]
    data, options = (test.x[some], test.y[some]), dict(n_controls=N_CONTROLS, min_units=MIN_UNITS, network=network)
    parts = []
    damage = importance(model, data, hidden, outcomes=["cross_entropy"], seed=seed, **options)
    agree = coherence(model, data, hidden, outcomes=["correlation", "class_information"], seed=seed, **options)
    for evidence, outcome in ((damage, "cross_entropy"), (agree, "correlation"), (agree, "class_information")):
        pooled, rows = judged(evidence, outcome)
        row |= pooled
        parts.append(rows.assign(setting=name, seed=seed))
    row |= dict(training_s=training_s, seconds=time.perf_counter() - start, cpu_s=time.process_time() - cpu)
    row |= dict(machine=machine())
    return {"network": row, "subclusters": pd.concat(parts).to_dict("records")}


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(": ")[1] for line in lines if "model name" in line), platform.processor())
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} thread, torch {torch.__version__}"


def write(path: Path, found: dict[str, Any]) -> None:
    """All of it or nothing."""
    half = path.with_suffix(".half")
    half.write_text(json.dumps(found, default=float))
    half.replace(path)


def gather(paths: list[Path]) -> None:
    """The files of all networks as two tables beside this program."""
    found = [json.loads(path.read_text()) for path in paths]
    networks = pd.DataFrame([one["network"] for one in found])
    rows = pd.DataFrame([row for one in found for row in one["subclusters"]])
    rows = rows[["setting", "seed", *(name for name in rows if name not in ("setting", "seed"))]]
    networks.to_csv(HERE.with_suffix(".csv"), index=False, float_format="%.6g")
    rows.to_csv(HERE.with_name("modular_training_subclusters.csv"), index=False, float_format="%.4g")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "specialize_nb" / "modular_training")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each setting")
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS), help="settings to measure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    train, test = (torchvision_images("MNIST", given.data, split=split) for split in ("train", "test"))
    train = Labelled(train.x[:N_TRAIN], train.y[:N_TRAIN])
    plan = [(name, seed) for seed in range(given.seeds) for name in given.only]
    paths = {one: given.work / f"{one[0].replace(' ', '_').replace(',', '')}-{one[1]}.json" for one in plan}
    for name, seed in tqdm(plan, desc="networks"):
        if not paths[name, seed].exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of nulls that fall apart, and of a single network
                write(paths[name, seed], measured(name, seed, train, test))
    gather([paths[one] for one in sorted(plan, key=lambda one: list(SETTINGS).index(one[0]))])


if __name__ == "__main__":
    main()
