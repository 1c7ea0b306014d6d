"""Runs of `importance` beside what `plan` said of them before: the column of answers has both times.

    python bench/measure_plan.py --range       # how often does a run end within its range? goes on where it broke off

The second writes plan_runs.csv beside this file: ten runs each of a ResNet-20, a network of depthwise convolutions and
a small transformer, all trained a little, with another seed for the network, its training and the analysis each time.
Each run is a process of its own with one thread. Seconds are those of a machine that others may be using, so the
seconds of its processor stand beside; how many lesions are planned and done depends on no machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import pandas as pd
import torch
from harness import Race, measure
from resnet import resnet20
from torch import Tensor, nn
from torch.nn import functional as F

from specialize_nb.base.data import digits, torchvision_images
from specialize_nb.base.text import next_token
from specialize_nb.clusters.partition import Partition
from specialize_nb.clusters.spectral import local_partition, spectral_partition
from specialize_nb.graphs.weights import weight_graph
from specialize_nb.lesions.importance import importance
from specialize_nb.lesions.plan import Plan, plan
from specialize_nb.network.units import trace
from specialize_nb.training.fit import fit
from specialize_nb.training.models import cnn, mlp

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data"
PEER = "`plan` of the same run, probing for 5 s"
RUNS = Path(__file__).resolve().with_name("plan_runs.csv")
N_SEEDS = 10


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


# How often does a run end within its range?


class Scene(NamedTuple):
    """A trained network, data to judge it with, and its clusters."""

    model: nn.Module
    data: Any
    partition: Partition


def enlarged(split: str, size: int, n: int) -> tuple[Tensor, Tensor]:
    """Digits as pictures of `size` pixels and three equal channels."""
    x, y = digits(split)
    x = F.interpolate(x[:n].reshape(-1, 1, 8, 8), size=(size, size), mode="bilinear")
    return x.expand(-1, 3, -1, -1).contiguous(), y[:n]


def on_digits(model: nn.Module, seed: int, *, n: int, k: int) -> Scene:
    fit(model, enlarged("train", 16, 1200), epochs=4, lr=3e-3, seed=seed)
    data, model = enlarged("test", 16, n), model.eval().requires_grad_(False)
    return Scene(model, data, local_partition(weight_graph(trace(model, data[0][:2])), k, seed=seed))


def residual(seed: int) -> Scene:
    return on_digits(resnet20(seed), seed, n=32, k=3)


def depthwise(seed: int) -> Scene:
    """Blocks as in a MobileNet: a convolution of each channel alone, and one of single pixels."""
    widths, strides = [16, 24, 24, 32, 32, 48, 48], [1, 2, 1, 2, 1, 1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        for (before, width), stride in zip(pairwise(widths), strides, strict=True):
            alone = nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False)
            parts += [alone, nn.BatchNorm2d(before), nn.ReLU()]
            parts += [nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    return on_digits(model, seed, n=200, k=4)


def transformer(seed: int) -> Scene:
    """A GPT-2 of two blocks that reads characters of a play."""
    from transformers import GPT2Config, GPT2LMHeadModel

    told = (MNIST / "text" / "shakespeare.txt").read_text(encoding="utf-8")
    places = {one: i for i, one in enumerate(sorted(set(told)))}
    ids = torch.tensor([places[one] for one in told[: 16 * 20_000]]).reshape(-1, 16)
    sizes = dict(vocab_size=len(places), n_positions=16, n_embd=48, n_layer=2, n_head=4, use_cache=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).train()
        steps = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(400):
            some = ids[torch.randint(15_000, (32,), generator=generator)]
            steps.zero_grad()
            F.cross_entropy(model(some).logits[:, :-1].flatten(0, 1), some[:, 1:].flatten()).backward()
            steps.step()
    model, judge = model.eval().requires_grad_(False), ids[15_000 + 24 * seed :][:24]
    return Scene(model, next_token(judge), local_partition(weight_graph(trace(model, judge[:2])), 4, seed=seed))


SCENES: dict[str, Callable[[int], Scene]] = {
    "ResNet-20": residual,
    "depthwise": depthwise,
    "transformer": transformer,
}


def one_run(name: str, seed: int) -> dict[str, Any]:
    """The plan, then the run."""
    torch.set_num_threads(1)
    model, data, partition = SCENES[name](seed)
    start = perf_counter()
    foreseen = plan(model, data, partition, seed=seed)
    row = {"network": name, "seed": seed, "plan_s": perf_counter() - start}
    start, own = perf_counter(), process_time()
    found = importance(model, data, partition, seed=seed)
    row |= {"wall_s": perf_counter() - start, "processor_s": process_time() - own, "load": os.getloadavg()[0]}
    row |= {"processor_share": foreseen.processor, "lesions": found.n_lesions}
    row |= {f"wall_{case}": foreseen.wall[case] for case in foreseen.wall}
    return row | {f"lesions_{case}": foreseen.lesions[case] for case in foreseen.lesions}


def in_range(table: pd.DataFrame) -> pd.DataFrame:
    """Of how many runs the lesions, the seconds and those of the processor lie in the planned range; and medians.

    The upper end of the seconds is that of a machine as busy as the probe found it. Of those of the processor it is
    that of a machine nobody else uses.
    """
    alone = table["wall_high"] * table["processor_share"]
    held = {
        "lesions": table["lesions"].between(table["lesions_low"], table["lesions_high"]),
        "wall": table["wall_s"].between(table["wall_low"], table["wall_high"]),
        "processor": table["processor_s"].between(table["wall_low"], alone),
    }
    ratios = {"done/planned": table["lesions"] / table["lesions_expected"], "plan_s": table["plan_s"]}
    ratios |= {"wall/planned": table["wall_s"] / table["wall_expected"], "load": table["load"]}
    groups = table["network"]
    counts = pd.DataFrame(held).groupby(groups, sort=False).sum().assign(runs=groups.value_counts())
    return counts.join(pd.DataFrame(ratios).groupby(groups, sort=False).median().round(2))


def main() -> None:
    known = pd.read_csv(RUNS) if RUNS.exists() else pd.DataFrame(columns=["network", "seed"])
    done = set(known[["network", "seed"]].itertuples(index=False, name=None))
    for name, seed in [(name, seed) for seed in range(N_SEEDS) for name in SCENES]:
        if (name, seed) in done:
            continue
        command = [sys.executable, __file__, "--one", name, str(seed)]
        told = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        row = json.loads(told.stdout.splitlines()[-1])
        pd.DataFrame([row]).round(3).to_csv(RUNS, mode="a", header=not RUNS.exists(), index=False)
        print(row, flush=True)
    print(in_range(pd.read_csv(RUNS)).to_string())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one_run(sys.argv[2], int(sys.argv[3])), default=float))
    elif sys.argv[1:] == ["--range"]:
        main()
    else:
        print("python bench/measure_plan.py --range; for the races: python bench/harness.py plan", file=sys.stderr)
        sys.exit(2)
