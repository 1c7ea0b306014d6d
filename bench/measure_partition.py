"""Spectral clustering of a layered graph, by dense blocks and by an adjacency matrix."""

import json
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from harness import Race, measure
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from torch import nn

from specialize_nb.clusters.partition import ncut
from specialize_nb.clusters.spectral import spectral_partition
from specialize_nb.graphs.graph import UnitGraph
from specialize_nb.graphs.weights import weight_graph
from specialize_nb.network.units import trace


def layered_graph(size: int, n_layers: int, k: int, seed: int = 0) -> UnitGraph:
    """Every layer joined to the next by random weights, three times as large within each of `k` modules."""
    generator = torch.Generator().manual_seed(seed)
    names, module = [f"layer{i}" for i in range(n_layers)], torch.arange(size) % k
    together = 1 + 2 * (module[:, None] == module)
    blocks = {pair: torch.rand(size, size, generator=generator) * together for pair in pairwise(names)}
    return UnitGraph(layers=tuple(names), sizes=(size,) * n_layers, blocks=blocks)


def adjacency_of(graph: UnitGraph) -> sp.csr_array:
    full = graph.adjacency()
    index = [part.astype(np.int32) for part in (full.indices, full.indptr)]  # scikit-learn refuses 64 bits
    return sp.csr_array((full.data, *index), shape=full.shape)


def race(size: int, n_layers: int, k: int) -> Race:
    graph = layered_graph(size, n_layers, k)
    adjacency = adjacency_of(graph)
    peer = SpectralClustering(k, affinity="precomputed", n_init=25, random_state=0)

    def same(mine, theirs) -> str:
        rand = adjusted_rand_score(np.concatenate(list(mine.labels.values())), theirs)
        return f"adjusted Rand index {rand:.3f}, n-cut {mine.ncut:.4f} and {ncut(graph, theirs.astype(np.int64)):.4f}"

    return Race(lambda: spectral_partition(graph, k), lambda: peer.fit_predict(adjacency), same)


@measure("spectral_partition, 4 layers of 256 units, 12 clusters", peer="sklearn SpectralClustering, same adjacency")
def small() -> Race:
    return race(256, 4, 12)


@measure(
    "spectral_partition, 4 layers of 1,024 units, 12 clusters",
    peer="sklearn SpectralClustering, same adjacency",
    rounds=3,
)
def large() -> Race:
    return race(1024, 4, 12)


class Answer(NamedTuple):
    labels: np.ndarray
    mb: float  # Most memory so far, besides that of the libraries; the graph or adjacency matrix included
    note: str


class Side:
    """`partition_scale.py` with its input read, waiting to be told to cluster."""

    def __init__(self, side: str, folder: str, k: int) -> None:
        command = [
            sys.executable,
            "-W",
            "ignore",
            str(Path(__file__).parent / "partition_scale.py"),
            side,
            folder,
            str(k),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{command} did not start")

    def __call__(self) -> Answer:
        with tempfile.TemporaryDirectory() as folder:
            self.process.stdin.write(f"{folder}/labels.npy\n")
            self.process.stdin.flush()
            if not (line := self.process.stdout.readline()):
                raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
            return Answer(np.load(f"{folder}/labels.npy").astype(np.int64), **json.loads(line))

    def __del__(self) -> None:
        self.process.kill()
        self.process.wait()


def write_sides(graph: UnitGraph, folder: str) -> None:
    """Both inputs as files, so that neither side's memory holds what it took to make them.

    A block that several pairs of layers share, as `weight_graph` makes them for a residual stream, is one file.
    """
    blocks = {id(block): block for block in graph.blocks.values()}
    files = [list(blocks).index(id(block)) for block in graph.blocks.values()]
    fields = {"layers": graph.layers, "sizes": graph.sizes, "pairs": list(graph.blocks), "files": files}
    Path(folder, "graph.json").write_text(json.dumps(fields))
    for i, block in enumerate(blocks.values()):
        np.save(f"{folder}/block{i}.npy", block.numpy())
    adjacency = adjacency_of(graph)
    for name in ("data", "indices", "indptr"):
        np.save(f"{folder}/{name}.npy", getattr(adjacency, name))


def network_race(model: nn.Module, x: torch.Tensor, k: int) -> Race:
    graph = weight_graph(trace(model.eval().requires_grad_(False), x))
    with tempfile.TemporaryDirectory() as folder:
        write_sides(graph, folder)
        ours, peer = Side("ours", folder, k), Side("peer", folder, k)

    def same(mine: Answer, theirs: Answer) -> str:
        cuts = [ncut(graph, one.labels) for one in (mine, theirs)]
        memory = f"peak memory {mine.mb:,.0f} and {theirs.mb:,.0f} MB"
        return f"n-cut {cuts[0]:.4f} and {cuts[1]:.4f}; {memory}; solver of the peer: {theirs.note}"

    return Race(ours, peer, same)


def depth_race(model: nn.Module, x: torch.Tensor, k: int) -> Race:
    """With depth removed, beside the published cut."""
    graph = weight_graph(trace(model.eval().requires_grad_(False), x))
    with tempfile.TemporaryDirectory() as folder:
        write_sides(graph, folder)
        removed, kept = Side("removed", folder, k), Side("ours", folder, k)
    return Race(removed, kept, lambda mine, theirs: f"peak memory {mine.mb:,.0f} and {theirs.mb:,.0f} MB")


def vision(name: str) -> tuple[nn.Module, torch.Tensor, int]:
    import torchvision

    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None), torch.randn(2, 3, 224, 224), 12


def vision_race(name: str) -> Race:
    return network_race(*vision(name))


@measure("spectral_partition, VGG-16, 12 clusters", peer="sklearn SpectralClustering, same adjacency", rounds=1)
def vgg16() -> Race:
    return vision_race("vgg16")


@measure("spectral_partition, ResNet-50, 12 clusters", peer="sklearn SpectralClustering, same adjacency", rounds=1)
def resnet50() -> Race:
    return vision_race("resnet50")


@measure(
    "spectral_partition, MLP 784-4096x3-10, 12 clusters", peer="sklearn SpectralClustering, same adjacency", rounds=1
)
def wide_mlp() -> Race:
    return network_race(*wide())


def wide() -> tuple[nn.Module, torch.Tensor, int]:
    torch.manual_seed(0)
    sizes = (784, 4096, 4096, 4096, 10)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]), torch.randn(2, sizes[0]), 12


@measure("spectral_partition, depth removed, VGG-16, 12 clusters", peer="spectral_partition, depth kept", rounds=3)
def vgg16_depth() -> Race:
    return depth_race(*vision("vgg16"))


@measure("spectral_partition, depth removed, ResNet-50, 12 clusters", peer="spectral_partition, depth kept", rounds=3)
def resnet50_depth() -> Race:
    return depth_race(*vision("resnet50"))


@measure(
    "spectral_partition, depth removed, MLP 784-4096x3-10, 12 clusters",
    peer="spectral_partition, depth kept",
    rounds=3,
)
def wide_mlp_depth() -> Race:
    return depth_race(*wide())
