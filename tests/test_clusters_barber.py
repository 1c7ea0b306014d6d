"""The modularity of clusters that run through layers."""

import networkx
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.metrics import adjusted_rand_score

from specialize_nb import modularity_partition
from specialize_nb.clusters.barber import block_modularity
from specialize_nb.clusters.modularity import modularity
from specialize_nb.graphs.graph import UnitGraph


def chain(n_layers=5, n=60, k=3, factor=2.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = [rng.permutation(np.arange(n) % k) for _ in range(n_layers)]
    names = tuple(f"l{i}" for i in range(n_layers))
    blocks = {}
    for i in range(n_layers - 1):
        weights = np.abs(rng.standard_normal((n, n))) * np.where(labels[i][:, None] == labels[i + 1], factor, 1)
        blocks[names[i], names[i + 1]] = torch.tensor(weights)
    return UnitGraph(layers=names, sizes=(n,) * n_layers, blocks=blocks), np.concatenate(labels)


def test_two_blocks_by_hand():
    whole = torch.kron(torch.eye(2), torch.ones(2, 2))
    graph = UnitGraph(layers=("a", "b", "c"), sizes=(4, 4, 4), blocks={("a", "b"): whole, ("b", "c"): torch.ones(4, 4)})
    labels = np.tile([0, 0, 1, 1], 3)
    assert_allclose(block_modularity(graph, labels), (0.5 + 0) / 2, rtol=1e-12)
    assert_allclose(block_modularity(graph, labels * 0), 0, atol=1e-12)
    assert_allclose(block_modularity(graph, labels, resolution=0), (1 + 0.5) / 2, rtol=1e-12)


def test_barbers_formula():
    graph, _ = chain(3, 20)
    labels = np.random.default_rng(1).integers(0, 4, 60)
    parts, total = np.split(labels, 3), 0.0
    for (a, b), block in graph.blocks.items():
        weights, (x, y) = block.numpy(), (parts[int(a[1])], parts[int(b[1])])
        null = np.outer(weights.sum(1), weights.sum(0)) / weights.sum()
        total += ((weights - null) * (x[:, None] == y)).sum() / weights.sum()
    assert_allclose(block_modularity(graph, labels), total / 2, rtol=1e-10)


def test_within_one_layer_it_is_newmans_as_networkx_has_it():
    rng = np.random.default_rng(0)
    matrix = np.triu(rng.uniform(0, 1, (30, 30)), 1)
    matrix, labels = matrix + matrix.T, rng.integers(0, 3, 30)
    graph = UnitGraph(layers=("a",), sizes=(30,), blocks={("a", "a"): torch.tensor(matrix)})
    sets = [set(np.flatnonzero(labels == i).tolist()) for i in range(3)]
    other = networkx.community.modularity(networkx.from_numpy_array(matrix), sets, weight="weight")
    assert_allclose(block_modularity(graph, labels), other, rtol=1e-10)
    assert_allclose(block_modularity(graph, labels), modularity(graph, labels), rtol=1e-10)


def test_number_of_modules_is_found_where_the_whole_graph_shows_layers():
    graph, truth = chain(8)
    found, kept = modularity_partition(graph, depth="remove", n_seeds=3), modularity_partition(graph, n_seeds=3)
    assert found.k == 3 and found.depth_removed and found.depth < 0.05
    assert adjusted_rand_score(truth, found.to_frame()["cluster"]) > 0.95
    assert kept.depth > 0.3 and adjusted_rand_score(truth, kept.to_frame()["cluster"]) < 0.5
    assert_allclose(found.runs.max(), block_modularity(graph, found), rtol=1e-9)
    assert found.runs.max() >= block_modularity(graph, truth) - 1e-12


def test_no_unit_could_move_and_no_two_clusters_merge_with_gain():
    graph, _ = chain(4, 24, factor=1.0)
    found = modularity_partition(graph, depth="remove", n_seeds=2)
    labels = found.to_frame()["cluster"].to_numpy()
    best = block_modularity(graph, labels)
    for unit in range(0, 96, 7):
        for cluster in range(found.k):
            moved = labels.copy()
            moved[unit] = cluster
            assert block_modularity(graph, moved) <= best + 1e-12
    for a in range(found.k):
        for b in range(a):
            assert block_modularity(graph, np.where(labels == a, b, labels)) <= best + 1e-12


def test_a_run_that_sets_out_from_eight_clusters_merges_them():
    graph, truth = chain(5, k=2, factor=1.6)
    found = modularity_partition(graph, depth="remove", n_seeds=1)
    assert found.k == 2 and adjusted_rand_score(truth, found.to_frame()["cluster"]) > 0.8


def test_resolution_makes_clusters_smaller():
    graph, _ = chain(5, factor=1.5)
    few, many = (modularity_partition(graph, depth="remove", n_seeds=3, resolution=r).k for r in (0.7, 1.4))
    assert few < many


def test_options_that_do_not_fit():
    graph, _ = chain(3)
    with pytest.raises(ValueError, match="run through layers"):
        modularity_partition(graph, depth="remove", scope="local")
    with pytest.raises(ValueError, match="depth"):
        modularity_partition(graph, depth="gone")
