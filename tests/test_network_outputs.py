"""What a network says: which output holds the scores, outputs that are not numbers, scores that are probabilities."""

import re
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from specialize_nb.base.tasks import check_labels
from specialize_nb.dev.testing import unchanged
from specialize_nb.network import outputs as module
from specialize_nb.network.answers import outputs_of, record, scores_node, scores_of
from specialize_nb.network.outputs import choose_output
from specialize_nb.network.subject import Subject
from specialize_nb.network.units import trace


class Head(nn.Module):
    """A hidden layer, scores, and what `out` makes of the two."""

    def __init__(self, out=lambda h, s: s, n_out=3):
        super().__init__()
        self.inner, self.outer, self.out = nn.Linear(4, 5), nn.Linear(5, n_out), out

    def forward(self, x):
        h = self.inner(x).relu()
        return self.out(h, self.outer(h))


def build(out=lambda h, s: s, n_out=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Head(out, n_out).eval().requires_grad_(False)


def examples(n=12, seed=0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def classes(n=12):
    return torch.arange(n) % 3


def scores_in_eager(model, x):
    return model.outer(model.inner(x).relu())


def test_one_output_that_can_be_it_is_taken():
    x = examples()
    for out, label in (
        (lambda h, s: s, ""),
        (lambda h, s: (s, s.sum()), "0"),
        (lambda h, s: {"a": s, "b": s > 0}, "a"),
    ):
        model = build(out)
        subject = Subject.of(model, (x, classes()))
        assert subject.output == label and subject.notes == () and scores_of(subject)[1] == 3
        assert_allclose(outputs_of(subject), scores_in_eager(model, x), rtol=1e-5, atol=1e-6)


def test_which_of_several_outputs_can_be_said():
    x, model = examples(), build(lambda h, s: (s, h))
    shapes = r"'0' \(batch, 3\); '1' \(batch, 5\)"
    with pytest.raises(
        ValueError, match=rf"the output of Head is {shapes}: 2 of them can be it; say which with output"
    ):
        scores_of(Subject.of(model, (x, classes())))
    for output, right in (("0", model.outer), (0, model.outer), ("1", None), (1, None)):
        subject = Subject.of(model, (x, classes()), output=output)
        h = model.inner(x).relu()
        assert_allclose(outputs_of(subject), h if right is None else right(h), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=rf"Head has no output 'logit': .*; it puts out {shapes}"):
        scores_of(Subject.of(model, (x, classes()), output="logit"))
    with pytest.raises(ValueError, match="a `Subject` was made with output=1: leave `output` out"):
        Subject.of(subject, output="0")
    nested = build(lambda h, s: {"logits": s, "hidden": (h, h[:, :2])})
    subject = Subject.of(nested, (x, classes()))
    assert scores_of(subject)[1] == 3 and subject.output == "logits"
    (note,) = subject.notes
    assert note.startswith("The scores are the output 'logits', one of ") and "'hidden.1' (batch, 2)" in note
    assert scores_of(Subject.of(nested, (x, classes() % 2), output="hidden.1"))[1] == 2
    with pytest.raises(ValueError, match=r"Head has no output 'a': it is alone and has no name: leave `output` out"):
        scores_of(Subject.of(build(), (x, classes()), output="a"))
    integer = build(lambda h, s: {"scores": s, "choice": s.argmax(1)})
    with pytest.raises(
        ValueError, match=r"the output 'choice' of Head is \(batch,\) int64; for task='classes' it has to"
    ):
        scores_of(Subject.of(integer, (x, classes()), output="choice"))


@pytest.mark.parametrize("out", [lambda h, s: s[:, :, None, None], lambda h, s: s[:, None]])
def test_class_scores_may_have_axes_of_one(out):
    data = (examples(), torch.arange(12) % 3)
    plain, more = (Subject.of(build(one), data) for one in (lambda h, s: s, out))
    assert more.scores_node.n == 3
    np.testing.assert_array_equal(outputs_of(more), outputs_of(plain))


def test_whole_targets_that_no_scores_fit_are_told_what_they_may_be():
    data = (examples(), torch.arange(24).view(12, 2) % 3)
    with pytest.raises(ValueError, match=r"the model puts out 3: .*classes at positions need a score for each class"):
        check_labels(Subject.of(build(), data).data, 3)
    with pytest.raises(ValueError, match="the output of Head is no tensor; one of them has to be"):
        Subject.of(build(lambda h, s: None), (examples(), torch.arange(12) % 3)).scores_node


def test_the_targets_tell_apart_outputs_of_other_sizes():
    x = examples()
    wide = Subject.of(build(lambda h, s: (s[:, :2], s)), (x, classes()))  # three classes need three scores
    assert wide.output == "1"
    numbers = Subject.of(build(lambda h, s: (h, s)), (x, torch.randn(12, 5)))
    assert numbers.output == "0" and numbers.task == "numbers"


@pytest.mark.parametrize("shape", ["(batch,)", "(batch, 1)"])
def test_one_number_an_example(shape):
    x, y = examples(), torch.arange(12) % 2
    out = (lambda h, s: s[:, 0]) if shape == "(batch,)" else (lambda h, s: s)
    model = build(out, n_out=1)
    right = scores_in_eager(model, x)
    with unchanged(model):
        binary = Subject.of(model, (x, y))
        numbers = Subject.of(model, (x, x[:, 0] / 3))
    assert binary.task == "labels" and numbers.task == "numbers"
    assert "taken as labels of 0 or 1" in " ".join(binary.notes)
    for subject in (binary, numbers, Subject.of(model, x)):
        assert scores_of(subject)[1] == 1
        assert_allclose(outputs_of(subject), right, rtol=1e-5, atol=1e-6)
    assert Subject.of(model, (x, y.float())).task == "labels"
    halves = Subject.of(model, (x, y), split=True)
    assert halves.task == halves.finding().task == "labels" and halves.data.labels.shape == (6, 1)
    apart = Subject.of(model, (x, y), find=(x, 1 - y))
    assert apart.finding().data.labels[0, 0] == 1


def test_numbers_may_have_any_shape():
    x = examples()
    model = build(lambda h, s: s[:, :, None] * h[:, None])
    subject = Subject.of(model, (x, torch.randn(12, 3, 5)))
    assert scores_of(subject)[1] == 15
    assert_allclose(outputs_of(subject), model(x).flatten(1), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"the output of Head is \(batch, 3, 5\); it has to be one tensor of"):
        scores_of(Subject.of(model, (x, classes())))
    assert record(model, (x, classes())).keys() == {"inner"}  # which needs no scores


def test_words_are_classes_in_the_models_order():
    x, words = examples(), ["cat", "dog", "cow"] * 4
    model = build()
    assert list(Subject.of(model, (x, words)).data.labels[:3]) == [0, 2, 1]
    model.config = type("Config", (), {"label2id": {"dog": 0, "cow": 1, "cat": 2}})()
    assert list(Subject.of(model, (x, words)).data.labels[:3]) == [2, 0, 1]
    model.config.label2id = {"dog": 0, "cow": 1}
    with pytest.raises(ValueError, match="the model has no class 'cat'"):
        Subject.of(model, (x, words))
    del model.config
    apart = Subject.of(model, (x[:3], ["cat", "dog", "cow"]), find=(x[:2], ["dog", "cat"]))
    assert list(apart.finding().data.labels) == [2, 0]


def spoiled(kind):
    """A model that answers some examples with what is no number."""

    def out(h, s):
        bad = torch.where(h[:, :1] > 0.4, kind, 0.0)
        return s + bad if kind != -np.inf else torch.cat([s[:, :2], s[:, 2:] + bad], 1)

    return build(out)


@pytest.mark.parametrize("kind", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_are_refused_by_example(kind):
    model, x = spoiled(kind), examples()
    bad = np.flatnonzero(model.inner(x).relu()[:, 0] > 0.4)
    assert 0 < len(bad) < 12
    for data in ((x, classes()), x, (x, torch.randn(12, 3))):
        told = rf"Head puts out NaN or \+inf for {len(bad)} of 12 examples \(numbers? {bad[0]}"
        with pytest.raises(ValueError, match=told):
            scores_of(Subject.of(model, data))
        with pytest.raises(ValueError, match="leave these examples out"):
            outputs_of(Subject.of(model, data))


def test_masked_classes_are_fine_where_they_are_wrong():
    model, x = spoiled(-np.inf), examples()
    bad = (model.inner(x).relu()[:, 0] > 0.4).numpy()
    y = torch.from_numpy(np.where(bad, 0, 2))
    found = outputs_of(Subject.of(model, (x, y)))
    assert np.isneginf(found[bad, 2]).all() and np.isfinite(found[~bad]).all()
    y[torch.from_numpy(bad).nonzero()[0]] = 2
    told = (
        rf"Head puts out -inf as all scores or that of the right answer for 1 of 12 examples \(number {bad.argmax()}\)"
    )
    with pytest.raises(ValueError, match=told):
        outputs_of(Subject.of(model, (x, y)))
    with pytest.raises(ValueError, match="puts out -inf as numbers"):
        outputs_of(Subject.of(model, (x, torch.randn(12, 3))))
    nothing = build(lambda h, s: s - torch.where(h[:, :1] > 0.4, np.inf, 0.0))
    with pytest.raises(ValueError, match="puts out -inf as all scores"):
        outputs_of(Subject.of(nothing, (x, y)))


MAKES = {
    "softmax": (lambda h, s: s.softmax(1), "probabilities"),
    "by hand": (lambda h, s: s.exp() / s.exp().sum(1, keepdim=True), "probabilities"),
    "log-softmax": (lambda h, s: s.log_softmax(1), "logits"),
    "logits": (lambda h, s: s, "logits"),
    "small logits": (lambda h, s: s.sigmoid() / 9, "logits"),
    "wrong axis": (lambda h, s: s.softmax(0), "logits"),
    "sigmoids": (lambda h, s: s.sigmoid(), "logits"),
}


@pytest.mark.parametrize("name", MAKES)
def test_probabilities_of_classes_are_seen(name):
    out, right = MAKES[name]
    x = examples()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        subject = Subject.of(build(out), (x, classes()), split=True)
        assert subject.scores == right and subject.finding().scores == right
    found = [str(one.message) for one in seen if one.category is UserWarning]
    assert len(found) == (right == "probabilities" or name in ("sigmoids", "wrong axis"))
    if right == "probabilities":
        assert "lie in [0, 1] and sum to 1: they are taken as probabilities" in found[0]
        assert found[0].split(";")[0] in subject.notes[0] and "`scores=` says otherwise" in subject.notes[0]
    else:
        doubted = [
            one for one in subject.notes if "lie in [0, 1], but do not sum to 1: they are taken as logits" in one
        ]
        assert len(doubted) == len(found) and not [one for one in subject.notes if "probabilities" in one]


def test_what_the_scores_are_can_be_said():
    x = examples()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for said in ("logits", "probabilities"):
            subject = Subject.of(build(MAKES["softmax"][0]), (x, classes()), scores=said)
            assert subject.scores == said and subject.notes == ()
    with pytest.raises(ValueError, match=r"miss 1 in sum by up to .*: they are no probabilities; say scores='logits'"):
        Subject.of(build(), (x, classes()), scores="probabilities").scores
    with pytest.raises(ValueError, match="allowed are 'logits', 'probabilities'"):
        Subject.of(build(), (x, classes()), scores="odds").scores


def test_probabilities_of_labels_are_seen():
    x, y = examples(), (torch.rand(12, 3, generator=torch.Generator().manual_seed(0)) > 0.4).long()
    with pytest.warns(UserWarning, match=r"The scores of Head lie in \[0, 1\]: they are taken as probabilities"):
        assert Subject.of(build(lambda h, s: s.sigmoid()), (x, y)).scores == "probabilities"
    assert Subject.of(build(), (x, y)).scores == "logits"
    for out in (lambda h, s: s, lambda h, s: s + 0.1, lambda h, s: s * 0.9, lambda h, s: s.relu()):
        small = build(out)  # its numbers happen to lie between 0 and 1
        small.outer.weight.mul_(0.01)
        small.outer.bias.fill_(0.5)
        subject = Subject.of(small, (x, y))
        assert subject.scores == "logits" and "say scores='probabilities' if they are" in subject.notes[0]
        assert Subject.of(small, (x, y), scores="probabilities").scores == "probabilities"
    column = build(lambda h, s: s.sigmoid()[:, 0], n_out=1)
    with pytest.warns(UserWarning, match="taken as probabilities"):
        assert Subject.of(column, (x, classes() % 2)).scores == "probabilities"


def test_what_is_too_large_is_read_again(monkeypatch):
    x, model = examples(), build()
    monkeypatch.setattr(module, "_MOST", 10)
    subject = Subject.of(model, list(zip(x.split(5), classes().split(5), strict=True)))
    assert subject.outputs.values is None
    assert_allclose(outputs_of(subject), model(x), rtol=1e-5, atol=1e-6)


def test_the_output_of_a_model_with_hooks_is_chosen_alike():
    model = build(lambda h, s: {"logits": s if s.sum() > -1e9 else h, "hidden": h})
    with pytest.warns(RuntimeWarning, match="read through hooks"):
        network = trace(model, examples()[:2])
    assert choose_output(network).label == "logits" and scores_node(network, output="hidden")[1] == 5
    subject = Subject.of(model, (examples(), classes()), network=network)
    assert_allclose(outputs_of(subject), scores_in_eager(model, examples()), rtol=1e-5, atol=1e-6)


def test_outputs_have_places_too():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            return {"logits": self.a(x), "aux": self.b(x)}

    network = trace(Two().eval(), torch.rand(4, 5))
    for given, label in ((0, "logits"), (1, "aux"), (-1, "aux"), ("1", "aux"), ("aux", "aux")):
        assert choose_output(network, task="classes", output=given).label == label
    with pytest.raises(ValueError, match="has no output '2'"):
        choose_output(network, task="classes", output=2)


def test_logarithms_of_the_probabilities_of_labels_are_refused():
    model, x = nn.Sequential(nn.Linear(5, 1), nn.LogSigmoid()).eval(), torch.rand(6, 5)
    with pytest.raises(ValueError, match="come from a log-sigmoid"):
        Subject.of(model, (x, torch.arange(6) % 2)).scores
    assert Subject.of(model, (x, torch.arange(6) % 2), scores="logits").scores == "logits"


DISGUISES = {
    "look like percentages": lambda h, s: s.softmax(1) * 100,
    "look like percentages, not": lambda h, s: (s.softmax(1) * 100).round(),
    "logarithms to base 2": lambda h, s: s.log_softmax(1) / np.log(2),
    "logarithms to base 10": lambda h, s: s.log_softmax(1) / np.log(10),
    "negative logarithms": lambda h, s: -s.log_softmax(1),
    "odds of probabilities": lambda h, s: (p := s.softmax(1)) / (1 - p),
}


@pytest.mark.parametrize("name", DISGUISES)
def test_scores_in_other_units_are_refused(name):
    x, model = examples(), build(DISGUISES[name])
    with pytest.raises(ValueError, match=f"{name}.* or say scores='logits' to take them as they are"):
        Subject.of(model, (x, classes())).scores
    subject = Subject.of(model, (x, classes()), scores="logits")
    assert subject.scores == "logits" and subject.notes == ()


def test_percentages_of_labels_are_refused():
    y = (torch.rand(12, 3, generator=torch.Generator().manual_seed(0)) > 0.4).long()
    with pytest.raises(ValueError, match="held between 0 and 100: they look like percentages; divide them by 100"):
        Subject.of(build(lambda h, s: 100 * s.sigmoid()), (examples(), y)).scores


def test_what_probabilities_cannot_tell_is_told():
    x = examples()
    y = (torch.rand(12, 3, generator=torch.Generator().manual_seed(0)) > 0.4).long()
    for out, targets, told in (
        (lambda h, s: (900 * s).sigmoid(), y, "exactly 0 or 1, as float32 tells them.* no loss .* above 87.3 nats"),
        (lambda h, s: (900 * s).softmax(1), classes(), "exactly 0, as float32 tells them.* above 87.3 nats"),
        (lambda h, s: (900 * s).double().softmax(1), classes(), "exactly 0, as float64 tells them.* above 708.4 nats"),
        (lambda h, s: s.half().softmax(1), classes(), "are float16, which rounds each loss by up to 5e-04 nats"),
        (lambda h, s: s.bfloat16().softmax(1), classes(), "are bfloat16, which rounds each loss by up to 4e-03 nats"),
    ):
        subject = Subject.of(build(out), (x, targets), scores="probabilities")
        assert subject.scores == "probabilities"
        (note,) = subject.notes
        assert re.search(told, note)
