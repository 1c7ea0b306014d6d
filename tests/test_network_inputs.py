"""What a network is given: types of numbers that it takes, and positions of sequences that mean nothing."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from specialize_nb.base.data import batches
from specialize_nb.controls.matching import unit_properties
from specialize_nb.dev.testing import unchanged
from specialize_nb.lesions.lesion import lesion_engine
from specialize_nb.network.answers import record, summarize, unit_scales
from specialize_nb.network.inputs import padding_of, places_that_count, suited
from specialize_nb.network.subject import Subject
from specialize_nb.network.units import trace

NEAR = {"rtol": 1e-5, "atol": 1e-6}
LENGTHS = [5, 3, 4, 2, 5, 1]


def randomized(model, seed=0):
    """The model with random weights of some size, for evaluation."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        drawn = 0.5 * torch.randn(value.shape, generator=generator)
        value.data.copy_(drawn + (value.ndim == 1 and "norm" in name.lower() and "weight" in name))
    return model.eval().requires_grad_(False)


def drawn(*shape, seed=0, whole=None):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(shape, generator=generator) if whole is None else torch.randint(*whole, shape, generator=generator)
    )


def a_mask(side, length=5):
    """(n, length) int64: 1 where a position counts, with the sequences at one end."""
    places = torch.arange(length)
    lengths = torch.tensor(LENGTHS)[:, None]
    return (places < lengths if side == "right" else places >= length - lengths).long()


def hooked(model, modules, call):
    """What modules put out in a call of the model: name -> value."""
    seen, handles = {}, []
    for name in modules:
        note = lambda module, args, out, name=name: seen.update({name: out.clone()})  # noqa: E731
        handles.append(model.get_submodule(name).register_forward_hook(note))
    call()
    for handle in handles:
        handle.remove()
    return seen


def masked_mean(value, counts):
    """The mean over positions that count, by hand: (n, T, units), (n, T) -> (n, units)."""
    return torch.stack([row[own.bool()].mean(0) for row, own in zip(value, counts, strict=True)])


class Encoder(nn.Module):
    """Transformer layers over sequences of vectors, read out at the first position that counts."""

    def __init__(self, inputs="src_key_padding_mask"):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
        self.body, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, src, src_key_padding_mask):
        h = self.body(self.embed(src), src_key_padding_mask=src_key_padding_mask)
        own = (~src_key_padding_mask).float()[..., None]
        return self.out((h * own).sum(1) / own.sum(1))


class Tokens(nn.Module):
    """Tokens, whose means over positions that count are read out; the mask has a name that tells nothing."""

    def __init__(self, keep=True):
        super().__init__()
        self.table, self.inner, self.out, self.keep = nn.Embedding(20, 6), nn.Linear(6, 7), nn.Linear(7, 3), keep

    def forward(self, tokens, padding_mask):
        h = torch.tanh(self.inner(self.table(tokens)))
        own = (padding_mask if self.keep else 1 - padding_mask).to(h.dtype)[..., None]
        return self.out((h * own).sum(1) / own.sum(1))


class Lengths(nn.Module):
    """Convolutions over positions; how many count is given as lengths."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(3, 6, 1), nn.Linear(6, 2)

    def forward(self, x, lengths):
        h = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        own = (torch.arange(x.shape[1]) < lengths[:, None]).to(h.dtype)[..., None]
        return self.out((h * own).sum(1) / lengths[:, None])


def labels(n=6):
    return torch.arange(n) % 2


@pytest.mark.parametrize("side", ["right", "left"])
def test_means_leave_out_what_a_mask_leaves_out(side):
    hf = pytest.importorskip("transformers")
    config = hf.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8,
    )  # fmt: skip
    model, mask = randomized(hf.BertForSequenceClassification(config)), a_mask(side)
    x = {"input_ids": drawn(6, 5, whole=(1, 30)) * mask, "attention_mask": mask}
    names = ["bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.attention.self.value"]
    seen = hooked(model, names, lambda: model(**x))
    subject = Subject.of(model, (x, labels()))
    found = record(subject)
    for name in names:
        right = masked_mean(seen[name], mask)
        assert_allclose(found[name], right, **NEAR)
        assert np.abs(found[name] - seen[name].mean(1).numpy()).max() > 0.01  # padding matters here
    (note,) = [one for one in subject.notes if "Padding" in one]
    assert "'attention_mask' (0 is padding)" in note
    scales = unit_scales(subject, layers=names[:1])[names[0]]
    after = torch.nn.functional.gelu(seen[names[0]])
    assert_allclose(scales, masked_mean(after, mask).std(0, correction=0), **NEAR)
    table = unit_properties(model, (x, labels()), layers=names[:1])
    rows = after[mask.bool()]  # every position that counts
    assert_allclose(table["activation_scale"], rows.square().mean(0).sqrt(), **NEAR)


@pytest.mark.parametrize("kind", ["mask", "token"])
def test_a_padded_batch_and_the_sequences_alone_give_the_same(kind):
    hf = pytest.importorskip("transformers")
    config = hf.GPT2Config(
        vocab_size=30, n_layer=1, n_head=2, n_embd=8, n_positions=8, pad_token_id=0, num_labels=3, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model, mask = randomized(hf.GPT2ForSequenceClassification(config)), a_mask("right")
    ids = drawn(6, 5, whole=(3, 30)) * mask
    x = {"input_ids": ids} | ({"attention_mask": mask} if kind == "mask" else {})
    subject = Subject.of(model, (x, labels()))
    found = record(subject)
    assert len(found) > 2
    for row in (1, 5):  # of 3 positions, and of 1
        length = LENGTHS[row]
        one = {"input_ids": ids[row : row + 1, :length].repeat(2, 1)}
        one |= {"attention_mask": torch.ones_like(one["input_ids"])} if kind == "mask" else {}
        alone = record(model, (one, labels(2)))
        for name, values in alone.items():
            assert_allclose(found[name][row], values[0], **NEAR, err_msg=name)
    (note,) = [one for one in subject.notes if "Padding" in one]
    assert ("'attention_mask'" in note) if kind == "mask" else ("pad token, 0, in 'input_ids'" in note)


def test_pytorchs_masks_are_true_where_there_is_padding():
    model, mask = randomized(Encoder()), a_mask("right")
    x = drawn(6, 5, 3)
    given = (x, mask == 0)  # by place: the names are those of `forward`
    names = ["embed", "body.layers.0.linear1"]
    seen = hooked(model, names, lambda: model(*given))
    subject = Subject.of(model, (given, labels()))
    found = record(subject, layers=names)
    for name in names:
        assert_allclose(found[name], masked_mean(seen[name], mask), **NEAR)
    assert "'src_key_padding_mask' (not 0 is padding)" in " ".join(subject.notes)
    one = record(model, ((x[1:2, :3].repeat(2, 1, 1), torch.zeros(2, 3, dtype=torch.bool)), labels(2)))
    for name in one:
        assert_allclose(found[name][1] if name in found else record(subject)[name][1], one[name][0], **NEAR)


@pytest.mark.parametrize("keep", [True, False])
def test_what_the_model_leaves_out_tells_what_a_mask_means(keep):
    """`padding_mask` is 1 for tokens in some models and 1 for padding in others."""
    model, mask = randomized(Tokens(keep)), a_mask("right")
    x = {"tokens": drawn(6, 5, whole=(0, 20)), "padding_mask": mask if keep else 1 - mask}
    (value,) = hooked(model, ["inner"], lambda: model(**x)).values()
    assert_allclose(record(model, (x, labels()))["inner"], masked_mean(value, mask), **NEAR)


def test_lengths_tell_where_padding_begins():
    model, x, lengths = randomized(Lengths()), drawn(6, 5, 3), torch.tensor(LENGTHS)
    (value,) = hooked(model, ["conv"], lambda: model(x, lengths)).values()
    subject = Subject.of(model, ((x, lengths), labels()))
    found = record(subject)
    assert_allclose(found["conv"], masked_mean(value.transpose(1, 2), a_mask("right")), **NEAR)
    assert "'lengths' (what lies beyond is padding)" in " ".join(subject.notes)


def test_no_padding_is_seen_where_there_is_none():
    model, mask = randomized(Tokens()), torch.ones(6, 5, dtype=torch.int64)
    x = {"tokens": drawn(6, 5, whole=(0, 20)), "padding_mask": mask}
    subject = Subject.of(model, (x, labels()))
    assert subject.padding is None and subject.notes == ()
    (value,) = hooked(model, ["inner"], lambda: model(**x)).values()
    assert_allclose(record(subject)["inner"], value.mean(1), **NEAR)
    hf = pytest.importorskip("transformers")
    config = hf.GPT2Config(vocab_size=30, n_layer=1, n_head=2, n_embd=8, n_positions=8, pad_token_id=0, num_labels=2)
    gpt = randomized(hf.GPT2ForSequenceClassification(config))
    inside = torch.tensor([[3, 0, 4, 0], [5, 6, 0, 0]])  # the pad token stands inside a row: it is a word here
    data = batches(({"input_ids": inside}, labels(2)))
    assert padding_of(gpt, trace(gpt, data.example), data) is None


def test_means_that_lesions_put_in_are_over_positions_that_count():
    model, mask = randomized(Tokens()), a_mask("right")
    x = {"tokens": drawn(6, 5, whole=(0, 20)), "padding_mask": mask}
    value = torch.tanh(hooked(model, ["inner"], lambda: model(**x))["inner"])
    right, subject = masked_mean(value, mask), Subject.of(model, (x, labels()))
    fill = lesion_engine(subject, None, None, ["inner"], ablation="mean").fills["inner"]
    assert_allclose(fill.table.flatten(), right.mean(0), **NEAR)
    fill = lesion_engine(subject, None, None, ["inner"], ablation="class_mean").fills["inner"]
    by_class = torch.stack([right[labels() == one].mean(0) for one in (0, 1)])
    assert_allclose(fill.table.flatten(1), by_class, **NEAR)


def test_an_example_of_nothing_but_padding_is_refused():
    model, mask = randomized(Tokens()), a_mask("right")
    mask[[1, 4]] = 0
    x = {"tokens": drawn(6, 5, whole=(0, 20)), "padding_mask": mask}
    with pytest.raises(ValueError, match=r"no position counts in 2 of 6 examples \(numbers 1, 4\): leave"):
        record(model, (x, labels()))


def test_summaries_of_places_that_count():
    value, counts = drawn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]).bool()
    by_hand = [value[0, :2], value[1, 1:]]
    for summary, of in {
        "mean": lambda v: v.mean(0),
        "l1": lambda v: v.abs().mean(0),
        "max": lambda v: v.amax(0),
    }.items():
        found = summarize(value, 2, summary, {4: counts})
        assert_allclose(found, torch.stack([of(one) for one in by_hand]), rtol=1e-6)
        assert_allclose(summarize(value.transpose(1, 2), 1, summary, {4: counts}), found, rtol=1e-6)
        assert_allclose(summarize(value, 2, summary, {7: counts}), summarize(value, 2, summary), rtol=1e-6)
    value[0, 3] = torch.nan  # what padding puts out does not matter
    assert summarize(value, 2, "mean", {4: counts}).isfinite().all()
    heads = value.unflatten(2, (1, 3))  # (batch, positions, head, feature): a head's features count where positions do
    assert_allclose(
        summarize(heads, 2, counts={4: counts})[:, 0], summarize(value, 2, counts={4: counts}).mean(1), **NEAR
    )
    assert places_that_count((2, 6), 1, {4: counts}) is None


def image_model(**options):
    return randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)))


def test_bytes_of_images_become_numbers_from_0_to_1():
    model, x = image_model(), drawn(6, 3, 4, 4, whole=(0, 256)).to(torch.uint8)
    subject = Subject.of(model, (x, labels()))
    assert_allclose(record(subject)["0"], model[0](x.float() / 255).mean((2, 3)), **NEAR)
    assert "uint8 (n, 3, 4, 4) were made numbers from 0 to 1" in " ".join(subject.notes)
    halves = Subject.of(model, (x, labels()), split=True)
    assert_allclose(record(halves.finding())["0"], model[0](x[1::2].float() / 255).mean((2, 3)), **NEAR)
    apart = Subject.of(model, (x, labels()), find=(x.flip(0), labels()))
    assert_allclose(record(apart.finding())["0"], model[0](x.flip(0).float() / 255).mean((2, 3)), **NEAR)


class Scaled(nn.Module):
    """Takes bytes as they are."""

    def __init__(self):
        super().__init__()
        self.body = image_model()

    def forward(self, x):
        return self.body(x / 127.5 - 1)


def test_a_model_that_takes_bytes_gets_bytes():
    model, x = Scaled(), drawn(6, 3, 4, 4, whole=(0, 256)).to(torch.uint8)
    model.eval()
    subject = Subject.of(model, (x, labels()))
    assert_allclose(record(subject)["body.0"], model.body[0](x / 127.5 - 1).mean((2, 3)), **NEAR)
    assert subject.notes == ()


def test_other_types_follow_the_model():
    model = randomized(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    whole = drawn(6, 3, whole=(0, 5))
    right = model[0](whole.float())
    for x, told in {whole: "int64", whole.to(torch.int16): "int16", whole.bool(): "bool"}.items():
        subject = Subject.of(model, (x, labels()))
        assert_allclose(record(subject)["0"], model[0](x.float()), **NEAR)
        assert f"{told} (n, 3) were made floating numbers of the same value" in " ".join(subject.notes)
    for x, told in ((whole.half(), ""), (whole.double(), "float64"), (whole.double().numpy(), "float64")):
        subject = Subject.of(model, (x, labels()))
        assert_allclose(record(subject)["0"], right, **NEAR)
        note = f"The model does not take inputs as they are: {told} (n, 3) were made float32."
        assert subject.notes == ((note,) if told else ())
    with pytest.raises(
        ValueError, match=r"may be meant as 0 to 255 or as 0 to 1: give x.float\(\), or x.float\(\) / 255"
    ):
        Subject.of(model, (whole.to(torch.uint8), labels()))
    tokens = randomized(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2)))
    data, note = suited(tokens, batches((whole.to(torch.uint8), labels())))
    assert data.example.dtype == torch.int64 and "were made int64" in note
    assert [x.dtype for x, _ in data] == [torch.int64]


def test_nothing_is_changed_by_looking_at_inputs():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    whole = drawn(6, 3, whole=(0, 5))
    with unchanged(model), pytest.raises(ValueError, match="in training mode"):
        Subject.of(model, (whole, labels()))
    model, mask = randomized(Tokens()), a_mask("right")
    x = {"tokens": drawn(6, 5, whole=(0, 20)), "padding_mask": mask}
    with unchanged(model):
        found = record(model, (x, labels()))
    with torch.inference_mode():
        inside = record(model, (x, labels()))
    assert_allclose(inside["inner"], found["inner"], **NEAR)


class Picky(nn.Module):
    """Fails on a batch with a number above 10."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        if x.max() > 10:
            raise RuntimeError("too large\nand more")
        return self.last(self.first(x).relu())


def test_a_batch_that_the_model_fails_on_is_named():
    model, x = randomized(Picky()), drawn(6, 3)
    x[4] = 11
    with pytest.warns(RuntimeWarning, match="read through hooks"):
        network = trace(model, x[:2])
    data = list(zip(x.split(2), labels().split(2), strict=True))
    told = r"Picky fails on batch 2 of the data, inputs \(2, 3\) float32: RuntimeError: too large; run the model"
    with pytest.raises(ValueError, match=told):
        record(model, data, network)
    with pytest.raises(ValueError, match=told):
        Subject.of(model, data, network=network).outputs


def uneven(x, mask, sizes=(2, 4)):
    """Batches of so many examples, each cut to its own longest sequence."""
    start, found = 0, []
    for n in sizes:
        part = slice(start, start + n)
        own = mask[part].any(0)
        found.append(({name: one[part][:, own] for name, one in x.items()}, labels()[part]))
        start += n
    return found


def bert(**options):
    hf = pytest.importorskip("transformers")
    sizes = dict(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    return randomized(hf.BertForSequenceClassification(hf.BertConfig(**sizes, max_position_embeddings=8, **options)))


def gpt():
    hf = pytest.importorskip("transformers")
    sizes = dict(vocab_size=30, n_layer=1, n_head=2, n_embd=8, n_positions=8, num_labels=3)
    return randomized(hf.GPT2ForSequenceClassification(hf.GPT2Config(**sizes, pad_token_id=2)))


@pytest.mark.parametrize("make", [bert, gpt])
def test_batches_padded_to_different_lengths_are_evened(make):
    model, mask = make(), a_mask("right")[[1, 3, 0, 2, 5, 4]]  # the longest of two are 3, of the other four 5
    x = {"input_ids": torch.where(mask == 1, drawn(6, 5, whole=(3, 30)), 2), "attention_mask": mask}
    data = uneven(x, mask)
    assert [one["input_ids"].shape[1] for one, _ in data] == [3, 5]
    subject = Subject.of(model, data)
    found, whole = record(subject), record(model, (x, labels()))
    assert found.keys() == whole.keys()
    for name in found:
        assert_allclose(found[name], whole[name], **NEAR, err_msg=name)
    right = torch.cat([model(**one).logits for one, _ in data])
    assert_allclose(subject.outputs.values, right, **NEAR)
    told = "Sequences of 3 to 5 positions, as the batches have them, were padded to 5; the model says the same of them."
    assert told in subject.notes
    apart, name = Subject.of(model, data[1:], find=data[:1]), next(iter(found))
    assert_allclose(record(apart.finding())[name], found[name][:2], **NEAR)


class Careless(Tokens):
    """Takes a mask and does not look at it."""

    def forward(self, tokens, attention_mask):
        return self.out(torch.tanh(self.inner(self.table(tokens))).mean(1) + 0 * attention_mask.sum(1, keepdim=True))


def test_batches_that_cannot_be_evened_are_refused():
    model, mask = bert(), a_mask("right")[[1, 3, 0, 2, 5, 4]]
    ids = drawn(6, 5, whole=(1, 20)) * mask
    with pytest.raises(ValueError, match=r"batch 1 has inputs of shape \(5,\), those before it \(3,\)"):
        Subject.of(model, uneven({"input_ids": ids}, mask))  # nothing tells what padding is
    with pytest.raises(
        ValueError, match="Careless answers otherwise to longer padding: pad all sequences to one length"
    ):
        Subject.of(randomized(Careless()), uneven({"tokens": ids, "attention_mask": mask}, mask))


class Wide(nn.Module):
    """Weights in single precision, computed with in double; a number far from 0 is taken off first."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.relu((x - 1e6).double() @ self.inner.weight.double().T)
        return h @ self.outer.weight.double().T


def test_double_precision_stays_where_the_model_takes_it():
    model, x = randomized(Wide()), drawn(6, 3).double() + 1e6
    subject = Subject.of(model, (x, labels()))
    right = model(x)
    assert subject.notes == () and right.dtype == torch.float64
    assert_allclose(subject.outputs.values, right, rtol=1e-12)
    assert np.abs(model(x.float().double()).numpy() - right.numpy()).max() > 1e-3  # digits that single precision loses
    engine = lesion_engine(subject, None, None, [subject.network.layers[1].name])
    assert engine.n_scores == 2


def test_inputs_that_a_model_changes_in_place_are_left_alone():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.outer(torch.relu(self.inner(x.mul_(2))))

    model, x = randomized(InPlace()), drawn(6, 3)
    before = x.clone()
    found = Subject.of(model, (x, labels())).outputs.values
    assert torch.equal(x, before)
    assert_allclose(found, model(before.clone()), **NEAR)
