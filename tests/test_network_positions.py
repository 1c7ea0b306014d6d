"""Targets at the positions that count: padding on either side, and labels that are the tokens again."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from specialize_nb.base.text import next_token
from specialize_nb.lesions.damage import damage_run, intact_loss
from specialize_nb.network.subject import Subject
from specialize_nb.training.models import transformer

IDS = torch.randint(1, 9, (6, 7), generator=torch.Generator().manual_seed(3))


class Reader(nn.Module):
    """One head of attention over what a mask lets in; causal, or not."""

    def __init__(self, causal=True):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.token, self.value, self.scores = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9)
        self.causal = causal

    def forward(self, input_ids, attention_mask):
        x = self.token(input_ids)
        seen = attention_mask[:, None, :] != 0
        if self.causal:
            seen = seen & torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        seen = seen | torch.eye(x.shape[1], dtype=torch.bool)  # no row is empty
        x = x + functional.scaled_dot_product_attention(x, x, self.value(x), attn_mask=seen)
        return self.scores(x)


def model_of(causal=True):
    return Reader(causal).eval().double()


def padded(sides):
    """The same sequences of 4 to 7 tokens with padding on one side."""
    lengths, ids, mask = [7, 5, 4, 7, 6, 7], torch.zeros_like(IDS), torch.zeros_like(IDS)
    for i, n in enumerate(lengths):
        at = slice(0, n) if sides == "right" else slice(7 - n, 7)
        ids[i, at], mask[i, at] = IDS[i, :n], 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}, lengths


def alone(model, lengths):
    """The mean loss of each sequence by itself, without padding."""
    found = []
    for i, n in enumerate(lengths):
        row = IDS[i : i + 1, :n]
        with torch.no_grad():
            out = model(row, torch.ones_like(row))
        found.append(float(functional.cross_entropy(out[0, :-1], row[0, 1:])))
    return np.mean(found)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(side):
    model, (data, lengths) = model_of(), padded(side)
    subject = Subject.of(model, data)
    assert any("they were shifted" in note for note in subject.notes)
    assert intact_loss(subject)["cross_entropy"] == pytest.approx(alone(model, lengths), abs=1e-12)
    counted = (subject.data.labels != -100).sum(1)
    assert counted.tolist() == [n - 1 for n in lengths]
    run, groups = damage_run(subject, None, None, ["value"], n_boot=2), np.eye(8, dtype=bool)[:3]
    other = damage_run(Subject.of(model, padded("left" if side == "right" else "right")[0]), None, None, ["value"])
    np.testing.assert_allclose(
        run.damage({"value": groups})["cross_entropy"], other.damage({"value": groups})["cross_entropy"], atol=1e-12
    )


def test_labels_that_are_the_tokens_are_shifted():
    model, whole = model_of(), torch.ones_like(IDS)
    given = {"input_ids": IDS, "attention_mask": whole}
    unshifted, shifted = Subject.of(model, given | {"labels": IDS}), Subject.of(model, (given, next_token(IDS).y))
    np.testing.assert_array_equal(unshifted.data.labels, shifted.data.labels)
    np.testing.assert_array_equal(unshifted.data.labels[:, :-1], IDS[:, 1:])
    assert intact_loss(unshifted) == intact_loss(shifted) and not any("shifted" in one for one in shifted.notes)
    x, y = next(iter(unshifted.data))
    assert torch.equal(y[:, :-1], IDS[:, 1:]) and torch.equal(x["input_ids"], IDS)


def test_a_model_that_sees_what_follows_is_taken_at_its_word():
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
    subject = Subject.of(model_of(causal=False), given)
    np.testing.assert_array_equal(subject.data.labels, IDS)


def test_targets_that_are_not_the_tokens_stay():
    y = IDS.clone()
    y[0, 0] = 1 + y[0, 0] % 8
    subject = Subject.of(model_of(), ({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, y))
    np.testing.assert_array_equal(subject.data.labels, y)


def test_some_labels_ignored_are_shifted_too():
    y = IDS.clone()
    y[:, :3] = -100  # a prompt that is not to be learned
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": y}
    labels = Subject.of(model_of(), given).data.labels
    assert (labels[:, :2] == -100).all() and (labels[:, -1] == -100).all()
    np.testing.assert_array_equal(labels[:, 2:-1], IDS[:, 3:])


def test_a_sequence_of_one_token_has_nothing_to_say():
    data, _ = padded("right")
    data["attention_mask"][2, 1:] = 0
    with pytest.raises(ValueError, match=r"no position of 1 of 6 examples \(number 2\) has a target that counts"):
        Subject.of(model_of(), data)


def test_batches_of_several_lengths():
    model, (data, lengths) = model_of(), padded("right")
    cut = [{name: one[rows, :n] for name, one in data.items()} for rows, n in ((slice(0, 3), 7), (slice(4, 5), 6))]
    subject = Subject.of(model, cut)
    assert (subject.data.labels != -100).sum(1).tolist() == [lengths[i] - 1 for i in (0, 1, 2, 4)]


def test_halves_keep_their_targets():
    subject = Subject.of(
        transformer(tokens=9, length=7, width=8, heads=2, depth=1), {"tokens": IDS, "labels": IDS}, split=True
    )
    np.testing.assert_array_equal(subject.data.labels[:, :-1], IDS[::2, 1:])
    np.testing.assert_array_equal(subject.find.labels[:, :-1], IDS[1::2, 1:])
    for part in (subject.data, subject.find):
        np.testing.assert_array_equal(np.concatenate([y for _, y in part]), part.labels)
