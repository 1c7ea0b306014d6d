"""How near do lesions come to bare suffix passes? `python bench/lesion_floor.py [WORD ...]` writes lesion_floor.csv.

Six networks, batches of 24, 100 and 500 examples, 20 and 200 lesions in each of some layers spread over the depth.
Sides in turn: ours, and what it takes to make the engine ready; *plain*, the layers after the lesion as the model has
them, a whole batch at a time, once a lesion, from values laid ready; *own*, the same in our own program, with batch
norms folded and maps laid out as it does, in our own pieces. Neither of the two silences or measures anything.
Processor seconds of one thread, the median of three rounds, of one where a side takes long; what is done already is not
done again. Cells that would take hours are done with fewer layers, and the largest not at all: the table says so.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from statistics import median
from time import process_time
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from harness import HERE
from resnet import resnet20
from torch import nn

from specialize_nb.base.text import next_token
from specialize_nb.lesions.lesion import TABLE_MEASURES, LesionEngine, lesion_engine, measure_lesions
from specialize_nb.lesions.outcomes import reading
from specialize_nb.network.program import boundary_of
from specialize_nb.network.subject import Subject
from specialize_nb.training.models import cnn, mlp, vgg

TABLE = HERE / "lesion_floor.csv"
EXAMPLES, LESIONS = (24, 100, 500), (20, 200)
MOST = 400_000  # passes of a suffix per network's cost below; beyond, fewer layers are lesioned


def mobile() -> nn.Module:
    """A network of depthwise convolutions, as MobileNet is."""

    def block(i: int, o: int, stride: int) -> nn.Sequential:
        depthwise = nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False)
        pointwise = nn.Conv2d(i, o, 1, bias=False)
        return nn.Sequential(depthwise, nn.BatchNorm2d(i), nn.ReLU(), pointwise, nn.BatchNorm2d(o), nn.ReLU())

    widths = [(16, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*stem, *(block(*one) for one in widths), *head).eval()


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=1000, n_positions=32, n_embd=128, n_layer=4, n_head=4, use_cache=False)
    return GPT2LMHeadModel(config).eval()


class Kind(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]  # Of an example; () for 32 tokens
    cost: int  # Of a pass beside the MLP's, roughly
    n_layers: int  # Lesioned, spread over the depth


NETWORKS = {
    "MLP 784-256x4-10": Kind(mlp, (784,), 1, 4),
    "CNN": Kind(lambda: cnn(size=28), (1, 28, 28), 40, 4),
    "depthwise CNN": Kind(mobile, (3, 32, 32), 20, 6),
    "ResNet-20": Kind(resnet20, (3, 32, 32), 50, 5),
    "GPT-2 of 4 blocks": Kind(gpt2, (), 50, 4),
    "VGG-16": Kind(vgg, (3, 32, 32), 700, 3),
}


class Scene(NamedTuple):
    model: nn.Module
    subject: Subject
    groups: dict[str, np.ndarray]  # Layer -> (n_lesions, n_units) bool


def scene(kind: Kind, n: int, n_lesions: int, n_layers: int) -> Scene:
    rng = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.make()
    if kind.shape:
        x = torch.as_tensor(rng.normal(size=(n, *kind.shape)), dtype=torch.float32)
        data = [(x, torch.as_tensor(rng.integers(10, size=n)))]
    else:
        data = next_token(torch.as_tensor(rng.integers(1000, size=(n, 32))))
    subject = Subject.of(model, data)
    hidden = [layer for layer in subject.network.layers if layer.kind == "hidden"]
    chosen = [hidden[round(i)] for i in np.linspace(0, len(hidden) - 1, n_layers)]
    return Scene(model, subject, {one.name: rng.random((n_lesions, one.n_units)) < 0.1 for one in chosen})


def made_ready(given: Scene) -> LesionEngine:
    """From a network that is traced: checked against its model, all outputs read, cut at each layer, stacks tried."""
    subject = Subject.of(given.model, given.subject.data, network=given.subject.network)
    return lesion_engine(subject, None, None, list(given.groups))


def plain(given: Scene) -> Callable[[], None]:
    program, node = given.subject.network.program, given.subject.scores_node.node
    calls = []
    for name, table in given.groups.items():
        kept = boundary_of(program, [given.subject.network.layer(name).site], [node])
        before, after = program.extract(program.inputs, kept), program.extract(kept, [node])
        for x, _ in given.subject.data:
            with torch.inference_mode():
                calls.append((after, before(*program.arguments(x)), len(table)))
    return repeated(calls)


def own(given: Scene, engine: LesionEngine) -> Callable[[], None]:
    calls = []
    for name, table in given.groups.items():
        cut = engine.cuts[(name,)]
        for part in engine.parts(given.subject.data, (name,)):
            whole, left = divmod(len(table), part.n_together)
            for times, n in ((whole, part.n_together), (1, left)):
                none = {name: torch.zeros((n, table.shape[1]), dtype=torch.bool)}
                extra = [one for key in cut.inside for one in (none[key], None)]
                calls += [(cut.parts[1], (*cut.stacked(part.kept, none, {name: None}), *extra), times)] * (n > 0)
    return repeated(calls)


def repeated(calls: list[tuple]) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        for after, values, times in calls:
            for _ in range(times):
                after(*values)

    return run


def measured(name: str, kind: Kind, n: int, n_lesions: int) -> dict[str, object] | None:
    n_layers = min(kind.n_layers, MOST // (kind.cost * n * n_lesions // 10))
    if not n_layers:
        return None
    given = scene(kind, n, n_lesions, n_layers)
    engine = made_ready(given)
    measures = [reading(one, given.subject.scores, given.subject.task) for one in TABLE_MEASURES.values()]
    if given.subject.task == "dense":
        measures = given.subject.once("measures", lambda: dense_measures(given))

    def ours() -> None:
        for layer, table in given.groups.items():
            measure_lesions(engine, given.subject.data, [{layer: table}], measures)

    sides = {"plain": plain(given), "own": own(given, engine), "ours": ours, "ready": lambda: made_ready(given)}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for i in range(4):
        for side, call in sides.items():
            start = process_time()
            call()
            times[side].append(process_time() - start)
        if i == 0 and sum(map(sum, times.values())) > 20:
            break
    seconds = {f"{side}_s": median(took[1:] or took) for side, took in times.items()}
    total = seconds["ours_s"] + seconds["ready_s"]
    ratios = {f"{side}_over_all": seconds[f"{side}_s"] / total for side in ("plain", "own")}
    rounds = len(times["ours"][1:]) or 1
    fields = dict(network=name, n_examples=n, n_lesions=n_lesions, n_layers=n_layers, rounds=rounds)
    return fields | seconds | ratios | {"own_over_ours": seconds["own_s"] / seconds["ours_s"]}


def dense_measures(given: Scene) -> list:
    """The loss of the next token, as importance measures it."""
    from specialize_nb.lesions.damage import damage_run

    run = damage_run(given.subject, None, None, list(given.groups), n_boot=0)
    return list(dict.fromkeys(one.measure for one in run.work.outcomes))


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    done = {(row["network"], row["n_examples"], row["n_lesions"]) for row in rows}
    cells = [(n, m, name) for m in LESIONS for n in EXAMPLES for name in NETWORKS]
    for n, m, name in cells:
        if (name, n, m) in done or (words and not any(word.lower() in name.lower() for word in words)):
            continue
        row = measured(name, NETWORKS[name], n, m)
        if row is None:
            print(f"{name}, {n} examples, {m} lesions: left out, it would take hours")
            continue
        rows.append(row)
        pd.DataFrame(rows).to_csv(TABLE, index=False, float_format="%.3g")
        print({key: f"{one:.3g}" if isinstance(one, float) else one for key, one in row.items()}, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
