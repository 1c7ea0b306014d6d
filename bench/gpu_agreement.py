"""Does every room give on a GPU what it gives on the CPU? The tolerances stand beside the differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gpu_frame import LeftOut, Setting, checks, full_float32, images, near, section, seeded
from resnet import resnet20
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from specialize_nb.base.text import next_token
from specialize_nb.clusters.partition import ncut
from specialize_nb.clusters.spectral import spectral_partition
from specialize_nb.dev.testing import planted_mlp
from specialize_nb.graphs.activations import activation_graph
from specialize_nb.graphs.similarity import unit_similarity
from specialize_nb.graphs.weights import weight_graph
from specialize_nb.layers.distances import layer_distances
from specialize_nb.lesions.damage import damage_run
from specialize_nb.lesions.importance import importance
from specialize_nb.lesions.lesion import Ablation, lesion_table
from specialize_nb.network.units import Network, trace
from specialize_nb.responses.attainability import attainability
from specialize_nb.responses.coherence import coherence
from specialize_nb.responses.pictures import visualize
from specialize_nb.training.models import cnn, mlp

NATS = 2e-4  # of a loss, about 100 times what the order of summation does in float32


def hidden(network: Network) -> list[str]:
    return [layer.name for layer in network.layers if layer.kind == "hidden"]


def drawn(network: Network, names: Sequence[str], n: int) -> dict[str, np.ndarray]:
    """For each layer (n, n_units) bool: random groups of a fifth of the units."""
    rng = np.random.default_rng(1)
    return {name: rng.random((n, network.layer(name).n_units)) < 0.2 for name in names}


def lesioned(
    setting: Setting, model: nn.Module, data: tuple[Tensor, Tensor], ablations: Sequence[Ablation], every: int = 1
) -> dict[str, Any]:
    """The loss of every image under some lesions of each layer."""
    sides, found = [model, setting.moved(model)], []
    networks = [trace(side, typed(data[0][:2], side)) for side in sides]
    names = hidden(networks[0])[:: setting.size(every, 3)]
    for ablation in ablations:
        for name, table in drawn(networks[0], names, setting.size(16, 5)).items():
            tables = [
                lesion_table(side, data, own, name, table, ablation=ablation).measures["loss"]
                for side, own in zip(sides, networks, strict=True)
            ]
            found.append(near(f"loss of each image, nats, {ablation} ablation, layer {name}", *tables, most=NATS))
    return checks(*found)


def typed(x: Tensor, model: nn.Module) -> Tensor:
    like = next(model.parameters())
    return x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)


@section("lesions, dense", part="agreement", most_s=40)
@full_float32()
def dense(setting: Setting) -> dict[str, Any]:
    model = mlp(setting.size((784, 256, 256, 10), (64, 32, 32, 10))).requires_grad_(False)
    x, y = images(setting.size(200, 12), (setting.size(784, 64),))
    kinds: list[Ablation] = ["zero", "mean", "class_mean", "resample"][:: setting.size(1, 3)]
    return lesioned(setting, model, (x, y), kinds)


@section("lesions, convolution", part="agreement", most_s=40)
@full_float32()
def convolution(setting: Setting) -> dict[str, Any]:
    side = setting.size(28, 8)
    model = cnn(size=side, channels=setting.size((64, 64, 64), (8, 8, 8))).requires_grad_(False)
    return lesioned(setting, model, images(setting.size(48, 8), (1, side, side)), ["zero", "resample"])


def mobile(width: int) -> nn.Sequential:
    """Convolutions of one channel each, between those of one pixel, as in MobileNets."""

    def block(before: int, after: int, stride: int) -> list[nn.Module]:
        apart = nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False)
        across = nn.Conv2d(before, after, 1, bias=False)
        return [apart, nn.BatchNorm2d(before), nn.ReLU6(), across, nn.BatchNorm2d(after), nn.ReLU6()]

    stem = [nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()]
    middle = [*block(width, 2 * width, 1), *block(2 * width, 2 * width, 2)]
    return nn.Sequential(*stem, *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


@section("lesions, depthwise", part="agreement", most_s=40)
@full_float32()
def depthwise(setting: Setting) -> dict[str, Any]:
    model, side = seeded(lambda: mobile(setting.size(32, 8))), setting.size(32, 8)
    return lesioned(setting, model, images(setting.size(64, 8), (3, side, side)), ["zero", "mean"])


@section("lesions, residual", part="agreement", most_s=50)
@full_float32()
def residual(setting: Setting) -> dict[str, Any]:
    model, side = resnet20().requires_grad_(False), setting.size(32, 8)
    if setting.tiny:
        model = seeded(lambda: nn.Sequential(*model[:5], *model[-3:-1], nn.Linear(16, 10)))
    return lesioned(setting, model, images(setting.size(32, 6), (3, side, side)), ["zero"], every=2)


def language(layers: int, width: int, heads: int, words: int) -> nn.Module:
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise LeftOut("transformers is not installed") from error
    sizes = dict(n_layer=layers, n_embd=width, n_head=heads, vocab_size=words, n_positions=128)
    return seeded(lambda: GPT2LMHeadModel(GPT2Config(use_cache=False, **sizes)))


@section("lesions, attention heads and neurons", part="agreement", most_s=50)
@full_float32()
def heads(setting: Setting) -> dict[str, Any]:
    model, words = language(*setting.size((3, 96, 6, 1000), (1, 16, 4, 50))), setting.size(1000, 50)
    shape = setting.size((8, 64), (3, 8))
    ids = torch.randint(words, shape, generator=torch.Generator().manual_seed(1))
    found, seen = [], []
    for side in (model, setting.moved(model)):
        network = trace(side, typed(ids[:2], side), attention="head")
        names = [name for name in hidden(network) if name.endswith(("attn", "c_fc"))]
        run = damage_run(side, next_token(ids), network, names, n_boot=0)
        groups = drawn(network, names, setting.size(24, 5))
        seen.append({name: run.damage({name: table})["cross_entropy"] for name, table in groups.items()})
    if not any(name.endswith("attn") for name in seen[0]) or not any(name.endswith("c_fc") for name in seen[0]):
        raise RuntimeError(f"layers of heads and of neurons were expected, not {[*seen[0]]}")
    for name, here in seen[0].items():
        found.append(near(f"damage of each lesion, nats, layer {name}", here, seen[1][name], most=NATS))
    return checks(*found)


def small(setting: Setting) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A convolutional network and images."""
    side = setting.size(28, 8)
    model = cnn(size=side, channels=setting.size((32, 32, 32), (8, 8, 8)), dense=setting.size(128, 24))
    return model.requires_grad_(False), images(setting.size(96, 24), (1, side, side))


def both(setting: Setting, model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Network]]:
    sides = [model, setting.moved(model)]
    return [(side, trace(side, typed(x[:2], side))) for side in sides]


def edges(graph: Any) -> np.ndarray:
    return np.concatenate([block.detach().cpu().double().numpy().ravel() for block in graph.blocks.values()])


@section("graphs", part="agreement", most_s=40)
@full_float32()
def graphs(setting: Setting) -> dict[str, Any]:
    model, data = small(setting)
    sides = both(setting, model, data[0])
    found = [near("weight graph, edges", *[edges(weight_graph(net)) for _, net in sides], most=1e-5, relative=True)]
    for corr, most in (("pearson", 1e-4), ("spearman", 5e-3)):  # two ranks may change places for one rounding
        own = [edges(activation_graph(side, data, net, corr=corr)) for side, net in sides]
        found.append(near(f"activation graph, {corr}, edges", *own, most=most))
    return checks(*found)


@section("partitions", part="agreement", most_s=40)
@full_float32()
def partitions(setting: Setting) -> dict[str, Any]:
    planted, found = planted_mlp(n_modules=4, n=setting.size(512, 128)), []
    made = torch.Generator().manual_seed(1)
    for layer in planted.model[::2]:  # modules that touch: else the components of the graph are the clusters
        layer.weight.add_(0.02 * torch.randn(layer.weight.shape, generator=made))
    sides = both(setting, planted.model, planted.x)
    for name, make in (("weights", weight_graph), ("activations", None)):
        graphs = [make(net) if make else activation_graph(side, (planted.x, planted.y), net) for side, net in sides]
        cut = [spectral_partition(one, 4) for one in graphs]
        labels = [np.concatenate([*one.labels.values()]) for one in cut]
        apart = 1 - adjusted_rand_score(*labels)
        found.append(near(f"by {name}: 1 - adjusted Rand index", [0.0], [apart], most=0.0))
        costs = [ncut(graph, part) for graph, part in zip(graphs, cut, strict=True)]
        found.append(near(f"by {name}: normalised cut", *[[one] for one in costs], most=1e-3, relative=True))
    return checks(*found)


@section("similarities", part="agreement", most_s=40)
@full_float32()
def similarities(setting: Setting) -> dict[str, Any]:
    planted, found = planted_mlp(n_modules=3, n=setting.size(512, 64)), []
    sides = both(setting, planted.model, planted.x)
    for measure in ("covariance", "input_jacobian", "output_jacobian", "loss_hessian"):
        own = [
            edges(unit_similarity(side, (planted.x, planted.y), net, measure=measure, normalized=False))
            for side, net in sides
        ]
        found.append(near(f"{measure}, entries", *own, most=1e-4, relative=True))
    return checks(*found)


@section("layer distances", part="agreement", most_s=60)
@full_float32()
def distances(setting: Setting) -> dict[str, Any]:
    model, data = small(setting)
    sides = [model, setting.moved(model)]
    n, found = setting.size(90, 12), []
    own = [layer_distances(side, data, measure="cka", n=n).matrix for side in sides]
    found.append(near("CKA", *own, most=1e-4))
    own = [layer_distances(side, data, measure="gw", n=n, batched=True).matrix for side in sides]
    found.append(near("Gromov-Wasserstein, many pairs at once", *own, most=2e-2, relative=True))
    return checks(*found)


@section("pictures", part="agreement", most_s=40)
@full_float32()
def pictures(setting: Setting) -> dict[str, Any]:
    model, data = small(setting)
    network = trace(model, data[0][:2])
    groups = [(name, np.arange(3) + i) for i, name in enumerate(hidden(network)[:3])]
    found = [visualize(side, data, groups, steps=setting.size(32, 6)) for side in (model, setting.moved(model))]
    told = [near("response at the first step", *[one.course[:, 0] for one in found], most=1e-3, relative=True)]
    # Steps of Adam make much of a small difference, so pictures differ in details: what they do has to be the same.
    told.append(near("response at the last step", *[one.course[:, -1] for one in found], most=2e-2, relative=True))
    return checks(*told)


def judged(setting: Setting, room: Any, columns: dict[str, tuple[float, bool]], **options: Any) -> dict[str, Any]:
    """A room of evidence on both sides, from one partition; columns of its frame, outcome by outcome."""
    model, data = small(setting)
    (_, network), _ = sides = both(setting, model, data[0])
    partition = spectral_partition(weight_graph(network), 4)
    frames = [room(side, data, partition, network=net, n_boot=20, **options).to_frame() for side, net in sides]
    found = []
    for outcome in frames[0]["outcome"].unique():
        own = [frame[frame["outcome"] == outcome] for frame in frames]
        for column, (most, relative) in columns.items():
            told = f"{outcome}, {column.replace('_', ' ')}"
            found.append(near(told, *[one[column].to_numpy() for one in own], most=most, relative=relative))
    return checks(*found)


@section("coherence", part="agreement", most_s=50)
@full_float32()
def coherent(setting: Setting) -> dict[str, Any]:
    columns = {"value": (3e-2, True), "control_mean": (3e-2, True)}
    few = dict(n_controls=setting.size(99, 9), n_visual=setting.size(9, 2), steps=setting.size(16, 3))
    return judged(setting, coherence, columns, **few)


@section("importance", part="agreement", most_s=50)
@full_float32()
def important(setting: Setting) -> dict[str, Any]:
    n = setting.size(29, 9)
    columns = {"value": (1e-3, False), "control_mean": (1e-3, False), "p_value": (2.5 / (1 + n), False)}
    return judged(setting, importance, columns, n_controls=n, outcomes=["cross_entropy"])


@section("attainability", part="agreement", most_s=50)
@full_float32()
def attainable(setting: Setting) -> dict[str, Any]:
    # Differences of two optimised responses: what Adam makes of rounding is in them.
    few = dict(n_controls=setting.size(19, 4), n_starts=setting.size(2, 1), steps=setting.size(32, 3))
    return judged(setting, attainability, {"value": (5e-2, True), "control_mean": (5e-2, True)}, **few)
