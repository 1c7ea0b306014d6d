"""Words for messages: names that are close, what is allowed, numbers with their noun."""

import pytest

from specialize_nb.base.words import check_choice, counted, near, suggest


def test_close_names_come_closest_first():
    names = ["layer4.0", "layer4", "layer4.1", "fc"]
    assert near("layer4.0.conv", names) == ["layer4.0", "layer4.1", "layer4"]
    assert near("layer4.0.conv", names, most=1) == ["layer4.0"]
    assert near("zzz", names) == near(3, names) == []


def test_a_suggestion_ends_the_message():
    names = ["conv1", "conv2", "head", "fc"]
    assert suggest("conv", names) == "did you mean 'conv2' or 'conv1'?"
    assert suggest("zzz", names) == "its 4 layers start ['conv1', 'conv2', 'head']"
    assert suggest("zzz", ["a"], "outcome") == "its 1 outcome is ['a']"
    assert suggest("zzz", []) == "it has no layer" and suggest("zzz", [], "unit") == "it has no unit"


def test_a_choice_is_one_of_those_allowed():
    check_choice("split", "test", ("train", "test"))
    with pytest.raises(ValueError, match=r"^got split='tests': allowed are 'train', 'test'; did you mean 'test'\?$"):
        check_choice("split", "tests", ("train", "test"))
    with pytest.raises(ValueError, match=r"^got split=3: allowed are 'train', 'test'$"):
        check_choice("split", 3, iter(["train", "test"]))


def test_numbers_come_with_their_noun():
    assert [counted(n, "unit") for n in (0, 1, 2, 1024)] == ["0 units", "1 unit", "2 units", "1,024 units"]
