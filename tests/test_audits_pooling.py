"""Several tasks as one data set: what is one, what is pooled, and which example is of which task."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from specialize_nb.audits.pooling import is_mapping_of_tasks, pooled, tasks_of
from specialize_nb.base.data import batches, digits
from specialize_nb.base.text import next_token
from specialize_nb.network.subject import Subject
from specialize_nb.training.models import mlp


def pair(n=6, start=0, width=3):
    "Inputs that say which they are, and classes in turn."
    x = torch.arange(start, start + n, dtype=torch.float32)[:, None].repeat(1, width)
    return x, torch.arange(n) % 2


def test_tasks_are_told_from_the_entries_of_a_batch():
    x, y = pair()
    loader = DataLoader(TensorDataset(x, y), batch_size=2)
    some = [
        (x, y),
        [(x, y)],
        loader,
        TensorDataset(x, y),
        batches((x, y)),
        {"input_ids": x, "labels": y},
        digits("test"),
    ]
    some += [next_token([[1, 2, 3]] * 4), [{"input_ids": x, "labels": y}]]
    for one in some:
        assert is_mapping_of_tasks({"a": one, "b": (x, y)}), type(one)
    fields = [x, y, x.numpy(), pd.Series(y.numpy()), None, [1, 2, 3], [[1, 2], [3, 4]], [x[0], x[1]], "words", (1, 2)]
    for one in fields:
        assert not is_mapping_of_tasks({"input_ids": x, "mask": one}), type(one)
        assert not is_mapping_of_tasks({"mask": one}), type(one)
    assert (
        not is_mapping_of_tasks({}) and not is_mapping_of_tasks((x, y)) and not is_mapping_of_tasks({"labels": (x, y)})
    )


def test_one_task_is_left_as_it_is():
    data, find = pair(), pair()
    one = pooled(data, find)
    assert one.data is data and one.find is find and one.labels is None and one.shapes == {}
    assert pooled(data).find is None and tasks_of(one.labels, None, 6) is None


@pytest.mark.parametrize("loaded", [False, True])
def test_examples_of_all_tasks_one_after_the_other(loaded):
    parts = {"a": pair(9), "b": pair(8, 100)}
    if loaded:
        parts = {name: DataLoader(TensorDataset(*one), batch_size=4) for name, one in parts.items()}
    whole = pooled(parts, find={"a": pair(4, 7), "c": pair(4, 70)})
    assert isinstance(whole.data, list) == (not loaded) and whole.shapes == {"a": ((3,),), "b": ((3,),)}
    for _ in range(2):  # read as often as needed
        values = torch.cat([x[:, 0] for x, _ in batches(whole.data)]).tolist()
        assert values == [*range(9), *range(100, 108)] and whole.labels.tolist() == ["a"] * 9 + ["b"] * 8
    assert torch.cat([x[:, 0] for x, _ in batches(whole.find)]).tolist() == [7, 8, 9, 10, 70, 71, 72, 73]


@pytest.mark.parametrize("split", [False, True])
def test_each_example_that_judges_keeps_its_task(split):
    parts = {"low": pair(9), "high": pair(8, 100)}
    whole = pooled(parts)
    subject = Subject.of(mlp((3, 4, 2)), whole.data, split=split)
    found = tasks_of(whole.labels, subject.data.places, 17)
    values = torch.cat([x[:, 0] for x, _ in subject.data])
    assert len(found) == subject.data.n == (9 if split else 17)
    assert [("low", "high")[value >= 100] for value in values.tolist()] == found.tolist()


def test_labels_that_split_one_data_set():
    one = pooled(pair(), by=["x", None, "y", "y", float("nan"), "x"])
    assert one.labels.tolist() == ["x", None, "y", "y", None, "x"]
    assert pooled(pair(), by=np.array([3, -100, 4, 4, 3, 3])).labels.tolist() == [3, None, 4, 4, 3, 3]
    assert pooled(pair(), by=pd.Series(list("aabbab"))).labels.tolist() == list("aabbab")
    labels = pooled(pair(20), by=np.arange(20) % 2).labels
    assert tasks_of(labels, np.arange(8), 20).tolist() == [0, 1] * 4
    with pytest.raises(
        ValueError, match=r"task '1' has 0 examples to be judged on: give 4 or more, twice as many where"
    ):
        tasks_of(labels, np.arange(0, 20, 2), 20)


def test_words_are_classes_of_all_tasks():
    x, _ = pair(8)
    whole = pooled({"a": (x, list("catt" * 2)), "b": (x, list("bird" * 2))})
    assert batches(whole.data).names == tuple("abcdirt")


def test_sequences_of_several_lengths_are_counted():
    ids = [torch.randint(9, (3, 5)), torch.randint(9, (2, 7))]
    uneven = [({"input_ids": one, "attention_mask": torch.ones_like(one)}, one) for one in ids]
    whole = pooled({"a": uneven, "b": [uneven[0], uneven[0]]})
    assert whole.labels.tolist() == ["a"] * 5 + ["b"] * 6 and whole.shapes == {"a": ((5,), (7,)), "b": ((5,), (5,))}


def test_mistakes():
    data, by = pair(), ["a"] * 3 + ["b"] * 3
    cases = {
        r"`data` names 1 task, \['a'\]: name two or more": dict(data={"a": data}),
        r"`data` names tasks, \['a', 'b'\], and `by` names others": dict(data={"a": data, "b": data}, by=by),
        "task 'b': the data gave no examples": dict(data={"a": data, "b": [(data[0][:0], data[1][:0])]}),
        r"different kinds, {'a': 'classes', 'b': 'numbers'}, and .*say with `task=`.* `dissociation`": dict(
            data={"a": data, "b": (data[0], torch.randn(6))}
        ),
        r"got `by` of shape \(6, 2\): give one label an example": dict(data=data, by=np.zeros((6, 2))),
    }
    for match, given in cases.items():
        with pytest.raises(ValueError, match=match):
            pooled(**given)
    with pytest.raises(TypeError, match="task 'b': got data of type"):
        pooled({"a": data, "b": type("Own", (), {"__getitem__": lambda self, i: 1})()})
    with pytest.raises(ValueError, match="task 'b': got a generator, which can be read only once"):
        pooled({"a": data, "b": (one for one in [data])})
    for labels, match in (
        (pooled(data, by=by[:4]).labels, r"got `by` of shape \(4,\) for 6 examples: give one label an example"),
        (pooled(data, by=["a"] * 6).labels, r"`by` has 1 task, \['a'\]: give two or more"),
        (pooled(data, by=by).labels, "task 'a' has 3 examples to be judged on: give 4 or more"),
    ):
        with pytest.raises(ValueError, match=match):
            tasks_of(labels, None, 6)
