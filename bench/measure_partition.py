"""Spectral clustering of a layered graph, by dense blocks and by an adjacency matrix."""

from itertools import pairwise

import numpy as np
import scipy.sparse as sp
import torch
from harness import Race, measure
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from specialize_nb.graph import UnitGraph
from specialize_nb.partition import spectral_partition


def layered_graph(size: int, n_layers: int, k: int, seed: int = 0) -> UnitGraph:
    """Every layer joined to the next by random weights, three times as large within each of `k` modules."""
    generator = torch.Generator().manual_seed(seed)
    names, module = [f"layer{i}" for i in range(n_layers)], torch.arange(size) % k
    together = 1 + 2 * (module[:, None] == module)
    blocks = {pair: torch.rand(size, size, generator=generator) * together for pair in pairwise(names)}
    return UnitGraph(layers=tuple(names), sizes=(size,) * n_layers, blocks=blocks)


def race(size: int, n_layers: int, k: int) -> Race:
    graph = layered_graph(size, n_layers, k)
    full = graph.adjacency()
    index = [part.astype(np.int32) for part in (full.indices, full.indptr)]  # scikit-learn refuses 64 bits
    adjacency = sp.csr_array((full.data, *index), shape=full.shape)
    peer = SpectralClustering(k, affinity="precomputed", n_init=25, random_state=0)

    def same(mine, theirs) -> str:
        return f"adjusted Rand index {adjusted_rand_score(np.concatenate(list(mine.labels.values())), theirs):.3f}"

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
