"""Where a traced program's derivatives are its model's, and where they are refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from specialize_nb.dev.zoo import ACROSS, Between
from specialize_nb.graphs.similarity import measure_similarity
from specialize_nb.network.gradients import Downstream, check_backward, check_gradients, own_backwards
from specialize_nb.network.subject import Subject
from specialize_nb.network.units import trace

X = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3


class Through(torch.autograd.Function):
    "A step whose derivative is that of the identity."

    @staticmethod
    def forward(ctx, x):
        return (x > 0.5).to(x)

    @staticmethod
    def backward(ctx, slope):
        return slope


class Twice(torch.autograd.Function):
    "With the backward that is its own."

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


def aside(h):
    with torch.no_grad():
        gate = h.sigmoid()
    return gate * h


def subject(function):
    return Subject.of(Between(function), (X, Y))


@pytest.mark.parametrize(
    ("function", "told"), [(Through.apply, "`Through` .a `torch.autograd.Function`."), (aside, "`detach` or `no_grad`")]
)
def test_a_backward_of_its_own_is_refused(function, told):
    "Of the step's own derivative the traced program knows nothing: all units would be dead."
    for measure in ("output_jacobian", "input_jacobian", "loss_hessian"):
        with pytest.raises(ValueError, match=rf"a backward of its own, by {told}.*so '{measure}' would be of another"):
            measure_similarity(subject(function), measure=measure, layers=["first"])
    with pytest.raises(ValueError, match="so a picture would be of another model"):
        check_backward(subject(function), "a picture")
    assert measure_similarity(subject(function), measure="covariance", layers=["first"]).mean["first"].shape == (6, 6)


@pytest.mark.parametrize(
    ("function", "plain"),
    [
        (Twice.apply, lambda h: 2 * h),
        (torch.tanh, torch.tanh),
        (lambda h: h + (h.round() - h).detach(), lambda h: h),
        (lambda h: checkpoint(torch.sin, h, use_reentrant=True), torch.sin),
        (lambda h: checkpoint(torch.sin, h, use_reentrant=False), torch.sin),
    ],
)
def test_the_same_derivatives_are_let_through(function, plain):
    "Oracle: the model's own Jacobian by the units, from autograd."
    one = subject(function)
    assert own_backwards(one) == ()
    found = measure_similarity(one, measure="output_jacobian", layers=["first"]).mean["first"]
    expected = torch.zeros(6, 6, dtype=torch.float64)
    for row in torch.relu(one.model.first(X)).detach():
        row.requires_grad_()
        out = one.model.last(plain(row[None]))[0]
        slopes = torch.stack([torch.autograd.grad(each, row, retain_graph=True)[0] for each in out])
        expected += slopes.T @ slopes / len(X)
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "operation"), [("dropout", "dropout"), ("noise", "randn_like")])
def test_what_draws_at_random_is_refused(name, operation):
    with pytest.warns(RuntimeWarning, match=f"Random in evaluation, by {operation}"):
        one = subject(ACROSS[name])
    for measure in ("output_jacobian", "input_jacobian", "loss_hessian"):
        with pytest.raises(ValueError, match=f"draws at random in evaluation, by {operation}.*training=self.training"):
            measure_similarity(one, measure=measure)


def test_examples_that_meet_are_refused():
    for name in ("centred", "softmax", "attention", "rolled"):
        with pytest.raises(
            ValueError, match="depends on the others in its batch: 'input_jacobian' is of single examples"
        ):
            check_gradients(subject(ACROSS[name]), "'input_jacobian'")
    check_gradients(subject(ACROSS["everyone's own"]), "'input_jacobian'")


def test_a_switched_off_dropout_draws_nothing():
    one = subject(lambda h: F.dropout(F.dropout(h, 0.5, training=False), 0.0))
    assert one.network.program.random == () and one.network.notes == ()
    check_gradients(one, "a slope")


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("called", [False, True])
def test_inference_mode_changes_nothing(made, called):
    "A model made under `torch.inference_mode`, and calls in it, give what they give without."

    def build():
        return Between(torch.tanh, seed=1)

    expected = [measure_similarity(build(), (X, Y), measure=measure) for measure in ("covariance", "output_jacobian")]
    with torch.inference_mode(made):
        model = build()
    with torch.inference_mode(called):
        data = (X.clone(), Y.clone())
        found = [measure_similarity(model, data, measure=measure) for measure in ("covariance", "output_jacobian")]
        check_gradients(Subject.of(model, data), "a slope")
    for one, other in zip(expected, found, strict=True):
        for layer in one.mean:
            torch.testing.assert_close(one.mean[layer], other.mean[layer], rtol=1e-12, atol=1e-12)
    assert all(value.is_inference() == made for value in model.parameters())
    assert isinstance(model.first, nn.Linear)


def test_outputs_without_an_axis_of_their_own():
    """One number an example, as (n,), is differentiated as (n, 1) is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1)).eval()
    flat, x = nn.Sequential(*wide, nn.Flatten(0)).eval(), torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for model in (wide, flat):
        network = trace(model, x)
        part = Downstream(network, [network.layer("0")], network.program.outputs[0])
        (hidden,), said = part.run((x,))
        assert said.shape == (6, 1)
        found.append(torch.autograd.grad(said.sum(), hidden)[0])
    assert torch.equal(*found) and torch.equal(found[0], wide[2].weight.expand(6, 5))
