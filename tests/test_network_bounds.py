"""Between which numbers outputs lie by what makes them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from specialize_nb.network.bounds import Bounds, bounds_of, is_logarithm, last_operation
from specialize_nb.network.outputs import choose_output
from specialize_nb.network.units import trace


class Last(nn.Module):
    """A hidden layer, three scores, and what `of` makes of them."""

    def __init__(self, of):
        super().__init__()
        self.inner, self.outer, self.of = nn.Linear(4, 5), nn.Linear(5, 3), of

    def forward(self, x):
        return self.of(self.outer(self.inner(x).relu()))


def traced(of):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Last(of).eval()
    network = trace(model, torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    return network, choose_output(network, task="labels").node


def bounds(of):
    return bounds_of(*traced(of))


INSIDE = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda s: s.softmax(1),
    "clamp": lambda s: s.clamp(0, 1),
    "clamp by name": lambda s: torch.clamp(s, min=0.0, max=1.0),
    "two clamps": lambda s: s.clamp(min=0).clamp(max=1),
    "hardtanh": lambda s: functional.hardtanh(s, 0.0, 1.0),
    "hardsigmoid": functional.hardsigmoid,
    "tanh": lambda s: (s.tanh() + 1) / 2,
    "erf": lambda s: 0.5 * (1 + torch.erf(s)),
    "the other class": lambda s: 1 - s.sigmoid(),
    "a mean of two": lambda s: (s.sigmoid() + (2 * s).sigmoid()) / 2,
    "a product": lambda s: s.sigmoid() * s.softmax(1),
    "shares": lambda s: s.exp() / s.exp().sum(1, keepdim=True),
    "shares of one value": lambda s: (e := s.exp()) / (e.sum(1, keepdim=True) + 1e-6),
    "normalized": lambda s: functional.normalize(s.relu(), p=1.0, dim=1),
    "odds": lambda s: (e := s.exp()) / (1 + e),
    "back from logarithms": lambda s: s.log_softmax(1).exp(),
    "back from a softplus": lambda s: torch.exp(-functional.softplus(s)),
    "a column": lambda s: s.softmax(1)[:, 1:],
    "joined": lambda s: torch.cat([s[:, :1].sigmoid(), s[:, 1:].sigmoid()], 1),
    "a choice": lambda s: torch.where(s > 0, s.sigmoid(), 0.5),
    "a flag": lambda s: (s > 0).float(),
}
OUTSIDE = {
    "scores": lambda s: s,
    "moved": lambda s: s * 0.01 + 0.5,
    "cut off": lambda s: s.relu() * 0.01,
    "half a clamp": lambda s: s.clamp(max=1),
    "tanh": torch.tanh,
    "a sum": lambda s: s.sigmoid() + s.softmax(1),
    "a larger product": lambda s: s.sigmoid() * 1.5,
    "shares that may be below 0": lambda s: s / s.sum(1, keepdim=True),
    "shares of another": lambda s: s.exp() / (2 * s).exp().sum(1, keepdim=True),
    "shares of less": lambda s: s.exp() / (s.exp().sum(1, keepdim=True) - 0.5),
    "euclidean": lambda s: s / s.norm(dim=1, keepdim=True),
    "logarithms": lambda s: s.log_softmax(1),
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_cannot_leave_0_to_1(name):
    assert bounds(INSIDE[name]).within(0, 1)


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_can(name):
    assert not bounds(OUTSIDE[name]).within(0, 1)


def test_bounds_in_closed_form():
    for of, low, high in (
        (lambda s: 100 * s.sigmoid(), 0, 100),
        (lambda s: 3 - 2 * s.tanh(), 1, 5),
        (lambda s: -s.sigmoid() / 4, -0.25, 0),
        (lambda s: s.tanh().exp(), math.exp(-1), math.e),
        (lambda s: s.tanh().abs() + s.tanh().square(), 0, 2),
        (lambda s: s.log_softmax(1), -math.inf, 0),
        (lambda s: s.relu().clamp(max=6), 0, 6),
        (lambda s: s, -math.inf, math.inf),
    ):
        assert bounds(of) == pytest.approx(Bounds(low, high))


def test_logarithms_of_probabilities_are_known():
    for of, right in (
        (functional.logsigmoid, True),
        (lambda s: s.log_softmax(1)[:, :2], True),
        (lambda s: s.sigmoid().log(), True),
        (lambda s: -functional.softplus(-s), True),
        (lambda s: (s.relu() + 2).log(), False),
        (lambda s: -s.relu(), False),
    ):
        assert is_logarithm(last_operation(*traced(of))) is right
