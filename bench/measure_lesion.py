"""The lesion engine beside one hook and one full pass a lesion, and beside its floor, bare suffix passes.

A sweep silences random groups of units, 60 in every hidden layer, as a run of the importance measure does.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from harness import Race, measure
from resnet import resnet20
from torch import nn
from torch.nn import functional as F

from specialize_nb.base.data import Batches, batches, digits
from specialize_nb.lesions.lesion import TABLE_MEASURES, lesion_engine, measure_lesions
from specialize_nb.lesions.runs import Block, run_blocks
from specialize_nb.network.units import Network, trace
from specialize_nb.training.fit import fit
from specialize_nb.training.models import cnn, mlp, vgg

BATCH = 128
HOOKS = "one hook, one full pass a lesion"
FLOOR = "the floor: bare passes from the lesion on"


class Scene(NamedTuple):
    """A network, images, and random groups of a tenth of the units of its hidden layers."""

    model: nn.Module
    data: Batches
    network: Network
    groups: dict[str, np.ndarray]  # Layer -> (n_lesions, n_units) bool


def scene(model: nn.Module, shape: tuple[int, ...], n: int, n_lesions: int = 60, every: int = 1) -> Scene:
    """`n` random images; every=4 lesions the first, fifth, ... hidden layer."""
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=(n, *shape)), dtype=torch.float32)
    return with_data(model, x, torch.as_tensor(rng.integers(10, size=n)), n_lesions, every)


def with_data(model: nn.Module, x: torch.Tensor, y: torch.Tensor, n_lesions: int, every: int = 1) -> Scene:
    network, rng = trace(model, x[:2]), np.random.default_rng(1)
    hidden = [layer for layer in network.layers if layer.kind == "hidden"][::every]
    groups = {layer.name: rng.random((n_lesions, layer.n_units)) < 0.1 for layer in hidden}
    return Scene(model, batches((x, y), batch_size=BATCH), network, groups)


def sweep(given: Scene, precision: str | None = None) -> list[np.ndarray]:
    """For each layer: (2, n_lesions, n_images), the loss and whether the answer is right."""
    engine = lesion_engine(given.model, given.data, given.network, list(given.groups), precision=precision)
    return [
        np.stack(measure_lesions(engine, given.data, [{name: table}], list(TABLE_MEASURES.values()))[0])
        for name, table in given.groups.items()
    ]


def module_of(given: Scene, layer: str) -> nn.Module:
    """The module that puts out what the layer's units do."""
    x = next(iter(given.data))[0][:2]
    wanted, found = given.network.activations(x, [layer])[layer], []
    handles = [
        one.register_forward_hook(lambda mod, _, out: found.append(mod) if torch.equal(out, wanted) else None)
        for one in given.model.modules()
    ]
    with torch.inference_mode():
        given.model(x)
    for handle in handles:
        handle.remove()
    return found[0]


def hooked(given: Scene) -> list[np.ndarray]:
    """What `sweep` gives, the way one writes it first."""
    found = []
    for name, table in given.groups.items():
        module, parts = module_of(given, name), []
        for group in torch.as_tensor(table):

            def silence(mod, inputs, output, group=group):
                output[:, group] = 0

            handle, rows = module.register_forward_hook(silence), []
            with torch.inference_mode():
                for x, y in given.data:
                    scores = given.model(x)
                    loss = F.cross_entropy(scores, y, reduction="none")
                    rows.append(torch.stack([loss, (scores.argmax(1) == y).float()]))
            handle.remove()
            parts.append(torch.cat(rows, 1))
        found.append(torch.stack(parts, 1).numpy())
    return found


def far(mine: list[np.ndarray], theirs: list[np.ndarray]) -> str:
    most = max(np.abs(a[0] - b[0]).max() for a, b in zip(mine, theirs, strict=True))
    return f"largest difference of a loss {most:.1g} nats"


def against_hooks(given: Scene) -> Race:
    return Race(lambda: sweep(given), lambda: hooked(given), far)


def against_floor(given: Scene) -> Race:
    """The same parts of the fused program on values ready to go: no masks, no measures, nothing before the lesion."""
    engine = lesion_engine(given.model, given.data, given.network, list(given.groups))
    calls = []
    for name, table in given.groups.items():
        cut = engine.cuts[(name,)]
        for part in engine.parts(given.data, (name,)):
            whole, left = divmod(len(table), part.n_together)
            for times, n in ((whole, part.n_together), (1, left)):
                none = {name: torch.zeros((n, table.shape[1]), dtype=torch.bool)}
                fills = {name: engine.fills[name].rows(part.examples)}
                calls += [(cut.parts[1], cut.stacked(part.kept, none, fills), times)] * (n > 0)

    @torch.inference_mode()
    def passes() -> None:
        for after, values, times in calls:
            for _ in range(times):
                after(*values)

    return Race(lambda: sweep(given), passes, lambda mine, theirs: "no answers")


@measure("lesion sweep, ResNet-20, 19 layers, 60 lesions each, 24 images", peer=HOOKS, rounds=3)
def resnet_hooks() -> Race:
    return against_hooks(scene(resnet20(), (3, 32, 32), 24))


@measure("lesion sweep, reference CNN, 4 layers, 60 lesions each, 48 images", peer=HOOKS, rounds=3)
def cnn_hooks() -> Race:
    return against_hooks(scene(cnn(size=28), (1, 28, 28), 48))


@measure("lesion sweep, reference VGG-16, every fourth layer, 20 lesions each, 16 images", peer=HOOKS, rounds=3)
def vgg_hooks() -> Race:
    return against_hooks(scene(vgg(), (3, 32, 32), 16, n_lesions=20, every=4))


@measure("lesion sweep, reference MLP, 4 layers, 60 lesions each, 256 images", peer=HOOKS, rounds=3)
def mlp_hooks() -> Race:
    return against_hooks(scene(mlp(), (784,), 256))


@measure("lesion sweep, ResNet-20, 19 layers, 60 lesions each, 24 images, bare", peer=FLOOR, rounds=3)
def resnet_floor() -> Race:
    return against_floor(scene(resnet20(), (3, 32, 32), 24))


@measure("lesion sweep, reference CNN, 4 layers, 60 lesions each, 48 images, bare", peer=FLOOR, rounds=3)
def cnn_floor() -> Race:
    return against_floor(scene(cnn(size=28), (1, 28, 28), 48))


@measure(
    "lesion sweep, CNN trained on digits, bfloat16, 60 lesions each, 48 images", peer=f"{HOOKS}, in float32", rounds=3
)
def bfloat16() -> Race:
    model, train, test = cnn(size=28), *(larger(*digits(part)) for part in ("train", "test"))
    fit(model, (train[0][:512], train[1][:512]), epochs=2)
    given = with_data(model, test[0][:48], test[1][:48], 60)
    info = Path("/proc/cpuinfo")
    amx = "amx_bf16" in info.read_text().split() if info.exists() else False

    def same(mine: list[np.ndarray], theirs: list[np.ndarray]) -> str:
        alike = np.mean([ordered(a) == ordered(b) for a, b in zip(mine, theirs, strict=True)])
        right = np.mean([a[1] == b[1] for a, b in zip(mine, theirs, strict=True)])
        return f"{alike:.4f} of pairs of lesions ordered alike, {right:.4f} of answers alike; amx_bf16: {amx}"

    return Race(lambda: sweep(given, "bfloat16"), lambda: hooked(given), same)


def larger(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return F.interpolate(x, size=28, mode="bilinear"), y


def ordered(found: np.ndarray) -> np.ndarray:
    """For all pairs of lesions of a layer, does the first do more damage?"""
    loss = found[0].mean(1)
    return (loss[:, None] > loss)[np.triu_indices(len(loss), 1)]


@measure("lesion sweep, reference CNN, 4 layers, 60 lesions each, 48 images, 2 processes", peer="1 process", rounds=1)
def processes() -> Race:
    given = scene(cnn(size=28), (1, 28, 28), 48)
    engine = lesion_engine(given.model, given.data, given.network, list(given.groups))
    halves = [(name, half) for name, table in given.groups.items() for half in np.array_split(table, 2)]
    blocks = [Block(str(i), arguments) for i, arguments in enumerate(halves)]

    def run(n_jobs: int) -> list[dict[str, np.ndarray]]:
        return run_blocks(one_block, (engine, given.data), blocks, n_jobs=n_jobs)

    def same(mine: list[dict], theirs: list[dict]) -> str:
        bits = all(np.array_equal(a["loss"], b["loss"]) for a, b in zip(mine, theirs, strict=True))
        return "the same bits" if bits else "other bits"

    return Race(lambda: run(2), lambda: run(1), same)


def one_block(shared: tuple, layer: str, groups: np.ndarray) -> dict[str, np.ndarray]:
    engine, data = shared
    return {"loss": measure_lesions(engine, data, [{layer: groups}], [TABLE_MEASURES["loss"]])[0][0]}
