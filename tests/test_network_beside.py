"""Labels beside the target: the forms they come in, and those that are refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from specialize_nb.network.beside import labels_beside
from specialize_nb.network.subject import Subject

MODEL = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5)).eval().requires_grad_(False)
IDS = torch.arange(12).view(4, 3) % 5
SUBJECT = Subject.of(MODEL, (IDS, IDS))


@pytest.mark.parametrize(
    ("by", "names", "codes"),
    [
        (["b", "a", None, "b"], ("a", "b"), [1, 0, -100, 1]),
        (np.array(["b", "a", "a", "b"]), ("a", "b"), [1, 0, 0, 1]),
        (torch.tensor([7, 3, -100, 7]), ("3", "7"), [1, 0, -100, 1]),
        (pd.Series([7, 3, None, 7]), ("3", "7"), [1, 0, -100, 1]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
        ([3, "x", 3, "x"], ("3", "x"), [0, 1, 0, 1]),
        ([[1, 2, None], [2, -100, 1], [1, 1, 1], [2, 2, 2]], ("1", "2"), None),
    ],
    ids=["words", "array", "tensor", "series", "bool", "mixed", "positions"],
)
def test_forms(by, names, codes):
    found = labels_beside(SUBJECT, by)
    assert found.names == names
    assert_array_equal(found.codes, [[0, 1, -100], [1, -100, 0], [0, 0, 0], [1, 1, 1]] if codes is None else codes)
    assert found.at_positions == (codes is None)
    none = int((found.codes == -100).sum())
    what, of = ("position", 12) if codes is None else ("example", 4)
    told = f"{none} {what}{'s' * (none != 1)} of {of} with no label in `by` took no part in it."
    assert found.note == (told if none else "")


@pytest.mark.parametrize(
    ("by", "error", "match"),
    [
        ([1, 2, 3], ValueError, r"shape \(3,\) for 4 examples: give one label an example, \(4,\), or one a position, "),
        (np.zeros((4, 2), int), ValueError, r"shape \(4, 2\) for 4 examples"),
        ([0.5, 1, 2, 1], ValueError, "`by` holds float: give words or whole numbers"),
        ([1, 1, 1, None], ValueError, r"`by` has 1 label, \['1'\]"),
        ([None] * 4, ValueError, r"`by` has 0 labels, \[\]"),
        ([1, "1", 2, 2], ValueError, "words and some numbers that read the same"),
        ([[1], [1, 2], [1], [1]], ValueError, "rows of different lengths: fill them up with None"),
        ("code", TypeError, "`by` is a str"),
        (len, TypeError, "`by` is a builtin_function_or_method"),
    ],
)
def test_refused(by, error, match):
    with pytest.raises(error, match=match):
        labels_beside(SUBJECT, by)


def test_one_label_an_example_where_there_are_no_positions():
    plain = Subject.of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), (torch.rand(4, 3), None))
    with pytest.raises(ValueError, match=r"give one label an example, \(4,\)$"):
        labels_beside(plain, np.zeros((4, 3), int))
