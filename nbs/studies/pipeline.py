"""What does the whole pipeline find in networks that have learnt nothing?

    python nbs/studies/pipeline.py            # about half an hour on one core; writes pipeline.csv beside this file

Networks that were never trained are traced, their units clustered by each kind of graph on the training digits, and
each sub-cluster asked on the test digits whether it is important and coherent, with 199 controls. A row a network,
graph, evidence and outcome counts the sub-clusters asked, and those with p <= 0.05 and 0.01. `labels` says whether
those of the test digits were shuffled; there the networks are trained ones, and measures
of classes have nothing to find.
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specialize_nb import cnn, coherence, digits, fit, importance, mlp
from specialize_nb.audits.kinds import KINDS
from specialize_nb.network.subject import Subject

HERE = Path(__file__).resolve().parent
COLUMNS = "network seed labels graph scope evidence outcome n_tests at_05 at_01 mean_effect".split()
N_SEEDS = 24
MEASURED = ("correlation", "class_information")
NETWORKS = {
    "MLP 64-64-64": lambda seed: mlp((64, 64, 64, 64, 10), seed=seed),
    "MLP 128-32": lambda seed: mlp((64, 128, 32, 10), seed=seed),
    "CNN 16-32, 64": lambda seed: cnn(size=8, channels=(16, 32), dense=64, seed=seed),
}


def data(shuffled: int | None) -> tuple[Any, Any]:
    """Images to find clusters on, and those to judge on; their labels shuffled by a seed, or as they are."""
    train, test = digits("train"), digits("test")
    y = (
        test.y
        if shuffled is None
        else test.y[torch.randperm(len(test.y), generator=torch.Generator().manual_seed(shuffled))]
    )
    return (train.x, train.y), (test.x, y)


def measured(model: Any, seed: int, shuffled: int | None) -> Iterator[dict[str, Any]]:
    """What each kind of graph, scope and outcome says of one network."""
    find, judge = data(shuffled)
    subject = Subject.of(model, judge, find=find)
    for kind in KINDS.values():
        partitions = kind.cut(kind.build(subject), subject, 8, kind.scopes, seed)
        for scope, partition in partitions.items():
            options = dict(n_controls=199, n_boot=1, seed=seed)
            found = {
                "importance": importance(subject, None, partition, outcomes="cross_entropy", matched=False, **options),
                "coherence": coherence(
                    subject, None, partition, outcomes=("correlation", "class_information"), **options
                ),
            }
            for evidence, one in found.items():
                for outcome, rows in one.to_frame().groupby("outcome"):
                    p = rows["p_value"].dropna()
                    told = dict(n_tests=len(p), at_05=int((p <= 0.05).sum()), at_01=int((p <= 0.01).sum()))
                    told |= dict(mean_effect=round(float(np.nanmean(rows["effect"])), 3)) if len(p) else {}
                    yield dict(graph=kind.name, scope=scope, evidence=evidence, outcome=outcome) | told


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with open(HERE / "pipeline.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for seed in range(N_SEEDS):
            for name, make in NETWORKS.items():
                for labels in ("as they are", "shuffled"):
                    model = make(seed).eval()
                    if labels == "shuffled":
                        if seed >= N_SEEDS // 2:
                            continue
                        fit(model, digits("train"), epochs=15, seed=seed)
                    keys = dict(network=name, seed=seed, labels=labels)
                    for row in measured(model, seed, seed if labels == "shuffled" else None):
                        table.writerow(keys | row)
            file.flush()
            print(f"seed {seed} of {N_SEEDS}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
