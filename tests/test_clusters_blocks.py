"""Modules that run through layers."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.metrics import adjusted_rand_score
from torch import nn

from specialize_nb import spectral_partition, trace, weight_graph
from specialize_nb.clusters.blocks import find_modules, pattern_nulls, pattern_score, patterns
from specialize_nb.clusters.partition import Partition
from specialize_nb.graphs.graph import UnitGraph


def planted(n_layers, *, n=64, k=4, factor=2.0, seed=0, skip=0, unequal=False, strengths="even"):
    """A graph whose modules run through all layers, and (n_units,) the modules."""
    rng = np.random.default_rng(seed)
    size = np.arange(1, k + 1) if unequal else np.ones(k)
    counts = np.floor(size / size.sum() * n).astype(int)
    counts[-1] += n - counts.sum()
    labels = [rng.permutation(np.repeat(np.arange(k), counts)) for _ in range(n_layers)]
    draw = {"even": np.ones, "heavy": lambda m: rng.pareto(2.0, m) + 0.3}[strengths]
    blocks = {}
    for i in range(n_layers):
        for j in range(i + 1, min(n_layers, i + 2 + skip)):
            noise = np.abs(rng.standard_normal((n, n))) * np.outer(draw(n), draw(n))
            blocks[f"l{i}", f"l{j}"] = torch.tensor(noise * np.where(labels[i][:, None] == labels[j], factor, 1.0))
    names = tuple(f"l{i}" for i in range(n_layers))
    return UnitGraph(layers=names, sizes=(n,) * n_layers, blocks=blocks), np.concatenate(labels)


def cut(graph, k=4, **options):
    return spectral_partition(graph, k, depth="remove", **options)


def flat(partition):
    return partition.to_frame()["cluster"].to_numpy()


def test_a_block_that_strengths_explain_tells_nothing():
    block = torch.outer(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 5, 2]))
    (found,) = patterns(UnitGraph(layers=("a", "b"), sizes=(4, 3), blocks={("a", "b"): block}))
    assert found.noise == 0 and np.isnan(pattern_score([found], [np.zeros(4, int), np.zeros(3, int)]))


def test_patterns_do_not_depend_on_strengths():
    rng = np.random.default_rng(0)
    block = rng.uniform(0.5, 2, (30, 20))
    graphs = [
        UnitGraph(layers=("a", "b"), sizes=(30, 20), blocks={("a", "b"): torch.tensor(one)})
        for one in (block, block * np.outer(rng.pareto(2, 30) + 1, rng.pareto(2, 20) + 1) * 1e5)
    ]
    (one,), (other,) = map(patterns, graphs)
    assert_allclose(one.weights.numpy(), other.weights.numpy(), rtol=1e-2)
    assert_allclose(one.weights.mean(0).numpy(), np.ones(20), rtol=1e-2)


def test_blocks_that_layers_share_are_held_once():
    shared = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [("a", "c"), ("b", "c")]
    one, apart = (
        patterns(UnitGraph(layers=("a", "b", "c"), sizes=(6, 6, 5), blocks=dict(zip(pairs, blocks, strict=True))))
        for blocks in ([shared, shared], [shared, shared.clone()])
    )
    assert one[0].weights is one[1].weights and [(x.first, x.second) for x in one] == [(0, 2), (1, 2)]
    assert all(torch.equal(x.weights, y.weights) and x.noise == y.noise for x, y in zip(one, apart, strict=True))


def test_score_of_clusters_by_hand():
    eye = torch.kron(torch.eye(2), torch.ones(2, 2)) + 1
    graph = UnitGraph(layers=("a", "b"), sizes=(4, 4), blocks={("a", "b"): eye.double()})
    (found,) = patterns(graph)
    inside = float((found.weights * torch.kron(torch.eye(2), torch.ones(2, 2))).sum() / found.weights.sum())
    labels = np.array([0, 0, 1, 1])
    assert_allclose(pattern_score([found], [labels, labels]), inside - 0.5, rtol=1e-9)
    assert_allclose(pattern_score([found], [labels * 0, labels * 0]), 0.0, atol=1e-12)


CASES = [
    dict(n_layers=4, n=96),
    dict(n_layers=12),
    dict(n_layers=8, skip=1),
    dict(n_layers=8, unequal=True),
    dict(n_layers=8, strengths="heavy"),
    dict(n_layers=24, unequal=True, strengths="heavy", seed=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_planted_modules(case):
    graph, truth = planted(**case)
    found = cut(graph)
    assert adjusted_rand_score(truth, flat(found)) >= 0.95 and found.depth < 0.02 and found.depth_removed
    assert adjusted_rand_score(truth, flat(spectral_partition(graph, 4))) < 0.6, "no problem that needs this"


def test_weaker_modules_are_found_better_than_by_the_first_trial():
    score = []
    for seed in range(3):
        graph, truth = planted(12, factor=1.5, seed=seed)
        score.append(adjusted_rand_score(truth, flat(cut(graph))))
    assert np.mean(score) > 0.7


def test_without_modules_layers_are_shared_out_and_the_result_says_so():
    graph, truth = planted(6, factor=1.0)
    found = cut(graph)
    assert abs(adjusted_rand_score(truth, flat(found))) < 0.05
    assert all(len(np.unique(one)) == 4 for one in found.labels.values()) and found.depth < 0.1
    assert any("stand out from noise" in note for note in found.notes)


def test_the_search_goes_on_until_no_unit_moves():
    graph, _ = planted(6, n=24)  # so few units that 16 sweeps are not enough
    blocks, alive = patterns(graph), graph.alive()
    for seed in range(4):
        assert not any("stopped" in note for note in find_modules(graph.sizes, blocks, alive, 6, seed=seed).notes)


def test_order_of_units():
    graph, truth = planted(6, seed=3)
    rng = np.random.default_rng(0)
    order = {layer: rng.permutation(n) for layer, n in zip(graph.layers, graph.sizes, strict=True)}
    blocks = {(a, b): block[order[a]][:, order[b]] for (a, b), block in graph.blocks.items()}
    found, shuffled = cut(graph), cut(UnitGraph(layers=graph.layers, sizes=graph.sizes, blocks=blocks))
    back = {layer: one[order[layer]] for layer, one in found.labels.items()}
    assert adjusted_rand_score(flat(Partition.from_labels(back)), flat(shuffled)) == 1


def test_scale_of_a_layer():
    graph, _ = planted(6, factor=1.7)
    scales = dict(zip(graph.blocks, (1, 1e3, 1e-4, 7, 0.3), strict=True))
    blocks = {pair: block * scales[pair] for pair, block in graph.blocks.items()}
    scaled = UnitGraph(layers=graph.layers, sizes=graph.sizes, blocks=blocks)
    assert adjusted_rand_score(flat(cut(graph)), flat(cut(scaled))) == 1


def test_a_layer_that_copies_its_input():
    graph, truth = planted(5, n=96)
    layers = ("l0", "l1", "l2", "copy", "l3", "l4")
    blocks = dict(graph.blocks)
    blocks["copy", "l3"] = blocks.pop(("l2", "l3"))
    blocks["l2", "copy"] = torch.eye(96, dtype=torch.float64)
    found, longer = cut(graph), cut(UnitGraph(layers=layers, sizes=(96,) * 6, blocks=blocks))
    assert (longer.labels["copy"] == longer.labels["l2"]).mean() > 0.97
    parts = [np.concatenate([one.labels[layer] for layer in graph.layers]) for one in (found, longer)]
    assert adjusted_rand_score(*parts) > 0.95


def relu_net(graph, seed=0):
    """A network whose absolute weights are the graph's, with signs at random."""
    signs, layers = torch.Generator().manual_seed(seed), []
    for block in graph.blocks.values():
        linear = nn.Linear(*block.shape, bias=False)
        linear.weight.data = (block * (2 * torch.randint(2, block.shape, generator=signs) - 1)).T.float()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def test_rescaled_relu_units():
    graph, truth = planted(5, n=96)
    model = relu_net(graph)
    before = weight_graph(trace(model, torch.zeros(1, 96)), normalize=True)
    factor = torch.logspace(-2, 2, 96)
    with torch.no_grad():
        model[0].weight.mul_(factor[:, None])
        model[2].weight.div_(factor)
    after = weight_graph(trace(model, torch.zeros(1, 96)), normalize=True)
    found, again = cut(before), cut(after)
    assert adjusted_rand_score(truth, flat(found)) > 0.95 and adjusted_rand_score(flat(found), flat(again)) == 1


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.conv, self.deep = (nn.Conv2d(a, 24, 3, padding=1) for a in (3, 24, 24))
        self.depthwise, self.head = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Linear(24, 10)

    def forward(self, x):
        x = self.first(x).relu()
        x = x + self.deep(self.depthwise(self.conv(x).relu()).relu())
        return self.head(x.relu().mean((2, 3)))


def test_convolutions_sums_and_depthwise_layers_are_shared_out():
    graph = weight_graph(trace(Residual().eval(), torch.zeros(1, 3, 8, 8)))
    found = cut(graph, 3)
    hidden = [found.labels[layer] for layer in graph.layers[1:-1]]
    assert all(len(np.unique(one)) > 1 for one in hidden)


def test_edges_within_layers():
    rng, truth = np.random.default_rng(0), np.arange(120) % 3
    matrix = np.abs(rng.standard_normal((120, 120))) * np.where(truth[:, None] == truth, 2, 1)
    matrix = np.triu(matrix, 1) + np.triu(matrix, 1).T
    names, blocks = ("a", "b"), {}
    for i, a in enumerate(names):
        for j, b in enumerate(names[i:], i):
            blocks[a, b] = torch.tensor(matrix[60 * i : 60 * (i + 1), 60 * j : 60 * (j + 1)])
    found = cut(UnitGraph(layers=names, sizes=(60, 60), blocks=blocks), 3)
    assert adjusted_rand_score(truth, flat(found)) > 0.95


def test_more_clusters_than_modules():
    graph, truth = planted(6, k=2, factor=4.0)
    found = cut(graph, 5)
    assert adjusted_rand_score(truth, flat(found)) > 0.5
    n_found = len(np.unique(flat(found)))
    assert n_found == 5 or any(f"{n_found} clusters and not 5" in note for note in found.notes)
    assert not any("No modules stand out" in note for note in found.notes)


def test_what_is_expected_within_a_layer_adds_up_without_loops():
    rng = np.random.default_rng(0)
    matrix = np.triu(rng.uniform(0.5, 1, (20, 20)) * np.outer(rng.pareto(2, 20) + 1, np.ones(20)), 1)
    block = torch.tensor(matrix + matrix.T)
    (found,) = patterns(UnitGraph(layers=("a",), sizes=(20,), blocks={("a", "a"): block}))
    assert_allclose(found.total, float(found.weights.sum()), rtol=1e-3)


def test_nulls_keep_strengths_and_scatter_and_lose_modules():
    graph, truth = planted(4, factor=2.0, strengths="heavy")
    graph.blocks["l1", "l2"][3] = 0
    first, second = pattern_nulls(graph, 2, seed=1)
    assert not torch.equal(first.blocks["l0", "l1"], second.blocks["l0", "l1"])
    for null in (first, second):
        assert (null.blocks["l1", "l2"][3] == 0).all()
        for pair, block in graph.blocks.items():
            for axis in (0, 1):
                ours, theirs = block.sum(axis).log1p().numpy(), null.blocks[pair].sum(axis).log1p().numpy()
                assert np.corrcoef(ours, theirs)[0, 1] > 0.9
        kept, made = ([one.noise for one in patterns(each)] for each in (graph, null))
        assert_allclose(made, kept, rtol=0.15)
        score = [pattern_score(patterns(each), np.split(truth, 4)) for each in (graph, null)]
        assert abs(score[1]) < 0.05 < score[0]


def test_nulls_within_a_layer_are_symmetric():
    rng = np.random.default_rng(0)
    matrix = np.triu(rng.uniform(0, 1, (12, 12)), 1)
    graph = UnitGraph(layers=("a",), sizes=(12,), blocks={("a", "a"): torch.tensor(matrix + matrix.T)})
    (null,) = pattern_nulls(graph, 1)
    assert torch.equal(null.blocks["a", "a"], null.blocks["a", "a"].T)


def test_dead_units_and_bad_options():
    graph, _ = planted(3)
    graph.blocks["l0", "l1"][5] = 0
    found = cut(graph)
    assert found.labels["l0"][5] == -1 and (flat(found) >= 0).sum() == 191
    with pytest.raises(ValueError, match="choose k from 2 to 191"):
        cut(graph, 192)
    with pytest.raises(ValueError, match="likelihood chooses"):
        cut(graph, choose="ncut")
    with pytest.raises(ValueError, match="depth"):
        spectral_partition(graph, 4, depth="gone")


def test_seeds_repeat_and_global_generators_are_left_alone():
    graph, _ = planted(5, factor=1.0)
    state = torch.random.get_rng_state()
    one, other = cut(graph, seed=3), cut(graph, seed=3)
    assert np.array_equal(flat(one), flat(other))
    assert torch.equal(state, torch.random.get_rng_state())


def test_input_is_not_changed():
    graph, _ = planted(3)
    before = {pair: block.clone() for pair, block in graph.blocks.items()}
    find_modules(graph.sizes, patterns(graph), graph.alive(), 3)
    assert all(torch.equal(block, before[pair]) for pair, block in graph.blocks.items())
