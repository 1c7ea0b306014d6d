"""Models whose code looks at the size of the batch, keeps a state, or draws: a traced program is held to its model."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from specialize_nb.lesions.lesion import lesion_table
from specialize_nb.network.units import trace

X, Y = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


class Net(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.way = nn.Linear(8, 12), nn.Linear(12, 3), way
        self.register_buffer("kept", torch.zeros(12))

    def forward(self, x):
        return self.way(self, torch.relu(self.a(x)), x)


def capacity(m, h, x):
    chosen = F.one_hot(h[:, :3].argmax(1), 3)
    place = (chosen.cumsum(0) * chosen).sum(1)
    return m.b(h * (place <= int(1.25 * x.shape[0] / 3)).float()[:, None])


def moving_mean(m, h, x):
    m.kept.data.mul_(0.9).add_(0.1 * h.detach().mean(0))
    return m.b(h - m.kept)


def new_mean(m, h, x):
    m.kept.data = 0.9 * m.kept + 0.1 * h.detach().mean(0)
    return m.b(h - m.kept)


def attribute(m, h, x):
    m.before = h.detach().mean(0) + getattr(m, "before", 0)
    return m.b(h - m.before)


def growing(m, h, x):
    m.bank = [*getattr(m, "bank", []), h.detach().mean(0)]
    return m.b(h - sum(m.bank))


WAYS = {
    "capacity": capacity,
    "if on the size": lambda m, h, x: m.b(h - h.mean(0) if x.shape[0] > 4 else h),
    "pieces": lambda m, h, x: m.b(torch.cat([2 * one for one in h.split(5)])),
    "moving mean": moving_mean,
    "new mean": new_mean,
    "attribute": attribute,
    "growing list": growing,
    "pairs": lambda m, h, x: m.b(h.view(-1, 2, 12).mean(1).repeat_interleave(2, 0)),
    "next one": lambda m, h, x: m.b(h + torch.cat([h[1:], h[:1]])),
    "halves": lambda m, h, x: m.b(torch.cat([one - one.mean(0) for one in h.chunk(2)])),
    "no numbers": lambda m, h, x: m.b(h) + x[:, 8:].sum(1, keepdim=True),
    "own generator": lambda m, h, x: m.b(h + torch.randn(12, generator=torch.Generator().manual_seed(0))),
}


@pytest.mark.parametrize("name", WAYS)
def test_lesions_are_those_of_the_model(name):
    torch.manual_seed(0)
    model = Net(WAYS[name]).eval()
    found, off = copy.deepcopy(model), torch.arange(12) < 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tables = [lesion_table(model, [(X, Y)], None, "a", off.numpy()[None]) for _ in range(2)]
    for now, before in zip(model.state_dict().values(), found.state_dict().values(), strict=True):
        assert torch.equal(now, before)
    assert set(vars(model)) == set(vars(found))
    intact = F.cross_entropy(copy.deepcopy(model)(X), Y, reduction="none").detach().numpy()
    model.a.register_forward_hook(lambda module, args, out: out * ~off)
    lesioned = F.cross_entropy(model(X), Y, reduction="none").detach().numpy()
    for table in tables:
        np.testing.assert_allclose(table.intact["loss"], intact, atol=1e-6)
        np.testing.assert_allclose(table.measures["loss"][0], lesioned, atol=1e-6)


def test_a_network_that_says_something_else_is_refused():
    model = Net(WAYS["if on the size"]).eval()
    network = trace(model, X[:2])
    with pytest.raises(ValueError, match=r"says something else of the first batch.*looks at the size of the batch"):
        lesion_table(model, [(X, Y)], network, "a", np.eye(12, dtype=bool))


@pytest.mark.parametrize("draw", [lambda: np.random.default_rng().normal(), random.random])
def test_draws_from_outside_torch_are_named(draw):
    with pytest.warns(RuntimeWarning, match="Random in evaluation"):
        network = trace(Net(lambda m, h, x: m.b(h * draw())).eval(), X)
    assert any("Random in evaluation" in note for note in network.notes)


class Encoded(nn.Module):
    """A tensor is added that varies along the words, or a bias that belongs to the units."""

    def __init__(self, *shape, bias=True):
        super().__init__()
        self.a, self.b = nn.Linear(8, 12, bias=bias), nn.Linear(12, 3)
        self.extra = nn.Parameter(torch.ones(*shape, 12))

    def forward(self, x):
        return self.b(torch.sigmoid(self.a(x) + self.extra))


def test_what_is_added_after_a_layer_is_no_part_of_its_units():
    x = torch.randn(4, 5, 8)
    for model in (Encoded(5).eval(), Encoded().eval()):
        layer = trace(model, x).layer("a")
        assert layer.site == layer.pre == "linear"
    network = trace(Encoded(bias=False).eval(), x)  # a bias by hand, and the activation after it
    assert (network.layer("a").pre, network.layer("a").site) == ("add", "sigmoid")


def test_a_module_called_input_keeps_its_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.input, self.out = nn.Linear(12, 12), nn.Linear(12, 3)

        def forward(self, x):
            return self.out(torch.relu(self.input(x)))

    torch.manual_seed(0)
    model, x = Named().eval(), torch.randn(6, 12)
    network, off = trace(model, x), torch.arange(12) < 5
    assert network.hidden == ("input",) and network.layer("input").kind == "hidden"
    table = lesion_table(model, (x, Y[:6]), network, "input", off.numpy()[None])
    right = F.cross_entropy(model.out(torch.relu(model.input(x)) * ~off), Y[:6], reduction="none")
    np.testing.assert_allclose(table.measures["loss"][0], right.detach().numpy(), atol=1e-6)
