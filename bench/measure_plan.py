"""Runs of `importance` beside what `plan` said of them before: the column of answers has both times."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

from harness import Race, measure
from torch import nn

from specialize_nb.base.data import digits, torchvision_images
from specialize_nb.clusters.spectral import spectral_partition
from specialize_nb.graphs.weights import weight_graph
from specialize_nb.lesions.importance import importance
from specialize_nb.lesions.plan import Plan, plan
from specialize_nb.network.units import trace
from specialize_nb.training.fit import fit
from specialize_nb.training.models import cnn, mlp

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data"
PEER = "`plan` of the same run, probing for 5 s"


def race(model: nn.Module, data: Any, k: int, **options: Any) -> Race:
    """The run, and its plan; both say how many seconds the run takes."""
    network = trace(model, data.x)
    same = dict(partition=spectral_partition(weight_graph(network), k), network=network, **options)

    def ours() -> float:
        start = perf_counter()
        importance(model, data, **same)
        return perf_counter() - start

    def told(took: float, planned: Plan) -> str:
        low, high = planned.wall["low"], planned.wall["high"]
        where = "in" if low <= took <= high else "out of"
        return f"planned {planned.seconds:.3g} s, took {took:.3g} s, {where} its range of {low:.3g} to {high:.3g} s"

    return Race(ours, lambda: plan(model, data, probe_seconds=5, **same), told)


def dense() -> nn.Module:
    model = mlp((64, 64, 64, 64, 10))
    fit(model, digits("train"), epochs=5)
    return model


def convolutional() -> nn.Module:
    model = cnn(size=8, channels=(16, 16, 16), dense=64)
    fit(model, digits("train"), epochs=5)
    return model


@measure("plan: MLP on digits, 999 controls", peer=PEER, rounds=1)
def planned_mlp() -> Race:
    return race(dense(), digits("test"), 6, n_controls=999, matched=False)


@measure("plan: CNN on digits, 999 controls", peer=PEER, rounds=1)
def planned_cnn() -> Race:
    return race(convolutional(), digits("test"), 6, n_controls=999, matched=False)


@measure("plan: MLP on digits, 999 controls of two kinds, 2 processes", peer=PEER, rounds=1)
def planned_processes() -> Race:
    return race(dense(), digits("test"), 6, n_controls=999, n_jobs=2)


@measure("plan: CNN on MNIST, 300 images, 9 controls", peer=PEER, rounds=1)
def planned_mnist() -> Race:
    train, test = (torchvision_images("MNIST", MNIST, split=split) for split in ("train", "test"))
    model = cnn()
    fit(model, type(train)(train.x[:500], train.y[:500]), epochs=1)
    return race(model, type(test)(test.x[:300], test.y[:300]), 4, n_controls=9, matched=False)
