"""Rows of what layers put out belong to the examples, one each, or the layer is left out."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from specialize_nb.layers.distances import layer_distances
from specialize_nb.network.answers import answers_of, record, unit_scales
from specialize_nb.network.rows import misplaced_layers
from specialize_nb.network.subject import Subject
from specialize_nb.network.units import trace


class Mixed(nn.Module):
    """Two hidden layers with something between them that looks at the whole batch."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.last, self.between = (
            nn.Linear(4, 40),
            nn.Linear(40, 60),
            nn.Linear(60, 3),
            between,
        )

    def forward(self, x):
        return self.last(self.second(self.between(self.first(x).relu())).tanh())


def build(between, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Mixed(between).eval().requires_grad_(False)


def examples(n=12, seed=0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(n) % 3


def quietly_traced(model, x):
    """The traced network; what could not be followed is no matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace(model, x[:3])


def seen_by_hooks(model, x):
    """What the second layer puts out, in eager mode."""
    seen = []
    handle = model.second.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    model(x)
    handle.remove()
    return seen[0]


def by_key(h):
    """The examples in the order of their first number."""
    return h[h[:, 0].argsort()]


RIGHT = {
    "alone": lambda h: h,
    "centred": lambda h: h - h.mean(0),
    "softmax over the batch": lambda h: h.softmax(0),
    "attention over the batch": lambda h: (h @ h.T).softmax(1) @ h,
}
ORDER = {
    "cumulative": lambda h: h.cumsum(0),
    "neighbours": lambda h: h + 0.5 * h.roll(1, 0),
}
WRONG = {
    "by key": by_key,
    "each column sorted": lambda h: h.sort(0).values,
    "backwards": lambda h: h.flip(0),
}


@pytest.mark.parametrize("name", RIGHT | ORDER)
def test_rows_of_examples_are_recorded(name):
    model, (x, y) = build((RIGHT | ORDER)[name]), examples()
    subject = Subject.of(model, (x, y), network=quietly_traced(model, x))
    assert misplaced_layers(subject) == ()
    assert_allclose(record(subject)["second"], seen_by_hooks(model, x), rtol=1e-4, atol=1e-5)
    told = [one for one in subject.notes if "depends on its place in the batch" in one]
    assert len(told) == (name in ORDER) and all("'second'" in one and "'first'" not in one for one in told)


@pytest.mark.parametrize("name", WRONG)
def test_layers_whose_rows_are_not_the_examples_are_left_out(name):
    model, (x, y) = build(WRONG[name]), examples()
    subject = Subject.of(model, (x, y), network=quietly_traced(model, x))
    with pytest.warns(RuntimeWarning, match=r"layers \['second'\] are left out. Layers 'second', 'last': the rows"):
        found = record(subject)
    assert list(found) == list(unit_scales(subject)) == ["first"]
    assert_allclose(found["first"], model.first(x), rtol=1e-5, atol=1e-6)
    for ask in (lambda: record(subject, layers=["second"]), lambda: answers_of(subject, ["second"])):
        with pytest.raises(ValueError, match=r"rows of layer .second. are not those of the examples"):
            ask()
    assert any("'second', 'last': the rows are not those of the examples" in one for one in subject.notes)


def test_models_that_answer_at_random_are_not_looked_at():
    model, (x, y) = build(lambda h: h + torch.randn_like(h)), examples()
    with pytest.warns(RuntimeWarning, match="Random in evaluation"):
        subject = Subject.of(model, (x, y))
    assert misplaced_layers(subject) == () and not [one for one in subject.notes if "rows" in one or "place" in one]


def not_finite(h):
    """A logarithm of zero where the first unit is silent."""
    return torch.cat([h[:, :1].log(), h[:, 1:]], 1)


class Logs(Mixed):
    """The scores are finite, what the second layer puts out is not."""

    def forward(self, x):
        h = self.second(not_finite(self.first(x).relu())).relu()
        return self.last(h.nan_to_num(0, 0, 0))


def test_a_layer_that_is_not_finite_is_left_out_or_named():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Logs(None).eval().requires_grad_(False)
    x, y = examples()
    data = list(zip(x.split(5), y.split(5), strict=True))
    first = int(np.flatnonzero(model.first(x).relu()[:, 0] == 0)[0])
    subject = Subject.of(model, data)
    told = f"Layer 'second' is left out of activations: it puts out NaN or infinite numbers, first for example {first}."
    with pytest.warns(RuntimeWarning, match=r"layers \['second'\] are left out"):
        found = record(subject)
    assert list(found) == ["first"] and told in subject.notes
    for ask in (lambda: record(subject, layers=["second"]), lambda: answers_of(subject, ["first", "second"])):
        with pytest.raises(
            ValueError, match=rf"of layer 'second' for example {first}: leave out these layers or examples"
        ):
            ask()
    assert list(answers_of(subject, ["first"])) == list(unit_scales(subject)) == ["first"]
    apart = layer_distances(model, data, n=8, measure="identity")
    assert apart.layers == ("first", "last") and told in apart.notes
    with pytest.raises(ValueError, match="of layer 'second' for example"):
        layer_distances(model, data, n=8, measure="identity", layers=["first", "second"])
