"""Answers at positions: against the model's own, with padding on either side, in long data, and on coarser maps."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from specialize_nb.network.subject import Subject
from specialize_nb.network.tokens import all_tokens, answers_at, has_tokens, next_tokens, positions_of, tokens_of
from specialize_nb.network.units import trace


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.unit, self.out = nn.Embedding(9, 6), nn.Linear(6, 5), nn.Linear(5, 9)

    def forward(self, input_ids, attention_mask=None):
        return self.out(torch.tanh(self.unit(self.token(input_ids))))


def reader():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Reader().eval().requires_grad_(False)


def sequences(n=6, length=8, seed=0):
    ids = torch.randint(0, 8, (n, length), generator=torch.Generator().manual_seed(seed))
    return ids, torch.ones_like(ids)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count(side):
    model, (ids, mask) = reader(), sequences()
    plain = answers_at(Subject.of(model, {"input_ids": ids, "attention_mask": mask}), "unit")
    extra = (3, 0) if side == "left" else (0, 3)
    padded = {"input_ids": nn.functional.pad(ids, extra, value=8), "attention_mask": nn.functional.pad(mask, extra)}
    subject = Subject.of(model, padded)
    found = answers_at(subject, "unit")
    assert_allclose(plain.values, torch.tanh(model.unit(model.token(ids))).flatten(0, 1).numpy(), rtol=1e-6)
    assert_allclose(found.values, plain.values, rtol=1e-6, strict=True)
    assert_array_equal(found.example, plain.example)
    assert_array_equal(found.place, plain.place + extra[0])
    tokens, known = next_tokens(subject)
    assert_array_equal(tokens[known], ids[:, 1:].reshape(-1))
    assert known.sum() == 6 * 7


def test_the_answers_of_another_example():
    model, (ids, mask) = reader(), sequences()
    mask[0, 5:] = 0
    found = answers_at(Subject.of(model, {"input_ids": ids, "attention_mask": mask}), "unit")
    order = np.array([1, 0, 2, 3, 5, 4])
    turned = found.beside(order)
    for i, other in enumerate(order):
        n = min((found.example == i).sum(), (found.example == other).sum())
        assert_array_equal(turned.values[turned.example == i], found.values[found.example == other][:n])
        assert_array_equal(turned.place[turned.example == i], np.arange(n))
    assert len(turned.values) == 6 * 8 - 3 - 3


def test_long_data_are_looked_at_in_part():
    model, (ids, _) = reader(), sequences(100, 200)
    subject = Subject.of(model, (ids, None))
    found = answers_at(subject, "unit")
    assert_array_equal(np.bincount(found.example), np.full(100, 81))
    assert "Of answers at positions, 81 of each example are looked at, drawn at random." in subject.notes
    everything = torch.tanh(model.unit(model.token(ids))).numpy()
    assert_allclose(found.values, everything[found.example, found.place], rtol=1e-6)
    assert len(np.unique(found.place)) == 200 and (np.diff(found.place)[np.diff(found.example) == 0] > 0).all()
    again = answers_at(Subject.of(model, [(ids[:50], None), (ids[50:], None)]), "token")
    assert_array_equal(again.place, found.place)  # the same ones, however batches are cut and whatever the layer


def test_heads_have_an_answer_at_each_position():
    hf = pytest.importorskip("transformers")
    config = dict(n_layer=1, n_head=2, n_embd=8, n_positions=8, vocab_size=9, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**config)).eval().requires_grad_(False)
    ids, mask = sequences(4, 6)
    network = trace(model, {"input_ids": ids[:2]}, attention="head")
    found = answers_at(Subject.of(model, {"input_ids": ids}, network=network), "transformer.h.0.attn")
    value = network.activations({"input_ids": ids}, ["transformer.h.0.attn"])["transformer.h.0.attn"]
    assert found.values.shape == (24, 2) and value.shape == (4, 2, 6, 4)
    assert_allclose(found.values, value.mean(3).movedim(1, 2).flatten(0, 1).numpy(), rtol=1e-5, atol=1e-7)


def test_maps_with_other_sides_stand_for_the_middles():
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 2, 1), nn.Tanh())
    model = nn.Sequential(*net, nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 1)).eval().requires_grad_(False)
    x = torch.rand(5, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    subject = Subject.of(model, (x, (x[:, 0] > 0.5).long()))
    assert positions_of(subject) == (4, 6) and not has_tokens(subject)
    found = answers_at(subject, "3")
    assert_allclose(found.values, net(x).movedim(1, 3).flatten(0, 2).numpy(), rtol=1e-5)
    assert_array_equal(found.place[:6], [7, 9, 11, 19, 21, 23])
    assert any("Maps of layers '3' have other sides than 4 x 6" in note for note in subject.notes)


def test_tokens_are_found_or_refused():
    model, (ids, mask) = reader(), sequences()
    subject = Subject.of(model, {"input_ids": ids, "attention_mask": mask})
    assert_array_equal(all_tokens(subject), ids)
    assert has_tokens(subject) and positions_of(subject) == (8,)
    dense = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    plain = Subject.of(dense, (torch.rand(6, 3), None))
    assert not has_tokens(plain) and positions_of(plain) == ()
    with pytest.raises(ValueError, match=r"the inputs \['input'\] hold no tokens"):
        tokens_of(plain, torch.rand(2, 3))


def test_answers_that_are_not_numbers_are_refused():
    loud, (ids, _) = reader(), sequences()
    loud.unit.weight.fill_(3e38)
    with pytest.raises(ValueError, match="'unit'"):
        answers_at(Subject.of(loud, (ids, None)), "unit")
