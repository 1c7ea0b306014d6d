"""What targets say: every form is read as what it is, or refused with what to say."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from specialize_nb.base.data import batches
from specialize_nb.base.targets import TASKS, check_said, class_names, encoded, raw_targets, task_of
from specialize_nb.base.tasks import check_labels

CLASSES, TABLE = [2, 0, 1, 1], [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("given", "task", "others"),
    [
        (None, "none", ()),
        (CLASSES, "classes", ("numbers",)),
        ([1, 0, 1, 1], "classes", ("labels",)),
        ([True, False, True, True], "classes", ("labels",)),
        (np.array(CLASSES, dtype=np.uint8), "classes", ("numbers",)),
        (torch.tensor(CLASSES), "classes", ("numbers",)),
        (pd.Series(CLASSES, dtype="Int64"), "classes", ("numbers",)),
        (["b", "a", "b", "b"], "classes", ("labels",)),
        (["b", "a", "c", "b"], "classes", ()),
        (np.array([b"b", b"a", b"c", b"b"]), "classes", ()),
        (pd.Series(["b", "a", "c", "b"], dtype="category"), "classes", ()),
        ([0.5, 1.0, 2.0, 3.0], "numbers", ()),
        ([-1.0, 1.0, 1.0, 1.0], "numbers", ()),
        (torch.tensor([2.0, 0, 1, 1]), "numbers", ("classes",)),
        (torch.tensor([1.0, 0, 1, 1]), "numbers", ("labels", "classes")),
        (torch.tensor([1.0, 0, 1, 1], dtype=torch.bfloat16), "numbers", ("labels", "classes")),
        (torch.rand(4, 2, dtype=torch.float16) + 1, "numbers", ()),
        (torch.rand(4, 2, 3), "numbers", ()),
        (TABLE, "labels", ("dense",)),
        ([torch.tensor(row) for row in TABLE], "labels", ("dense",)),
        (pd.DataFrame(TABLE).astype(float), "labels", ()),
        (np.array(TABLE, dtype=bool), "labels", ("dense",)),
        ([[3, 1], [0, 2], [1, 1], [2, 2]], "dense", ("numbers",)),
        (torch.tensor(CLASSES)[:, None, None].expand(4, 3, 3), "dense", ("numbers",)),
        ([[3, -100], [-100, 2], [1, 0], [0, 1]], "dense", ()),
        ([[3, -2], [0, 2], [1, 0], [0, 1]], "numbers", ()),
        ([[2**40, 1], [0, 2], [1, 0], [0, 1]], "numbers", ()),
        (np.eye(4), "classes", ()),
    ],
)
def test_the_task_of_every_form(given, task, others):
    raw = raw_targets(given, 4, "batch 0")
    found = task_of(raw)
    assert (found.task, found.others) == (task, others) and len(raw) == 4
    names = class_names(raw)
    made = encoded(raw, task, names)
    assert made.dtype == (np.int64 if task in ("classes", "dense") else np.float64)
    assert np.array_equal(encoded(made, task, names), made)  # what was read already stays as it is
    assert check_said(raw, task) == (found.told if names or task == "dense" else "")


def test_what_is_decided_is_told():
    words = raw_targets(["no", "yes", "no"], 3, "")
    assert task_of(words).told == (
        "The targets are the words 'no', 'yes', taken as classes in alphabetical order: class 0 is 'no', class 1 is 'yes'."
    )
    many = raw_targets([f"word {i}" for i in range(10)], 10, "")
    assert "are 10 words" in task_of(many).told
    assert "say task='labels' if not" in task_of(np.eye(3)).told
    assert task_of(np.array([0, 3, 1])).told == task_of(np.array([[0.2, 3], [1, 1]])).told == ""
    for soft in (np.array([0.05, 0.95]), np.array([[0.1, 0.8], [0.9, 0.9]])):
        assert (
            task_of(soft).task == "numbers" and "taken as numbers to predict: labels are 0 or 1" in task_of(soft).told
        )
    assert "largest share" in check_said(np.array([[0.2, 0.8], [0.7, 0.3]]), "classes")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            [[0.25, 0.75], [0.5, 0.5]],
            r"float64 of shape \(2, 2\): rows that sum to 1.*task='classes' takes the largest",
        ),
        (np.zeros((2, 3, 3)), "zeros and ones an example.*task='dense' takes them as a class at each position"),
        ([[3, 1], [-100, -100]], "every target of example 1 is -100, so that no position counts: leave"),
        ([0.5, float("nan")], r"NaN or infinite targets in example 1, 1 of 2 examples: expected finite numbers"),
        (pd.Series([1, None], dtype="Int64"), "NaN or infinite targets in example 1"),
        ([[1.0, float("inf")], [1.5, 0]], "NaN or infinite targets in example 0, 1 of 2"),
        ([0, -1], "example 1 has the label -1; class indices start at 0.*task='numbers'"),
        ([0, -100], "example 1 has the label -100; .*; examples to be ignored have to be left out"),
        ([["a", "b"], ["b", "c"]], "of words; one word an example"),
    ],
)
def test_what_cannot_be_told_is_refused(given, match):
    with pytest.raises(ValueError, match=match):
        task_of(raw_targets(given, 2, "batch 3"))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ([[1], [1, 2]], ValueError, "batch 3 has targets that are not equally long"),
        (["a", None], ValueError, "batch 3 has examples without a target: example 1; leave them out, or give"),
        (["a", float("nan")], ValueError, "without a target: example 1"),
        (["a", 3], TypeError, "some are words and some are numbers"),
        ([1 + 2j, 3], TypeError, "targets of type complex128"),
        (np.array(["2020", "2021"], dtype="datetime64[Y]"), TypeError, "targets of type datetime64"),
        ([{"a": 1}, {"a": 2}], TypeError, "batch 3 has targets of type dict"),
        (5, ValueError, "batch 3 has one target, 5, not one for each of 2 examples.*DataLoader"),
        ("cat", ValueError, "batch 3 has one target, 'cat'"),
    ],
)
def test_what_is_no_target_is_refused(given, error, match):
    with pytest.raises(error, match=match):
        raw_targets(given, 2, "batch 3")


@pytest.mark.parametrize(
    ("given", "task", "found"),
    [
        ([[0.25, 0.75], [0.6, 0.4]], "classes", [1, 0]),
        ([2.0, 3.0], "classes", [2, 3]),
        ([[2], [3]], "classes", [2, 3]),
        ([[0.25, 0.75], [0.6, 0.4]], "numbers", [[0.25, 0.75], [0.6, 0.4]]),
        ([3, 1], "numbers", [3, 1]),
        ([[3, 1], [0, -2]], "numbers", [[3, 1], [0, -2]]),
        (["yes", "no"], "labels", [[1], [0]]),
        ([1, 0], "labels", [[1], [0]]),
        (np.eye(2), "labels", [[1, 0], [0, 1]]),
        (np.ones((2, 2, 2)), "labels", [[1] * 4] * 2),
        ([3, 1], "none", [[], []]),
        ([[3.0, 1.0], [0.0, -100.0]], "dense", [[3, 1], [0, -100]]),
        ([[3], [0]], "dense", [[3], [0]]),
    ],
)
def test_what_is_said_is_believed(given, task, found):
    raw = raw_targets(given, 2, "")
    check_said(raw, task)
    assert encoded(raw, task, class_names(raw)).tolist() == found


@pytest.mark.parametrize(
    ("given", "task", "match"),
    [
        ([0.5, 1.0], "classes", "example 0 has the target 0.5; classes are whole numbers from 0 on"),
        ([[1.5, 0.5], [1, 2]], "classes", r"float64 of shape \(2, 2\); classes are \(n,\) whole numbers"),
        ([0, 2], "labels", "labels are 0 or 1, and example 1 have others: say which with task='classes'"),
        (["a", "b"], "numbers", "the targets are words, not numbers"),
        (None, "classes", r"task='classes' needs targets, and there are none: give \(x, y\)"),
        ([1, 0], "class", "task='class': allowed are"),
    ],
)
def test_what_is_said_is_checked(given, task, match):
    with pytest.raises(ValueError, match=match):
        check_said(raw_targets(given, 2, ""), task)


def test_three_words_are_no_labels():
    with pytest.raises(ValueError, match="the targets are 3 words; labels are 0 or 1, or one of two words"):
        check_said(raw_targets(["a", "b", "c"], 3, ""), "labels")
    assert TASKS == ("classes", "dense", "labels", "numbers", "none")


def test_numerals_are_numbers():
    """As words, '10' would come before '9'."""
    for given in (["9", "10", "9"], np.array([b"9", b"10", b"9"]), np.array(["9", "10", "9"], dtype=object)):
        assert raw_targets(given, 3, "").tolist() == [9, 10, 9]
    assert raw_targets(["9", "ten", "9"], 3, "").tolist() == ["9", "ten", "9"]


def test_words_of_some_of_the_classes_are_refused():
    data = batches((np.ones((4, 2)), ["b", "c", "b", "c"]))
    check_labels(data, 2)
    with pytest.raises(ValueError, match="hold 2 words, and the model scores 3 classes"):
        check_labels(data, 3)


def test_rare_types_are_read_or_refused():
    for given, right in (
        (np.array([0.5, 2], dtype=np.longdouble), [0.5, 2]),
        (torch.tensor([0.5, 2]).to(torch.float8_e4m3fn), [0.5, 2]),
        (torch.tensor([0.5, 2], dtype=torch.bfloat16), [0.5, 2]),
        (np.array([0.5, 2], dtype=object), [0.5, 2]),
        ([Decimal("0.5"), 2], [0.5, 2]),
        ([Fraction(1, 2), 2], [0.5, 2]),
        (torch.tensor([3, 2]).to_sparse(), [3, 2]),
        (np.array(["b", "a"], dtype=np.dtypes.StringDType()), ["b", "a"]),
        (pd.Categorical(["b", "a"]), ["b", "a"]),
        (range(2), [0, 1]),
        (["9" * 30, "8"], ["9" * 30, "8"]),
    ):
        found = raw_targets(given, 2, "batch 3")
        assert found.tolist() == right and found.dtype.kind in "iufU"
    for given, match in (
        (torch.empty(2, device="meta"), "in a tensor of type float32 on meta, which cannot be read"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(1)], layout=torch.jagged), "targets in a nested tensor"),
        (csr_matrix(np.eye(2)), "targets in a sparse csr_matrix: give them dense"),
        ({1, 2}, "targets of type set"),
        ((i for i in range(2)), "targets of type generator"),
    ):
        with pytest.raises(TypeError, match=f"batch 3 has .*{match}"):
            raw_targets(given, 2, "batch 3")
    with pytest.raises(ValueError, match="batch 3 has examples without a target: example 1"):
        raw_targets(np.array(["a", np.nan], dtype=np.dtypes.StringDType(na_object=np.nan)), 2, "batch 3")
    for huge in (np.array([1, np.longdouble("1e4000")]), np.array([1, 10**400], dtype=object)):
        with pytest.raises(ValueError, match="NaN or infinite targets in example 1, 1 of 2"):
            task_of(raw_targets(huge, 2, ""))


def test_whole_numbers_that_are_no_classes():
    below = raw_targets([3, -1, -2], 3, "")
    assert task_of(below)[:2] == ("numbers", ()) and "some of them below 0" in task_of(below).told
    assert encoded(below, "numbers").tolist() == [3, -1, -2]
    huge = np.array([0, 2**63 + 2**20], dtype=np.uint64)
    assert task_of(huge)[:2] == ("numbers", ()) and "too large for classes" in task_of(huge).told
    assert encoded(huge, "numbers").tolist() == [0, 2.0**63 + 2**20]
    for given in (huge, np.array([0, 1e200])):
        with pytest.raises(ValueError, match=r"example 1 has the label .*, too large for a class"):
            check_said(given, "classes")


def test_labels_that_are_counted_otherwise_are_told():
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"the label 3, but the model scores 3 classes .*counted from 1, give y - 1"):
        check_labels(batches((x, torch.arange(6) % 3 + 1)), 3)
    with pytest.raises(ValueError, match="the label 3, but the model scores 3 classes") as error:
        check_labels(batches((x, torch.arange(6) % 4)), 3)
    assert "y - 1" not in str(error.value)
    with pytest.raises(ValueError, match=r"the label -1; .*if -1 and 1 are two classes give \(y > 0\), if the targets"):
        batches((x, torch.arange(6) % 2 * 2 - 1))
    with pytest.raises(ValueError, match="the label -1; class indices start at 0; if the targets are numbers"):
        batches((x, torch.arange(6) % 3 - 1))
    dense = torch.arange(18).view(6, 3) % 2
    dense[:, 1] = 255
    with pytest.raises(
        ValueError, match=r"class 255 at position 1, .*if 255 marks positions that do not count, give -100"
    ):
        check_labels(batches((x, dense)), 2)
    dense[0, 0] = 7
    with pytest.raises(ValueError, match=r"class 7 at position 0, but the model scores 2 .0 to 1.: fix") as error:
        check_labels(batches((x, dense)), 2)
    assert "marks" not in str(error.value)
