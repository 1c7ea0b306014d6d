"""Graphs by activations, covariances and derivatives leave out padding: held to each sequence by itself, and to eager."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from specialize_nb.graphs.activations import activation_graph
from specialize_nb.graphs.similarity import measure_similarity
from specialize_nb.network.subject import Subject

LENGTHS = [5, 3, 4, 2, 5, 2, 3, 4]
NEAR = {"rtol": 1e-4, "atol": 1e-9}


class Padded(nn.Module):
    """Vectors over positions and a mask; what counts is averaged, and squashed before that."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x, mask):
        h, own = self.inner(x).tanh(), mask[..., None].to(x.dtype)
        return self.outer((h * own).sum(1) / own.sum(1)) * 3


def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Padded().double().eval().requires_grad_(False)


def sequences():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 3, generator=generator, dtype=torch.float64) for length in LENGTHS]


def padded(rows, width, holds, left=False):
    """The sequences in one table of so many positions, what padding holds, and which positions count."""
    x = torch.full((len(rows), width, 3), float(holds), dtype=torch.float64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        own = slice(width - len(row), width) if left else slice(0, len(row))
        x[i, own], mask[i, own] = row, True
    return x, mask


def targets():
    return torch.arange(len(LENGTHS)) % 3


FORMS = {"short": (5, 0.0), "other padding": (5, 9.0), "wide": (7, -4.0), "left": (7, 1.0, True)}


def eager_slopes(model, row):
    """Derivatives of the outputs by the hidden layer of one sequence by itself: (3, positions, 6)."""
    h = model.inner(row).tanh()
    return torch.func.jacrev(lambda h: model.outer(h.mean(0)) * 3)(h)


def by_hand(model, measure):
    """The mean over examples, of means over the positions of each."""
    found = []
    for row, y in zip(sequences(), targets(), strict=True):
        if measure == "output_jacobian":
            one = torch.einsum("opi,opj->ij", *[eager_slopes(model, row)] * 2)
        elif measure == "input_jacobian":
            slopes = torch.stack([torch.func.jacrev(lambda x: model.inner(x).tanh())(at) for at in row])
            one = torch.einsum("pix,pjx->ij", slopes, slopes)
        else:
            h = model.inner(row).tanh()
            loss = lambda h, y=y: nn.functional.cross_entropy(model.outer(h.mean(0)) * 3, y)  # noqa: E731
            full = torch.func.hessian(loss)(h)
            one = torch.stack([full[p, :, p] for p in range(len(row))]).sum(0)
        found.append(one / len(row))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("measure", ["output_jacobian", "input_jacobian", "loss_hessian"])
@pytest.mark.parametrize("errors", [False, True])
def test_derivatives_are_those_of_the_sequences(measure, form, errors):
    model = build()
    given = padded(sequences(), *FORMS[form])
    subject = Subject.of(model, (given, targets()))
    found = measure_similarity(subject, measure=measure, errors=errors)
    assert_allclose(found.mean["inner"], by_hand(model, measure), **NEAR)
    assert "Padding was found by 'mask'" in " ".join(found.notes)


def test_covariance_is_over_positions_that_count():
    model, found = build(), {}
    for name, form in FORMS.items():
        given = padded(sequences(), *form)
        found[name] = measure_similarity(Subject.of(model, (given, targets())), measure="covariance").mean["inner"]
    assert_allclose(found["other padding"], found["short"], **NEAR)
    assert_allclose(found["wide"], found["short"], **NEAR)
    states = [model.inner(row).tanh() for row in sequences()]
    level = [torch.stack([one[p] for one in states if len(one) > p]).mean(0) for p in range(5)]
    apart = [torch.stack([one[p] - level[p] for p in range(len(one))]) for one in states]
    expected = torch.stack([one.T @ one / len(one) for one in apart]).mean(0)
    assert_allclose(found["short"], expected, **NEAR)


def test_correlations_are_of_the_sequences():
    model = build()
    means = torch.stack([model.inner(row).mean(0) for row in sequences()]).float().numpy()
    expected = np.corrcoef(means.T) ** 2
    np.fill_diagonal(expected, 0)
    for form in FORMS.values():
        graph = activation_graph(model, (padded(sequences(), *form), targets()), corr="pearson")
        assert_allclose(graph.block("inner", "inner"), expected, rtol=1e-3, atol=1e-5)
        assert "Padding was found by 'mask'" in graph.notes[0]


def test_probabilities_have_no_second_derivatives_of_the_loss():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Softmax(1)).eval().requires_grad_(False)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="taken as probabilities"), pytest.raises(ValueError, match="without its last"):
        measure_similarity(Subject.of(model, (x, targets())), measure="loss_hessian")
    said = measure_similarity(Subject.of(model, (x, targets()), scores="logits"), measure="loss_hessian")
    assert np.isfinite(said.mean["0"]).all()
