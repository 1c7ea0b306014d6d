"""Does Gromov-Wasserstein add anything to groups of layers? Writes layers_*.csv beside this file.

    python nbs/studies/layers.py [TASK ...] --data ROOT --work FOLDER
    python nbs/studies/layers.py --regroup

Tasks are those named, all by default. What a network gave is kept in FOLDER, and passed over when the script is run
again. MNIST is read from ROOT, which holds `MNIST/raw` with the four unzipped files. --regroup trains nothing: it finds
the groups anew in the distances of the table.
"""

import argparse
import itertools
import os
import platform
import pydoc_data.topics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from specialize_nb.base.data import modular_addition, torchvision_images
from specialize_nb.base.files import write_atomic
from specialize_nb.layers.distances import layer_distances
from specialize_nb.layers.segments import layer_groups
from specialize_nb.network.units import trace

SEEDS = 0, 1, 2
MEASURES = ("gw", "identity", "rsa", "cka", "cka_rbf", "procrustes", "svcca", "pwcca", "sliced_wasserstein")
FEW = "gw", "identity", "cka"
N, SAMPLES = 150, 3  # Points, and samples of them for the first network of a task
HERE = Path(__file__)

# Networks: a stream of one width, to which every step adds something, so that a step can be left out or moved --------


class Step(nn.Module):
    """What a step adds to the stream."""

    def __init__(self, inner: nn.Module, width: int):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


class Attention(nn.Module):
    """Causal attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.mix, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.mix(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(*parts, is_causal=True)
        return self.out(found.transpose(1, 2).flatten(2))


class Sum(nn.Module):
    """The sum of what two tokens stand for."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.table = nn.Embedding(size, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x[:, 0]) + self.table(x[:, 1])


class Text(nn.Module):
    """Characters and their places."""

    def __init__(self, size: int, width: int, context: int):
        super().__init__()
        self.table, self.place = nn.Embedding(size, width), nn.Parameter(torch.randn(context, width) / 50)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x) + self.place


class Stream(nn.Module):
    """A stream, and the steps along it."""

    def __init__(self, enter: nn.Module, steps: Sequence[Step], leave: nn.Module):
        super().__init__()
        self.enter, self.steps, self.leave = enter, nn.Sequential(*steps), leave

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.steps(self.enter(x)))


def dense(width: int, hidden: int) -> Step:
    return Step(nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)), width)


# Tasks ------------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A network to be trained, and what it is trained and tested on."""

    model: Stream
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    fit: Callable[..., None]
    points: str


def addition(seed: int, root: Path) -> Task:
    """a + b mod 31; a fifth of the pairs is held back."""
    p = 31
    train, test = (modular_addition(p, split=split, seed=seed) for split in ("train", "test"))
    model = Stream(Sum(2 * p, 64), [dense(64, 128) for _ in range(8)], nn.Linear(64, p))
    options = dict(n_steps=3000, batch=None, lr=2e-3, decay=4.0)
    parts = [(x + torch.tensor([0, p]), y) for x, y in (train, test)]  # the two places have words of their own
    return Task(model, *parts, partial_fit(options), "flatten")


def images(seed: int, root: Path, turned: bool = False) -> Task:
    """MNIST, 10,000 images to train on; upright, or a quarter turned."""
    model = Stream(
        nn.Sequential(nn.Flatten(), nn.Linear(784, 64)), [dense(64, 64) for _ in range(10)], nn.Linear(64, 10)
    )
    parts = []
    for split, n in (("train", 10_000), ("test", 2_000)):
        x, y = torchvision_images("MNIST", root, split=split)
        rows = np.random.default_rng(seed).choice(len(y), n, replace=False)
        x = (x[rows] - 0.13) / 0.31
        parts.append((x.rot90(dims=(2, 3)).contiguous() if turned else x, y[rows]))
    options = dict(n_steps=500, batch=128, lr=1e-3, decay=0.01)
    return Task(model, *parts, partial_fit(options), "flatten")


def text(seed: int, root: Path) -> Task:
    """The next character of Python's help pages, which ship with it; the last tenth is held back."""
    pages = "".join(page for _, page in sorted(pydoc_data.topics.topics.items()))
    letters = {letter: i for i, letter in enumerate(sorted(set(pages)))}
    whole, context = torch.tensor([letters[letter] for letter in pages]), 32
    parts = []
    for piece in (whole[: int(0.9 * len(whole))], whole[int(0.9 * len(whole)) :]):
        windows = piece[: len(piece) // (context + 1) * (context + 1)].view(-1, context + 1)
        parts.append((windows[:, :-1], windows[:, 1:]))
    inner = [(Attention(64, 4), dense(64, 256).inner) for _ in range(4)]
    steps = [Step(part, 64) for pair in inner for part in pair]
    model = Stream(Text(len(letters), 64, context), steps, nn.Linear(64, len(letters)))
    options = dict(n_steps=900, batch=32, lr=3e-3, decay=0.01)
    return Task(model, *parts, partial_fit(options), "tokens")


TASKS = {"modular addition": addition, "images": images, "text": text}

# Training ---------------------------------------------------------------------------------------------------------


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x).flatten(0, -2), y.flatten())


@torch.no_grad()
def measured(model: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Loss in nats, and accuracy, of some 1,000 images or pairs, or 4,000 characters."""
    x, y = (one[: 1000 if data[1].ndim == 1 else 128] for one in data)
    scores, y = model(x).flatten(0, -2), y.flatten()
    return float(functional.cross_entropy(scores, y)), float((scores.argmax(1) == y).double().mean())


def partial_fit(options: dict) -> Callable:
    return lambda model, *data, **more: fit(model, *data, **(options | more))


def fit(
    model: nn.Module, train: tuple, test: tuple, *, n_steps: int, batch: int | None, lr: float, decay: float, seed: int
) -> Iterator[tuple]:
    """Train with AdamW; rows step, loss and accuracy in training, loss and accuracy in test."""
    generator, (x, y) = torch.Generator().manual_seed(seed), train
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=decay, betas=(0.9, 0.98))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 50, max(0.02, min(1.0, 2 * (1 - i / n_steps))))
    )
    for i in range(n_steps + 1):
        if i % max(1, n_steps // 30) == 0:
            yield (i, *measured(model, train), *measured(model, test))
        if i == n_steps:
            return
        rows = torch.randint(len(x), (batch,), generator=generator) if batch else slice(None)
        optimizer.zero_grad()
        loss_of(model, x[rows], y[rows]).backward()
        optimizer.step()
        rate.step()


# What is measured -------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """Rows of the four files."""

    distances: list[dict]
    groups: list[dict]
    damage: list[dict]
    training: list[dict]


def short(value: float) -> float:
    return float(f"{value:.4g}")


def layers_of(model: nn.Module, x: Tensor) -> tuple:
    """The traced network, and its states: what enters the stream, and the stream after every step."""
    network = trace(model, x[:2], residual="stream")
    sums = [layer.name for layer in network.layers if layer.op == "sum" and layer.name.startswith("steps")]
    first = [layer.name for layer in network.layers if layer.name.startswith("enter")][-1]
    return network, [first, *sums]


def compare(found: Found, key: dict, model: Stream, task: Task, measures: Sequence[str], repeats: int) -> None:
    """Distances by every measure, and the groups each finds."""
    x = task.test[0]
    network, names = layers_of(model.eval(), x)
    for measure in measures:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            start = time.process_time()
            result = layer_distances(
                model,
                (x, torch.zeros(len(x)).long()),
                measure=measure,
                n=N,
                n_random=1,
                points=task.points,
                layers=names,
                network=network,
                repeats=repeats,
            )
        seconds = time.process_time() - start
        for i, j in itertools.combinations(range(len(names)), 2):
            for sample in range(repeats):
                losses = result.losses[sample, i, j]
                best = result.starts[int(np.nanargmin(losses))] if len(losses) and np.isfinite(losses).any() else ""
                pair = dict(sample=sample, i=i, j=j, distance=short(result.draws[sample, i, j]), best_start=best)
                found.distances.append(key | dict(measure=measure) | pair)
        spent = dict(agreement=short(result.agreement), seconds=short(seconds), doubts=len(result.doubts))
        found.groups.append(key | dict(measure=measure) | grouped(result.draws[0]) | spent)


def grouped(distances: np.ndarray) -> dict:
    """Groups of layers (n, n), and how they stand against both nulls."""
    groups = layer_groups(distances, n_null=499)
    told = dict(n_groups=groups.n_groups, boundaries=" ".join(map(str, groups.boundaries)))
    return told | {name: short(getattr(groups, name)) for name in ("p_order", "p_drift", "abruptness")}


@torch.no_grad()
def harm(found: Found, key: dict, model: Stream, task: Task) -> None:
    """What it costs to leave out a step, or to swap it with the next."""
    steps = list(model.steps)
    before = measured(model, task.test)
    orders = {("drop", i + 1): steps[:i] + steps[i + 1 :] for i in range(len(steps))}
    orders |= {("swap", i + 1): [*steps[:i], steps[i + 1], steps[i], *steps[i + 2 :]] for i in range(len(steps) - 1)}
    for (what, i), order in orders.items():
        after = measured(Stream(model.enter, order, model.leave), task.test)
        row = dict(what=what, step=i, damage=short(after[0] - before[0]), accuracy_lost=short(before[1] - after[1]))
        found.damage.append(key | row)


def train(found: Found, key: dict, model: Stream, task: Task, seed: int, **options) -> None:
    columns = ("step", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    for row in task.fit(model.train(), task.train, task.test, seed=seed, **options):
        found.training.append(key | dict(zip(columns, map(short, row), strict=True)))
    model.eval()


def network(name: str, seed: int, root: Path) -> Found:
    """One network before and after training."""
    found = Found([], [], [], [])
    torch.manual_seed(seed)
    task = TASKS[name](seed, root)
    for state in ("initial", "trained"):
        key = dict(task=name, seed=seed, state=state)
        if state == "trained":
            train(found, key, task.model, task, seed)
        compare(found, key, task.model, task, MEASURES, SAMPLES if seed == 0 and state == "trained" else 1)
    harm(found, key, task.model, task)
    return found


def tuned(seed: int, root: Path) -> Found:
    """MNIST upright, then a quarter turned: all steps trained on, or the first half frozen; or more of the same."""
    found = Found([], [], [], [])
    torch.manual_seed(seed)
    upright, turned = images(seed, root), images(seed, root, turned=True)
    key = dict(task="fine-tuned", seed=seed)
    train(found, key | dict(state="before"), upright.model, upright, seed)
    compare(found, key | dict(state="before"), upright.model, turned, FEW, 1)
    for state in ("more", "all", "frozen"):
        model, task = deepcopy(upright.model), upright if state == "more" else turned
        if state == "frozen":
            for part in (model.enter, *model.steps[: len(model.steps) // 2]):
                part.requires_grad_(False)
        train(found, key | dict(state=state), model, task, seed + 100)
        compare(found, key | dict(state=state), model, turned, FEW, 1)
    return found


# All --------------------------------------------------------------------------------------------------------------

PARTS = {**{name: (lambda seed, root, name=name: network(name, seed, root)) for name in TASKS}, "fine-tuned": tuned}


def machine() -> str:
    cores = f"{os.cpu_count()} cores" if os.cpu_count() else "cores unknown"
    return f"{cores}, one used; Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"


def finish(part: str, seed: int, root: Path, work: Path) -> None:
    """Measure one network, unless that is done."""
    folder = work / f"{part.replace(' ', '_')}_{seed}"
    if (folder / "times.csv").exists():
        return
    start, cpu = time.perf_counter(), time.process_time()
    found = PARTS[part](seed, root)
    for name, rows in found._asdict().items():
        write_atomic(folder / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False).encode() if rows else b"")
    spent = dict(seconds=round(time.perf_counter() - start, 1), cpu_seconds=round(time.process_time() - cpu, 1))
    times = pd.DataFrame([dict(task=part, seed=seed, **spent, machine=machine())])
    write_atomic(folder / "times.csv", times.to_csv(index=False).encode())


def gather(work: Path) -> None:
    """Put what is finished into the files beside this one."""
    for name in (*Found._fields, "times"):
        files = [path for path in sorted(work.glob(f"*/{name}.csv")) if path.stat().st_size]
        whole = pd.concat([pd.read_csv(path, keep_default_na=False) for path in files])
        write_atomic(HERE.with_name(f"layers_{name}.csv"), whole.to_csv(index=False).encode())


def regroup() -> None:
    """Find the groups anew in the distances of the table, first samples."""
    read = dict(keep_default_na=False, na_values=["nan", ""])
    pairs, groups = (pd.read_csv(HERE.with_name(f"layers_{name}.csv"), **read) for name in ("distances", "groups"))
    key = ["task", "seed", "state", "measure"]
    first = dict(iter(pairs[pairs["sample"] == 0].groupby(key)))
    for place, names in zip(groups.index, groups[key].itertuples(index=False, name=None), strict=True):
        one = first[names]
        distances = np.zeros((int(one["j"].max()) + 1,) * 2)
        distances[one["i"], one["j"]] = distances[one["j"], one["i"]] = one["distance"]
        for name, value in grouped(distances).items():
            groups.loc[place, name] = value
    write_atomic(HERE.with_name("layers_groups.csv"), groups.to_csv(index=False, na_rep="nan").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="task", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--data", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--work", type=Path, help="folder for what is finished, outside the repository")
    parser.add_argument("--regroup", action="store_true", help="only find groups anew in the stored distances")
    given = parser.parse_args()
    if given.regroup:
        sys.exit(regroup())
    if given.data is None or given.work is None:
        parser.error("give --data and --work, or --regroup")
    if unknown := [part for part in given.parts if part not in PARTS]:
        parser.error(f"no task {unknown[0]!r}: choose of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    for part, seed in tqdm([(part, seed) for seed in SEEDS for part in given.parts or PARTS]):
        finish(part, seed, given.data, given.work)
        gather(given.work)
