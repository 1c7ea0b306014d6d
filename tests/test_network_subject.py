"""A model, its network and its data, joined: each checked once, and what belongs to another model refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from specialize_nb.base.data import batches
from specialize_nb.dev.testing import copier, unchanged
from specialize_nb.lesions.lesion import lesion_table
from specialize_nb.network import subject as module
from specialize_nb.network.subject import Subject, find_and_confirm
from specialize_nb.network.units import trace


class Net(nn.Module):
    """A batch norm between two layers; with `branch` a Python branch on values, which torch.export refuses."""

    def __init__(self, branch=False):
        super().__init__()
        self.first, self.norm, self.last, self.branch = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), branch

    def forward(self, x):
        x = self.norm(self.first(x))
        return self.last(x.relu() if self.branch and x.sum() > 0 else x.tanh())


class Same(Net):
    """The same code under another name."""


class Bare(nn.Module):
    """No parameters at all."""

    def forward(self, x):
        return x.relu()


def build(cls=Net, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cls(**options).eval().requires_grad_(False)


def examples(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, generator=generator), torch.arange(n) % 2


def traced(model):
    if not getattr(model, "branch", False):
        return trace(model, examples()[0])
    with pytest.warns(RuntimeWarning, match="units are read through hooks"):
        return trace(model, examples()[0])


def test_the_three_are_joined_and_nothing_is_changed():
    model, data = build(), examples()
    with unchanged(model):
        found = Subject.of(model, data)
    assert found.model is model and found.network.hidden == ("first",) and found.find is found.data
    np.testing.assert_array_equal(found.data.labels, data[1])
    network, checked = traced(model), batches(data)
    found = Subject.of(model, checked, network=network)
    assert found.network is network and found.data.source is checked.source


@pytest.mark.parametrize("branch", [False, True])
def test_a_network_of_another_model_is_refused(branch):
    model = build(branch=branch)
    others = {"a copy": copy.deepcopy(model), "other weights": build(branch=branch, seed=1)}
    for other in others.values():
        with pytest.raises(
            ValueError, match="`network` was traced from another Net, not from the model that was given"
        ):
            Subject.of(model, examples(), network=traced(other))
    with pytest.raises(ValueError, match="was traced from a Same, not from the model"):
        Subject.of(model, examples(), network=traced(build(Same, branch=branch)))
    assert Subject.of(model, examples(), network=traced(model)).model is model


def test_a_network_is_of_one_model_whether_it_was_exported_or_hooked():
    plain, branching = build(), build(branch=True)
    for model, other in ((plain, branching), (branching, plain)):
        with pytest.raises(ValueError, match="was traced from another Net"):
            Subject.of(model, examples(), network=traced(other))
    with pytest.raises(ValueError, match="was traced from a Net"):
        Subject.of(build(Bare), examples(), network=traced(plain))


def test_a_model_that_was_moved_is_still_the_same():
    for branch in (False, True):
        model = build(branch=branch)
        network = traced(model)
        assert Subject.of(model.double(), examples(), network=network).network is network


def test_a_model_without_parameters_is_known_by_its_class():
    network = trace(build(Bare), examples()[0])
    assert Subject.of(build(Bare), examples(), network=network).network is network
    with pytest.raises(ValueError, match="was traced from a Bare"):
        Subject.of(build(), examples(), network=network)


def test_what_is_no_network_is_refused():
    for given, name in ((build(), "Net"), ("network", "str"), (examples(), "tuple")):
        with pytest.raises(TypeError, match=f"`network` is a {name}: give what `trace\\(model, ...\\)` returned"):
            Subject.of(build(), examples(), network=given)


def test_bad_models_and_data_are_told_as_ever():
    with pytest.raises(ValueError, match="in training mode"):
        Subject.of(build().train(), examples())
    with pytest.raises(TypeError, match="got data of type NoneType"):
        Subject.of(build(), None)


def test_the_task_is_looked_up_or_said():
    x, model = examples()[0], build()
    numbers = (x, x.sum(1))
    assert Subject.of(model, numbers).data.task == "numbers" and Subject.of(model, x).data.task == "none"
    for data in (numbers, batches(numbers)):
        with pytest.raises(ValueError, match="classes are whole numbers from 0 on"):
            Subject.of(model, data, task="classes")
        with pytest.raises(ValueError, match="classes are whole numbers from 0 on"):
            Subject.of(model, examples(), find=data, task="classes")


def test_finding_has_the_data_to_find_with_and_is_made_once():
    found = Subject.of(build(), examples(), find=examples(n=4, seed=1))
    other = found.finding()
    assert other.data is found.find is other.find and other.data.n == 4 and found.data.n == 6
    assert other.model is found.model and other.network is found.network
    assert found.finding() is other and other.finding() is other
    alone = Subject.of(build(), examples())
    assert alone.finding() is alone


def test_once_computes_once_by_name():
    found, calls = Subject.of(build(), examples(), find=examples(n=4)), []

    def make():
        calls.append(len(calls))
        return calls[-1]

    assert [found.once("a", make), found.once("a", make), found.once(("a", 1), make), found.once("a", make)] == [
        0,
        0,
        1,
        0,
    ]
    assert found.once("none", lambda: calls.append("none")) is None is found.once("none", make)  # None is kept too
    assert found.finding().once("a", make) == 3  # other data, other answers
    assert calls == [0, 1, "none", 3] and "kept" not in repr(found)


def test_what_fails_is_not_kept():
    found = Subject.of(build(), examples())
    with pytest.raises(ZeroDivisionError):
        found.once("a", lambda: 1 / 0)
    assert found.once("a", lambda: 1) == 1


def test_a_subject_is_taken_as_it_is():
    model = build()
    found = Subject.of(model, examples())
    assert Subject.of(found) is found is Subject.of(found, network=found.network, task="classes")
    for wrong in (dict(data=examples()), dict(network=traced(model))):
        with pytest.raises(ValueError, match="a `Subject` has its data and its network: leave both out"):
            Subject.of(found, **wrong)
    x = examples()[0]
    with pytest.raises(ValueError, match="a `Subject` has its task, 'numbers'"):
        Subject.of(Subject.of(model, (x, x)), task="classes")


def test_each_is_checked_once(monkeypatch):
    seen = []
    for name in ("batches", "trace"):
        known = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, name=name, known=known, **k: [seen.append(name), known(*a, **k)][1]
        )
    found = Subject.of(copier(), (torch.rand(4, 2), torch.arange(4) % 2), find=(torch.rand(3, 2), torch.arange(3) % 2))
    found.finding().finding()
    Subject.of(found)
    assert seen == ["batches", "batches", "trace"]


def test_a_network_of_a_part_of_the_model_is_refused():
    body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    whole = nn.Sequential(*body, nn.ReLU(), nn.Linear(3, 2)).eval()
    x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    for part, model in ((body, whole), (body, nn.Sequential(body)), (whole[:3].eval(), whole)):
        with pytest.raises(ValueError, match="traced from another Sequential"):
            Subject.of(model, (x, y), network=trace(part, x))


def test_batches_of_one_example_are_halved_batch_by_batch():
    x = torch.arange(7.0)[:, None].expand(7, 4).reshape(7, -1)
    found, confirm = find_and_confirm(batches([(x[i : i + 1], torch.tensor([i])) for i in range(7)]))
    assert found.labels.tolist() == [1, 3, 5] and confirm.labels.tolist() == [0, 2, 4, 6]
    assert [float(one[0, 0]) for one, _ in found] == [1, 3, 5]


def three(names=("a", "b", "c")):
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    return x, [names[i % 3] for i in range(12)]


def test_data_to_find_with_need_no_targets():
    x, _ = three()
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    y = torch.arange(12) % 3
    for find in (x + 1, (x + 1, None), [(x[:5] + 1, None), (x[5:] + 1, None)]):
        for task in (None, "classes"):
            subject = Subject.of(model, (x, y), find=find, task=task)
            assert (subject.task, subject.find.task) == ("classes", "none")
            assert torch.equal(torch.cat([one for one, _ in subject.find]), x + 1)
    subject = Subject.of(model, (x, y), find=(x, y), task="classes")
    assert subject.find.task == "classes"
    assert Subject.of(model, x, find=(x, y)).find.task == "none"


def test_words_of_both_data_are_told_as_they_are():
    x, words = three()
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    some = [i for i in range(12) if words[i] != "a"]
    part = (x[some], [words[i] for i in some])
    subject = Subject.of(model, (x, words), find=part)
    assert subject.find.labels.tolist() == [1, 2] * 4 and subject.data.labels.tolist() == [0, 1, 2] * 4
    assert subject.find.notes == ("The classes of `find` are numbered as those of `data` are.",)
    subject = Subject.of(model, part, find=(x, words))
    (note,) = subject.data.notes
    assert note.startswith("`data` and `find` name different classes: the 3 words of both")
    assert subject.data.labels.tolist() == [1, 2] * 4 and not [one for one in subject.notes if "configuration" in one]
    with pytest.raises(ValueError, match="of `find` are words and those of `data` are numbers: which is which"):
        Subject.of(model, (x, torch.arange(12) % 3), find=(x, words))
    one = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1)).eval()
    both = Subject.of(one, (x, ["no", "yes"] * 6), find=(x, ["yes"] * 12), task="labels")
    assert both.find.labels.tolist() == [[1.0]] * 12


def test_targets_that_are_all_the_same_are_told():
    x, _ = three()
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    (note,) = Subject.of(model, (x, torch.ones(12, dtype=torch.int64))).notes
    assert note.startswith("All examples are of class 1: what is measured by comparing them (selectivity,")
    assert Subject.of(model, (x, torch.arange(12) % 2)).notes == ()
    (note,) = Subject.of(model, (x, torch.full((12, 3), 0.7) * torch.arange(1, 4)), task="numbers").notes
    assert note.startswith("All examples have the same target")


def test_changes_of_the_data_to_find_with_are_told():
    x, _ = three()
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    y = torch.arange(12) % 3
    (note,) = Subject.of(model, (x, y), find=(x.double(), y)).notes
    assert "float64 (n, 4) were made float32" in note


@pytest.mark.parametrize("sizes", [(10,), (3, 5, 2), (1,) * 10])
def test_an_example_of_a_half_is_named_by_its_place_in_the_data(sizes):
    x = torch.arange(10.0)[:, None].repeat(1, 4) + 1
    x[4], x[7] = -1, -1
    data = list(zip(x.split(sizes), (torch.arange(10) % 3).split(sizes), strict=True))
    found, confirm = find_and_confirm(batches(data))
    for half in (found, confirm):
        assert [float(row[0]) for one, _ in half for row in one] == x[half.places, 0].tolist()
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), Root()).eval().requires_grad_(False)
    for one, layer in ((model[0], 1.0), (model[2], 1.0)):
        one.weight.fill_(layer)
        one.bias.fill_(0.0)
    model[0].bias.fill_(5.0)
    whole = Subject.of(model, data, split=True)
    for subject, half in ((whole, confirm), (whole.finding(), found)):
        broken = [i for i in (4, 7) if i in half.places.tolist()]
        told = f"number{'s' * (len(broken) > 1)} {', '.join(map(str, broken))}"
        if broken:
            with pytest.raises(ValueError, match=rf"NaN or .inf for {len(broken)} of {half.n} examples .{told}\)"):
                subject.checked()
    assert confirm.places.tolist() != found.places.tolist()
    quarter, _ = find_and_confirm(confirm)
    assert set(quarter.places.tolist()) < set(confirm.places.tolist())


class Root(nn.Module):
    def forward(self, x):
        return (x - 10).sqrt()  # NaN where all inputs are -1


class Counter(nn.Module):
    """Its answers grow from call to call."""

    def __init__(self, step=1.0):
        super().__init__()
        self.first, self.last, self.step = nn.Linear(3, 4), nn.Linear(4, 2), step
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += self.step
        return self.last(self.first(x).relu()) * (1 + self.calls)


def test_a_state_that_changes_the_answers_is_told():
    model = build(Counter)
    with unchanged(model):
        subject = Subject.of(model, examples())
    (note,) = subject.notes
    assert note.startswith("Counter keeps something from one call to the next that changes what it says: every batch,")
    assert Subject.of(build(Counter, step=0.0), examples()).notes == ()
    x, y = examples()
    table = lesion_table(model, [(x[:3], y[:3]), (x[3:], y[3:])], None, "first", np.eye(4, dtype=bool))
    right = nn.functional.cross_entropy(2 * model.last(model.first(x).relu()), y, reduction="none")  # the first call
    np.testing.assert_allclose(table.intact["loss"], right.numpy(), rtol=1e-5)
    assert note in table.notes
