"""The mechanism of `specialize_nb.graphs.jacobians`, piece by piece; `test_graphs_similarity` has what comes out of it."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F

from specialize_nb.graphs.jacobians import (
    MatrixMean,
    Measurement,
    _directions,
    _find_front,
    _fit,
    _in_pieces,
    _roots,
    _still,
    choose_layers,
    choose_places,
)
from specialize_nb.network.units import trace


def frozen(*layers):
    "In eval mode, with frozen weights."
    return nn.Sequential(*layers).eval().requires_grad_(False)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def wide(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("errors", [False, True])
def test_mean_by_hand(errors):
    "Two examples of two units: one has the rows (1, 2) and (0, 1), the other the row (3, 0)."
    one, other = torch.tensor([[1.0, 2], [0, 1]]), torch.tensor([[3.0, 0], [0, 0]])
    mean = MatrixMean(2, torch.device("cpu"), errors)
    mean.add(torch.stack([one[:1], other[:1]], 1)[:, :, None], 1)
    mean.add(torch.stack([one[1:], other[1:]], 1)[:, :, None], 1)
    mean.close(2)
    assert_allclose(mean.total.triu(), wide([[10, 2], [0, 5]]), rtol=1e-6, strict=True)
    assert mean.n == 2
    if errors:
        assert_allclose(mean.products[0], wide([[1 + 81, 4], [4, 25]]), rtol=1e-6, strict=True)
        assert_allclose(mean.products[1], wide([[1 + 81, 2], [10, 25]]), rtol=1e-6, strict=True)
        assert_allclose(mean.products[2], wide([[1 + 81, 5], [5, 25]]), rtol=1e-6, strict=True)
    else:
        assert mean.products is None


def test_mean_over_places():
    halves = MatrixMean(2, torch.device("cpu"), False)
    halves.add(torch.tensor([[1.0, 2], [0, 1]])[None, None], 2)
    assert_allclose(halves.total.triu(), wide([[0.5, 1], [0, 2.5]]), rtol=1e-6, strict=True)


def test_mean_of_single_rows():
    rows = normal(9, 5, dtype=torch.float64)
    single, many = (MatrixMean(5, torch.device("cpu"), True) for _ in range(2))
    single.add_single(rows)
    many.add(rows[None, :, None], 1)
    many.close(9)
    assert_allclose(single.total, many.total, rtol=1e-6, strict=True)
    assert_allclose(single.products, many.products, rtol=1e-6, strict=True)


def test_mean_of_many_units():
    "More units than a tile has."
    rows = normal(3, 2, 1, 300, dtype=torch.float64)
    mean = MatrixMean(300, torch.device("cpu"), False)
    mean.add(rows, 1)
    expected = torch.einsum("rnmi,rnmj->ij", rows, rows).triu()
    assert_allclose(mean.total.triu(), expected, rtol=1e-9, atol=1e-12, strict=True)


def test_fit():
    "Numbers that may be held -> examples and directions at once."

    def fit_to(numbers, *given):
        task = Measurement(subject=None, layers=(), positions={}, numbers=numbers, means={}, errors=False, title="")
        return _fit(task, *given)

    assert fit_to(3100, (10, 50), 10) == (8, 10)  # 350 numbers an example
    assert fit_to(200, (10, 50), 10) == (1, 5)  # one example; 150 numbers are left for 30 a direction
    assert fit_to(200, (10, 50), 10, 100) == (1, 1) == fit_to(1, (10, 50), 10)
    assert fit_to(10**6, (10, 50), 10) == (2857, 10)


def test_still():
    "A unit that trembles by rounding about a large value is constant, and its products are zeros."
    trembling = MatrixMean(2, torch.device("cpu"), True)
    trembling.add_single(wide([[1e-7, 1.0], [-1e-7, -1]]))
    _still(trembling, wide([[0.7, 0]]), torch.float32)
    assert_allclose(trembling.total, wide([[0, 0], [0, 2]]), rtol=1e-6, strict=True)
    assert_allclose(trembling.products[0], wide([[0, 0], [0, 2]]), rtol=1e-6, strict=True)


def test_roots():
    "Their outer products are the second derivative of the cross-entropy by the scores."
    scores = normal(3, 4, dtype=torch.float64)
    vectors = _roots(scores, slice(None))
    hessian = torch.autograd.functional.hessian
    expected = [hessian(lambda y: F.cross_entropy(y[None], torch.tensor([1])), y) for y in scores]
    found = torch.einsum("rni,rnj->nij", vectors, vectors)
    assert_allclose(found, torch.stack(expected), rtol=1e-6, atol=1e-15, strict=True)
    assert_allclose(_roots(scores, slice(1, 3)), vectors[1:3], rtol=1e-6, strict=True)


class Twice(nn.Module):
    "Multiplies what it is given by itself, or by 2."

    def __init__(self, itself):
        super().__init__()
        self.itself = itself

    def forward(self, x):
        return x * x if self.itself else x * 2


@pytest.mark.parametrize(
    ("inner", "straight"),
    [
        (nn.ReLU(), True),
        (nn.Sequential(nn.BatchNorm1d(4), nn.LeakyReLU()), True),
        (Twice(False), True),
        (Twice(True), False),
        (nn.GELU(), False),
        (nn.Softmax(1), False),
        (nn.LayerNorm(4), False),
    ],
)
def test_in_pieces(inner, straight):
    network = trace(frozen(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), inner, nn.Linear(4, 2)), torch.zeros(2, 3))
    assert _in_pieces(network.program, network.layer("0").site, network.program.outputs[0]) is straight


def front_of(*layers, shape=(3,)):
    network = trace(frozen(*layers), torch.zeros(2, *shape))
    name = _find_front(network.program, [network.layer(one).site for one in network.hidden])
    return name, _directions(network.program, name, torch.zeros((), dtype=torch.float32))


def test_front():
    "Directions of the first layer stand for those of the inputs, where these are more."
    weight = normal(4, 6)
    first = nn.Linear(6, 4)
    first.weight.data.copy_(weight)
    name, rows = front_of(nn.Flatten(), first, nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), shape=(2, 3))
    assert name == "linear" and rows.shape == (4, 4)
    assert_allclose(rows.T @ rows, weight @ weight.T, rtol=1e-5, atol=1e-6, strict=True)


def test_front_is_the_input():
    "Where the first layer is wider, or where it is not linear."
    assert front_of(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))[0] == "input_1"
    name, rows = front_of(nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    assert name == "input_1" and torch.equal(rows, torch.eye(3))


def test_choices():
    network = trace(frozen(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)), torch.zeros(1, 1, 5, 5))
    assert [layer.name for layer in choose_layers(network, None)] == ["0"]
    assert [layer.name for layer in choose_layers(network, ["3", "0", "3"])] == ["0", "3"]
    with pytest.raises(KeyError, match="no layer '7'"):
        choose_layers(network, ["7"])
    (layer,) = choose_layers(network, None)
    assert choose_places(network, layer, None, 0).tolist() == list(range(9))
    few = choose_places(network, layer, 4, 0)
    assert len(set(few)) == 4 and np.array_equal(few, np.sort(few)) and few.max() < 9
    assert np.array_equal(few, choose_places(network, layer, 4, 0))
    assert any(not np.array_equal(few, choose_places(network, layer, 4, seed)) for seed in range(1, 5))
