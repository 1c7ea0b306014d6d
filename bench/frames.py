"""Do two versions of the package give the same numbers? `python bench/frames.py OUT` writes those of this one.

Audits of five small networks, importance of pairs, groups of layers and the keys of kept lesions, each in a file of
text with every digit. Run it before and after a change that is to leave behaviour alone, and compare the two folders
with `diff -r`. It takes minutes, and needs nothing but the package.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import specialize_nb as sn
from specialize_nb.lesions.interactions import taxonomy


class Branching(nn.Module):
    """Python decides on values, so torch cannot export it and it is read through hooks."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 24), nn.Linear(24, 24), nn.Linear(24, 10)

    def forward(self, x):
        h = self.first(x.flatten(1)).relu()
        if h.sum() > -1:
            h = self.second(h).relu()
        return self.last(h)


class Rows(nn.Module):
    """A small transformer that reads a picture row by row."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.body(self.embed(x.squeeze(1))).mean(1))


def seeded(make) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def networks(train) -> dict[str, tuple[nn.Module, dict]]:
    """Name -> a trained network, and the options of its audit."""
    found = {
        "mlp": (sn.mlp((64, 96, 96, 96, 10), dropout=0.5), dict(n_controls=99, n_visual=9)),
        "cnn": (sn.cnn(size=8, channels=(32, 32, 32), dense=64), dict(n_controls=99, n_visual=9)),
        "graphs": (
            sn.mlp((64, 32, 32, 32, 10)),
            dict(n_controls=49, n_visual=5, k=4, graphs=("weights", "activations", "upstream", "downstream")),
        ),
        "hooked": (seeded(Branching), dict(n_controls=49, n_visual=5, k=4, graphs=("activations",))),
        "transformer": (seeded(Rows), dict(n_controls=49, n_visual=5, k=4)),
        "sequential": (sn.mlp((64, 32, 32, 10), seed=1), dict(n_controls=sn.Sequential(), n_visual=5, k=4)),
    }
    for model, _ in found.values():
        sn.fit(model, train, epochs=5)
    return found


def write(out: Path, name: str, frame: pd.DataFrame) -> None:
    (out / f"{name}.csv").write_text(frame.to_csv(index=False))


def main(target: str) -> None:
    out = Path(target)
    out.mkdir(parents=True)
    train, test = sn.digits("train"), sn.digits("test")
    for name, (model, options) in networks(train).items():
        store = Path(tempfile.mkdtemp())
        found = sn.audit(model, test, find=train, store=store, **options)
        write(out, f"{name}-frame", found.to_frame())
        write(out, f"{name}-verdicts", found.verdicts())
        (out / f"{name}-verdict.txt").write_text(found.verdict + "\n")
        runs = {path.parent.name: json.loads(path.read_text())["identity"] for path in store.glob("*/run.json")}
        keys = sorted(path.relative_to(store).as_posix() for path in store.rglob("*.npz"))
        (out / f"{name}-store.json").write_text(json.dumps({"runs": runs, "keys": keys}, indent=1, sort_keys=True))
        for i, exhibit in enumerate(found.exhibits):
            total = [float(one.astype("float64").sum()) for one in (exhibit.image, exhibit.controls, exhibit.real)]
            write(out, f"{name}-exhibit-{i}", pd.DataFrame([[exhibit.layer, exhibit.cluster, *total]]))
        if name == "graphs":
            partition = found.findings[0].partition
            pairs = sn.interactions(model, test, partition, n_controls=19)
            write(out, f"{name}-interactions", pairs.to_frame())
            write(out, f"{name}-taxonomy", taxonomy(found.findings[0].importance))
            hurt = sn.importance(
                model, test, partition, ablation="class_mean", n_controls=19, outcomes=("margin", "kl")
            )
            write(out, f"{name}-class-mean", hurt.to_frame())
        shutil.rmtree(store)
    model = sn.mlp((64, 32, 32, 32, 32, 10))
    sn.fit(model, train, epochs=5)
    distances = sn.layer_distances(model, test, measure="cka", n=100)
    write(out, "layers-distances", distances.to_frame())
    write(out, "layers-groups", sn.layer_groups(distances).to_frame())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
