"""How much memory is planned, allowed and taken: `python bench/measure_memory.py [WORD]`, for rows whose name has it.

Every row runs in a process of its own. What it takes is the peak of the memory that the process holds in RAM, less what
it held before: with Python, its libraries and what is said to be there. All rows go to bench/results.md, as a section.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

GB = 1e9


def status(name: str) -> float:
    """GB, from what Linux says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / GB for line in lines if line.startswith(f"{name}:"))


def settled() -> float:
    """GB held now, with what Python has given up returned to the system, and the peak counted from here."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


Row = Iterator[float | None]  # first None, when all is there that is not counted; then the GB planned, NaN if untold
ROWS: dict[str, tuple[Callable[[], Row], str, float | None]] = {}  # name -> row, what is there before, GB allowed


def row(name: str, before: str, memory: float | None = None) -> Callable[[Callable[..., Row]], Callable[..., Row]]:
    def register(function: Callable[..., Row]) -> Callable[..., Row]:
        ROWS[name] = (lambda: function(memory), before, memory)
        return function

    return register


def some(n: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 10


def traced(model: nn.Module, x: torch.Tensor, **options: Any) -> Any:
    from specialize_nb.network.units import trace

    return trace(model.eval(), x, **options)


# Graphs


def weights_of(model: nn.Module, memory: float | None, **options: Any) -> Row:
    from specialize_nb.graphs.weights import stored_edges, weight_graph

    network = traced(model, torch.zeros(2, 3, 224, 224), **options)
    yield None
    graph = weight_graph(network, memory=memory)
    yield 12 * stored_edges(network) / GB
    del graph


@row("weight graph, ViT-B/16, residual='writer'", "traced network", 3.0)
def vit(memory: float | None) -> Row:
    import torchvision

    return weights_of(torchvision.models.vit_b_16(), memory, residual="writer")


@row("weight graph, ResNet-50", "traced network", 3.0)
def resnet50(memory: float | None) -> Row:
    import torchvision

    return weights_of(torchvision.models.resnet50(), memory)


@row("weight graph of ViT-B/16, residual='writer', and 12 clusters, depth removed", "traced network", 3.0)
def vit_clusters(memory: float | None) -> Row:
    import torchvision

    from specialize_nb.clusters.spectral import spectral_partition
    from specialize_nb.graphs.weights import stored_edges, weight_graph

    network = traced(torchvision.models.vit_b_16(), torch.zeros(2, 3, 224, 224), residual="writer")
    yield None
    spectral_partition(weight_graph(network, memory=memory), 12, depth="remove")
    yield 14 * stored_edges(network) / GB


def wide() -> nn.Module:
    from specialize_nb.training.models import mlp

    return mlp((784, 4096, 4096, 4096, 10)).eval()


@row("activation graph, 12,288 units, 2,000 examples, ranks", "traced network and data", 2.0)
def activations(memory: float | None) -> Row:
    from specialize_nb.graphs.activations import activation_graph

    model, data = wide(), some(2000, 784)
    network = traced(model, data[0][:2])
    yield None
    activation_graph(model, data, network, memory=memory)
    yield math.nan


@row("unit similarity, output Jacobian, ResNet-18, 8 images of 64 pixels", "traced network and data", 0.3)
def similarity(memory: float | None) -> Row:
    import torchvision

    from specialize_nb.graphs.similarity import unit_similarity

    model, data = torchvision.models.resnet18().eval(), some(8, 3, 64, 64)
    network = traced(model, data[0][:2])
    yield None
    unit_similarity(model, data, network, measure="output_jacobian", memory=memory)
    yield math.nan


# Pictures


def pictures(name: str, memory: float | None, n: int = 24, layer: int = -1) -> Row:
    import torchvision

    from specialize_nb.network.answers import unit_scales
    from specialize_nb.network.subject import Subject
    from specialize_nb.responses.pictures import visualize

    subject = Subject.of(getattr(torchvision.models, name)().eval(), some(4, 3, 224, 224))
    layer = subject.network.hidden[layer]
    scales = unit_scales(subject, layers=[layer])
    groups = [(layer, [i, i + 1]) for i in range(n)]
    yield None
    visualize(subject, None, groups, steps=2, scales=scales, memory=memory)
    yield float(memory)


@row("pictures, ResNet-18 at 224, 24 groups of the last layer", "traced network", 0.3)
def pictures_resnet(memory: float | None) -> Row:
    return pictures("resnet18", memory)


@row("pictures, VGG-11 at 224, 8 groups of the last convolution", "traced network", 0.3)
def pictures_vgg(memory: float | None) -> Row:
    return pictures("vgg11", memory, n=8, layer=7)


@row("pictures, MobileNetV2 at 224, 12 groups of the last layer", "traced network", 0.3)
def pictures_mobile(memory: float | None) -> Row:
    return pictures("mobilenet_v2", memory, n=12)


# Lesions: what `plan` says


def lesions(made: Callable[[], tuple[nn.Module, Any]], memory: float | None, n_layers: int = 3) -> Row:
    from specialize_nb.clusters.partition import Partition
    from specialize_nb.lesions.importance import importance
    from specialize_nb.lesions.plan import plan
    from specialize_nb.training.models import cnn

    def run(model: nn.Module, data: Any, **options: Any) -> float:
        network = traced(model, data[0][:2])
        names = [network.hidden[i] for i in np.unique(np.linspace(0, len(network.hidden) - 1, n_layers).astype(int))]
        labels = {name: np.arange(network.layer(name).n_units) % 4 for name in names}
        asked = dict(network=network, n_controls=9, n_boot=200, matched=False, **options)
        planned = plan(model, data, Partition.from_labels(labels), probe_seconds=0.1, **asked).bytes
        importance(model, data, Partition.from_labels(labels), **asked)
        return planned / GB

    Scores(1, 8)  # loads what GPT-2 loads
    run(cnn(size=8, channels=(4, 4), dense=8).eval(), some(16, 1, 8, 8))  # loads what tracing and lesions load
    yield None
    yield run(*made(), memory=memory)


def digits_cnn() -> tuple[nn.Module, Any]:
    from specialize_nb.base.data import digits
    from specialize_nb.training.models import cnn

    images = digits("train")
    return cnn(size=8, channels=(32, 32, 32), dense=64).eval(), (images.x, images.y)


def vgg() -> tuple[nn.Module, Any]:
    from specialize_nb.training.models import vgg as made

    return made().eval(), some(64, 3, 32, 32)


class Scores(nn.Module):
    """A GPT-2 that says the scores of the next token."""

    def __init__(self, depth: int = 4, width: int = 256) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = dict(n_layer=depth, n_head=4, n_embd=width, vocab_size=1000, n_positions=64, use_cache=False)
        self.model = GPT2LMHeadModel(GPT2Config(**sizes))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens).logits


def gpt2() -> tuple[nn.Module, Any]:
    tokens = torch.randint(1000, (8, 64), generator=torch.Generator().manual_seed(0))
    return Scores().eval(), (tokens, tokens.roll(-1, 1))


NETWORKS = {"CNN on digits": digits_cnn, "reference VGG, 64 images": vgg, "GPT-2 of 4 blocks, 64 tokens": gpt2}
for name, made in NETWORKS.items():
    for memory in (None, 0.02 if made is digits_cnn else 0.09):
        told = f"lesions, {name}" + (", bounded" if memory else "")
        row(told, "libraries", memory)(lambda memory, made=made: lesions(made, memory))


# Each in a process of its own


def measured(name: str) -> dict[str, float | str | None]:
    torch.set_num_threads(1)
    make, before, memory = ROWS[name]
    steps = make()
    next(steps)
    held = settled()
    planned = next(steps)
    return dict(name=name, before=before, allowed=memory, planned=planned, taken=status("VmHWM") - held)


def asked(name: str) -> dict[str, Any]:
    words = [sys.executable, __file__, "--one", name]
    found = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if found.returncode:
        return dict(name=name, error=found.stderr.strip().splitlines()[-1])
    return json.loads(found.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    columns = ["what", "beside", "allowed, GB", "planned, GB", "taken, GB", "taken / planned"]
    head = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for one in rows:
        if "error" in one:
            head.append(f"| {one['name']} | | | | {one['error']} | |")
            continue
        allowed = "" if one["allowed"] is None else f"{one['allowed']:.3g}"
        numbers = f"{one['planned']:.3g} | {one['taken']:.3g} | {one['taken'] / one['planned']:.2f}".replace("nan", "")
        head.append(f"| {one['name']} | {one['before']} | {allowed} | {numbers} |")
    return "\n".join(head)


def main(words: list[str]) -> int:
    if words[:1] == ["--one"]:
        print(json.dumps(measured(words[1])))
        return 0
    from harness import keep, machine

    rows = []
    for name in [name for name in ROWS if all(word in name for word in words)]:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows.append(asked(name))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    if not words:
        told = "Peak of a process of its own, beside what it held before: see the column."
        keep(f"## Memory, by `python bench/measure_memory.py`\n\n{table(rows)}\n\n{told} {machine()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
