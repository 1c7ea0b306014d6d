"""What does the whole pipeline find in networks that have learnt nothing?

    python nbs/studies/pipeline.py            # about an hour on one core; writes pipeline.csv beside this file

Networks that were never trained are traced, their units clustered by each kind of graph on the training digits, and
each sub-cluster asked on the test digits whether it is important and coherent, with 199 controls. A row a network,
graph, evidence and outcome counts the sub-clusters asked, and those with p <= 0.05 and 0.01. `labels` says whether
those of the test digits were shuffled; there the networks are trained ones, and measures
of classes have nothing to find. Of an untrained transformer, coherence of tokens alone is asked, of clusters by weights
and by activations.
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from specialize_nb import audit, cnn, coherence, digits, fit, mlp, text
from specialize_nb.audits.kinds import KINDS, Cutting
from specialize_nb.network.subject import Subject
from specialize_nb.training.models import transformer

HERE = Path(__file__).resolve().parent
COLUMNS = "network seed labels graph scope evidence outcome n_tests at_05 at_01 mean_effect".split()
N_SEEDS, N_SHUFFLED = 9, 8
OPTIONS = dict(graphs=tuple(KINDS), n_controls=199, matched=False, n_visual=1, steps=1, n_exhibits=0, n_boot=1)
NETWORKS = {
    "MLP 64-64-64": lambda seed: mlp((64, 64, 64, 64, 10), seed=seed),
    "MLP 128-32": lambda seed: mlp((64, 128, 32, 10), seed=seed),
    "CNN 16-32, 64": lambda seed: cnn(size=8, channels=(16, 32), dense=64, seed=seed),
}
TEXT = "transformer"
ASKED = dict(n_controls=199, n_visual=1, steps=1, n_boot=1)


def data(shuffled: int | None) -> tuple[Any, Any]:
    """Images to find clusters on, and those to judge on; their labels shuffled by a seed, or as they are."""
    train, test = digits("train"), digits("test")
    order = torch.arange(len(test.y))
    if shuffled is not None:
        order = torch.randperm(len(test.y), generator=torch.Generator().manual_seed(shuffled))
    return (train.x, train.y), (test.x, test.y[order])


def measured(model: Any, seed: int, shuffled: int | None) -> Iterator[dict[str, Any]]:
    """What an audit says of one network, by kind of graph, scope and outcome."""
    find, judge = data(shuffled)
    found = audit(model, judge, find=find, seed=seed, **OPTIONS)
    frame, blind = found.to_frame(), [one for one in found.findings if not KINDS[one.graph].decisive]
    for one in blind:  # an audit gives no p-values to what is found by construction
        where = (frame["graph"] == one.graph) & (frame["scope"] == one.scope) & (frame["evidence"] == "coherence")
        asked = coherence(model, judge, one.partition, seed=seed, **ASKED).to_frame()
        frame = pd.concat([frame[~where], asked.assign(graph=one.graph, scope=one.scope, evidence="coherence")])
    yield from counted(frame)


def counted(found: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """How many p-values are small, by kind of graph, scope and outcome."""
    for keys, rows in found.groupby(["graph", "scope", "evidence", "outcome"], sort=False):
        p = rows["p_value"].dropna()
        told = dict(n_tests=len(p), at_05=int((p <= 0.05).sum()), at_01=int((p <= 0.01).sum()))
        effects = rows["effect"][np.isfinite(rows["effect"])]
        told["mean_effect"] = round(float(effects.mean()), 3) if len(effects) else ""
        yield dict(zip(("graph", "scope", "evidence", "outcome"), keys, strict=True)) | told


def of_text(seed: int) -> Iterator[dict[str, Any]]:
    """The same of a small language model, of what its units answer to."""
    model = transformer(width=32, depth=2, length=32, seed=seed).eval()
    train, test = text("train", length=32), text("test", length=32)
    subject = Subject.of(model, (test.x[:48], test.y[:48]), find=(train.x[:96], train.y[:96]))
    for name in ("weights", "activations"):
        kind = KINDS[name]
        cut = kind.cut(kind.build(subject), subject, Cutting(k=8, scopes=kind.scopes, depth="remove", seed=seed))
        for scope, partition in cut.items():
            found = coherence(subject, None, partition, seed=seed, **ASKED).to_frame()
            yield from counted(found.assign(graph=name, scope=scope, evidence="coherence"))


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
                        if seed >= N_SHUFFLED:
                            continue
                        fit(model, digits("train"), epochs=15, seed=seed)
                    keys = dict(network=name, seed=seed, labels=labels)
                    for row in measured(model, seed, seed if labels == "shuffled" else None):
                        table.writerow(keys | row)
            for row in of_text(seed):
                table.writerow(dict(network=TEXT, seed=seed, labels="as they are") | row)
            file.flush()
            print(f"seed {seed} of {N_SEEDS}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
