"""Damage at positions: by hand, against PyTorch's own losses, in pieces, and against eager hooks."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from specialize_nb.clusters.partition import Partition
from specialize_nb.lesions import dense as module
from specialize_nb.lesions.damage import damage_run, intact_at_positions, intact_loss
from specialize_nb.lesions.dense import each_position, prepared, row_loss, rows_at_positions
from specialize_nb.lesions.importance import importance
from specialize_nb.lesions.outcomes import find_outcomes
from specialize_nb.network.outputs import Dense
from specialize_nb.network.subject import Subject
from specialize_nb.training.models import transformer

LAST, FIRST = Dense((5, 7), 1), Dense((7, 5), 0)


def drawn(seed=0, n=4, g=3):
    made = torch.Generator().manual_seed(seed)
    intact, scores = (torch.randn(*lead, n, 5, 7, generator=made, dtype=torch.float64) for lead in ((), (g,)))
    y = torch.randint(7, (n, 5), generator=made)
    y[1, 2:], y[3, 0] = -100, -100
    return scores, intact, y


def flat(one, layout):
    return (one if layout is LAST else one.transpose(-1, -2)).flatten(-2)


def mean_loss(scores, y):
    losses = functional.cross_entropy(scores.transpose(1, 2), y, reduction="none", ignore_index=-100)
    return losses.sum(1) / (y != -100).sum(1)


def test_by_hand():
    (outcome,) = find_outcomes("accuracy", n_scores=2, task="dense", dense=Dense((3, 2), 1))
    right, wrong = [0.0, 1.0], [1.0, 0.0]  # of class 1
    intact = torch.tensor([[right, right, right], [right, wrong, wrong]]).flatten(1)
    lesioned = torch.tensor([[[wrong, right, wrong], [wrong, right, wrong]]]).flatten(2)
    y = torch.tensor([[1, 1, -100], [1, 1, 1]])
    assert outcome.measure(lesioned, intact, y).tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize("layout", [LAST, FIRST])
@pytest.mark.parametrize("at_once", [1, 50, 2**20])
def test_loss_is_that_of_pytorch(layout, at_once, monkeypatch):
    monkeypatch.setitem(module._AT_ONCE, "cpu", at_once)
    scores, intact, y = drawn()
    (outcome,) = find_outcomes("cross_entropy", n_scores=7, task="dense", dense=layout)
    found = outcome.measure(flat(scores, layout), flat(intact, layout), y)
    known = prepared(outcome.measure, flat(intact, layout), y)
    right = torch.stack([mean_loss(one, y) for one in scores]) - mean_loss(intact, y)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outcome.measure(flat(scores, layout), known, y), found, rtol=0, atol=0)


def test_other_outcomes_are_means_over_positions():
    scores, intact, y = drawn(1)
    for name in ("accuracy", "margin", "kl"):
        (dense,) = find_outcomes(name, n_scores=7, task="dense", dense=LAST)
        (plain,) = find_outcomes(name, n_scores=7)
        found = dense.measure(flat(scores, LAST), flat(intact, LAST), y)
        for i in range(len(y)):
            rows = y[i] != -100
            right = plain.measure(scores[:, i, rows], intact[i, rows], y[i, rows]).mean(1)
            torch.testing.assert_close(found[:, i], right, rtol=1e-12, atol=1e-12)


def test_what_is_at_ignored_positions_plays_no_part():
    scores, intact, y = drawn(2)
    (outcome,) = find_outcomes("kl", n_scores=7, task="dense", dense=LAST)
    found = outcome.measure(flat(scores, LAST), flat(intact, LAST), y)
    for part in (scores, intact):
        part[..., y == -100, :] = torch.nan
    torch.testing.assert_close(outcome.measure(flat(scores, LAST), flat(intact, LAST), y), found, rtol=0, atol=0)
    scores[1, 2, 0, 3] = torch.nan
    assert outcome.measure(flat(scores, LAST), flat(intact, LAST), y).isnan().nonzero().tolist() == [[1, 2]]


def test_loss_of_a_large_vocabulary_in_single_precision():
    scores = 8 * torch.randn(6, 50_000, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6) * 999
    right = -scores.double().log_softmax(-1).gather(-1, y[:, None])[:, 0]
    torch.testing.assert_close(row_loss(scores, y), right, rtol=0, atol=2e-6)
    masked = scores.clone()
    masked[:, 1::2] = -torch.inf
    right = -masked.double().log_softmax(-1).gather(-1, (y * 2)[:, None])[:, 0]
    torch.testing.assert_close(row_loss(masked, y * 2), right, rtol=0, atol=2e-6)
    assert row_loss(masked, y * 2 + 1).isinf().all() and row_loss(torch.full((1, 3), torch.inf), y[:1]).isnan().all()


def test_functions_get_scores_as_the_model_puts_them_out():
    def own(outputs, y):
        assert outputs.shape[1:] == (5, 7)
        return mean_loss(outputs, y)

    scores, intact, y = drawn(3)
    (mine,) = find_outcomes(own, n_scores=7, task="dense", dense=LAST)
    (built_in,) = find_outcomes("cross_entropy", n_scores=7, task="dense", dense=LAST)
    values = [one.measure(flat(scores, LAST), flat(intact, LAST), y) for one in (mine, built_in)]
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)


def test_outcomes_that_need_one_class_an_example_are_refused():
    for name in ("selectivity", "micro_accuracy", "class_accuracy", "change"):
        with pytest.raises(ValueError, match=f"outcome '{name}' needs .*; for task='dense' choose"):
            find_outcomes(name, n_scores=7, task="dense", dense=LAST)


def test_rows_in_pieces(monkeypatch):
    monkeypatch.setitem(module._AT_ONCE, "cpu", 15)
    scores, _, y = drawn()
    parts = list(rows_at_positions(flat(scores[0], LAST), y, LAST))
    assert len(parts) > 3 and torch.equal(torch.cat([one[1] for one in parts]), y[y != -100])
    torch.testing.assert_close(torch.cat([one[0] for one in parts]), scores[0][y != -100], rtol=0, atol=0)


class Segmenting(nn.Module):
    """A class for each pixel, classes along axis 1."""

    def __init__(self):
        super().__init__()
        self.down, self.mid = nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(6, 6, 2, stride=2), nn.Conv2d(7, 3, 1)

    def forward(self, x):
        coarse = self.mid(self.down(x).relu()).relu()
        return self.out(torch.cat([self.up(coarse).relu(), x], 1))


def eager(model, x, y, layer, units):
    """Mean over examples of the loss added by a lesion of a module's outputs, by a hook."""

    def silenced(module, args, out):
        axis = 1 if out.ndim == 4 else -1
        return out * (~units).to(out).movedim(0, 0).view([-1 if i == axis % out.ndim else 1 for i in range(out.ndim)])

    def loss():
        with torch.no_grad():
            out = model(x)
        rows = out.flatten(2) if out.ndim == 4 else out.transpose(1, 2)
        losses = functional.cross_entropy(rows, y.flatten(1), reduction="none", ignore_index=-100)
        return float((losses.sum(1) / (y != -100).flatten(1).sum(1)).mean())

    before = loss()
    handle = model.get_submodule(layer).register_forward_hook(silenced)
    after = loss()
    handle.remove()
    return after - before, before


@pytest.mark.parametrize("kind", ["language", "segmentation"])
def test_lesions_are_those_of_hooks(kind):
    made = torch.Generator().manual_seed(0)
    if kind == "language":
        model = transformer(tokens=11, length=9, width=8, heads=2, depth=2).double()
        x = torch.randint(11, (7, 9), generator=made)
        y, layers = (
            torch.randint(11, (7, 9), generator=made),
            ["token", "blocks.0.value", "blocks.1.up", "blocks.0.out"],
        )
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Segmenting().eval().double()
        x, layers = torch.rand(6, 1, 8, 8, generator=made, dtype=torch.float64), ["down", "mid", "up"]
        y = torch.randint(3, (6, 8, 8), generator=made)
    y[0, 3:] = -100
    subject = Subject.of(model, (x, y))
    assert subject.task == "dense" and subject.scores_node.n == (11 if kind == "language" else 3)
    for layer in layers:
        n = subject.network.layer(layer).n_units
        groups = np.arange(n) % 3 == np.arange(3)[:, None]
        run = damage_run(subject, None, None, [layer], n_boot=2)
        found = run.damage({layer: groups})["cross_entropy"][:, 0]
        right = [eager(model, x, y, layer, torch.as_tensor(row)) for row in groups]
        np.testing.assert_allclose(found, [one for one, _ in right], atol=1e-12)
    assert intact_loss(subject)["cross_entropy"] == pytest.approx(right[0][1], abs=1e-12)
    assert 0 <= intact_at_positions(subject)["accuracy"] <= 1


def test_uniform_scores_lose_the_logarithm_of_the_classes():
    model = transformer(tokens=13, length=6, width=8, heads=2, depth=1)
    nn.init.zeros_(model.scores.weight)
    x = torch.randint(13, (5, 6), generator=torch.Generator().manual_seed(0))
    assert intact_loss(Subject.of(model, (x, x.roll(-1, 1))))["cross_entropy"] == pytest.approx(math.log(13), rel=1e-12)


def test_both_axes_may_count_classes():
    model = transformer(tokens=9, length=9, width=8, heads=2, depth=1)
    x = torch.randint(9, (5, 9), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="two axes can count classes; say which with"):
        Subject.of(model, (x, x.roll(-1, 1)), task="dense").scores_node
    assert Subject.of(model, (x, x.roll(-1, 1)), task="dense", class_axis=-1).scores_node.dense == Dense((9, 9), 1)
    with pytest.raises(ValueError, match="axis 3 cannot count classes"):
        Subject.of(model, (x, x.roll(-1, 1)), task="dense", class_axis=3).scores_node


def test_classes_without_a_score_are_named():
    model = transformer(tokens=9, length=6, width=8, heads=2, depth=1)
    x = torch.randint(9, (5, 6), generator=torch.Generator().manual_seed(0))
    y = x.clone()
    y[2, 4] = 9
    with pytest.raises(ValueError, match="example 2 has the class 9 at position 4, but the model scores 9"):
        damage_run(model, (x, y), None, ["token"])


def test_probabilities_at_positions():
    class Squashed(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x).softmax(-1)

    model = transformer(tokens=9, length=6, width=8, heads=2, depth=1).double()
    x = torch.randint(9, (5, 6), generator=torch.Generator().manual_seed(0))
    plain = intact_loss(Subject.of(model, (x, x.roll(-1, 1))))
    with pytest.warns(UserWarning, match="taken as probabilities"):
        found = intact_loss(Subject.of(Squashed(model).eval(), (x, x.roll(-1, 1))))
    assert found["cross_entropy"] == pytest.approx(plain["cross_entropy"], rel=1e-9)


class Lookup(nn.Module):
    """A token raises the score of the class after its own by twelve, through a unit of its own."""

    def __init__(self):
        super().__init__()
        self.token, self.unit, self.out = nn.Embedding(7, 7), nn.Linear(7, 7, bias=False), nn.Linear(7, 7, bias=False)
        for one in (self.token, self.unit, self.out):
            nn.init.eye_(one.weight)
        self.out.weight.data = 12 * self.out.weight.data.roll(1, 0)

    def forward(self, ids):
        return self.out(torch.relu(self.unit(self.token(ids))))


def test_selectivity_by_labels_of_positions():
    ids = (torch.arange(8)[:, None] + 3 * torch.arange(7)) % 7
    targets = (ids + 1) % 7
    targets[:, 0] = -100
    halves = Partition.from_labels({"unit": [0, 0, 0, 1, 1, 1, 1]})
    options = dict(n_controls=3, n_boot=4, matched=False)
    subject = Subject.of(Lookup().eval().requires_grad_(False), (ids, targets), class_axis=-1)
    by = np.where(ids.numpy() < 3, "low", "high")
    found = importance(subject, None, halves, by=by, **options)
    assert found.outcomes == ("cross_entropy", "accuracy", "selectivity_by")
    np.testing.assert_allclose(found.value["selectivity_by"], [1.0, 1.0], rtol=1e-6)
    each = importance(subject, None, halves, by=ids.numpy(), **options)
    share = np.log(np.array([3, 4])) / np.log(7)  # the damage falls on so many labels of seven alike
    np.testing.assert_allclose(each.value["selectivity_by"], 1 - share, rtol=1e-4)
    assert each.settings["by"]["at"] == "positions" and each.settings["by"]["n_labels"] == 7
    spoilt = by.copy()
    spoilt[:, 0] = "other"  # where there is no target, there is no damage, and so no label
    same = importance(subject, None, halves, by=spoilt, **options)
    np.testing.assert_array_equal(same.value["selectivity_by"], found.value["selectivity_by"])


def test_each_position_adds_up_to_the_example(monkeypatch):
    scores, intact, y = drawn(3)
    for layout in (LAST, FIRST):
        for at_once in (1, 2**20):
            monkeypatch.setitem(module._AT_ONCE, "cpu", at_once)
            (outcome,) = find_outcomes("cross_entropy", n_scores=7, task="dense", dense=layout)
            each = each_position(outcome.measure.measure, layout, of=outcome.measure.of)
            found = each(flat(scores, layout), flat(intact, layout), y)
            assert found.shape == (3, 4, 5) and each.places == 5 and (found[:, y == -100] == 0).all()
            whole = outcome.measure(flat(scores, layout), flat(intact, layout), y)
            torch.testing.assert_close(found.sum(2) / (y != -100).sum(1), whole, rtol=1e-12, atol=1e-12)
