"""The base of all results: what is kept comes back as it was, frozen, and shown in one way."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from specialize_nb.base.files import write_result
from specialize_nb.base.results import Result, freeze, plain_setting, read_only, small_table


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Part(Result):
    numbers: np.ndarray
    name: str = "part"

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame({"number": self.numbers})

    def plot(self, ax: Any = None) -> Any:
        return ax

    @property
    def headline(self) -> str:
        return f"{len(self.numbers)} numbers < 9"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Whole(Part):
    frame: pd.DataFrame
    parts: tuple[Part, ...]
    blocks: dict[tuple[str, str], torch.Tensor]
    by_name: dict[str, np.ndarray]
    settings: dict[str, Any] = field(default_factory=dict)
    made: int = field(default=0, init=False)


def whole() -> Whole:
    rng = np.random.default_rng(0)
    return Whole(
        numbers=rng.normal(size=30),
        frame=pd.DataFrame({"layer": ["a", "b"], "cluster": [1, 2], "p": [0.5, np.nan], "on": [True, False]}),
        parts=(Part(numbers=np.arange(3.0)), Part(numbers=np.zeros(0), name="empty")),
        blocks={("a", "b"): torch.randn(2, 3, dtype=torch.float64), ("b", "b"): torch.ones(2, dtype=torch.bfloat16)},
        by_name={"x/y": rng.normal(size=(2, 2)), "": np.array([1, 2])},
        settings={"k": 3, "shape": (2, (1,)), "rates": [0.1, None], "deep": {"n": np.int64(4), "inf": float("inf")}},
    )


def test_what_is_kept_comes_back_as_it_was(tmp_path):
    kept = whole()
    again = Whole.load(kept.save(tmp_path / "whole.npz"))
    np.testing.assert_array_equal(again.numbers, kept.numbers)
    pd.testing.assert_frame_equal(again.frame, kept.frame)
    assert [type(one) for one in again.parts] == [Part, Part] and again.parts[1].name == "empty"
    np.testing.assert_array_equal(again.parts[0].numbers, kept.parts[0].numbers)
    assert list(again.blocks) == list(kept.blocks)
    for key, block in kept.blocks.items():
        assert again.blocks[key].dtype == block.dtype and torch.equal(again.blocks[key], block)
    assert list(again.by_name) == ["x/y", ""] and again.by_name[""].dtype == np.int64
    np.testing.assert_array_equal(again.by_name["x/y"], kept.by_name["x/y"])
    assert again.settings == {**kept.settings, "deep": {"n": 4, "inf": float("inf")}}
    assert isinstance(again.settings["shape"], tuple) and isinstance(again.settings["rates"], list)
    assert repr(again) == repr(kept) == "Whole(30 numbers < 9)"


def test_arrays_are_frozen_wherever_they_lie():
    kept = whole()
    for array in (kept.numbers, kept.by_name["x/y"], kept.parts[0].numbers):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    mine = np.zeros(2)
    copy = read_only(mine)
    mine[0] = 1
    assert copy[0] == 0 and not copy.flags.writeable
    freeze([{"a": (mine,)}])
    assert not mine.flags.writeable


def test_another_class_an_old_format_and_what_cannot_be_kept(tmp_path):
    path = Part(numbers=np.ones(2)).save(tmp_path / "part.npz")
    with pytest.raises(ValueError, match="holds a Part, not a Whole"):
        Whole.load(path)
    assert type(Part.load(whole().save(tmp_path / "whole.npz"))) is Whole  # a whole is a part, too
    write_result(tmp_path / "odd.npz", "Result", {}, {"result": "Nobody", "fields": {}})
    with pytest.raises(ValueError, match="holds a Nobody, which this version does not know"):
        Part.load(tmp_path / "odd.npz")
    with pytest.raises(TypeError, match="name is a object, which cannot be kept"):
        Part(numbers=np.ones(2), name=object()).save(tmp_path / "no.npz")
    assert not (tmp_path / "no.npz").exists()
    with pytest.raises(FileNotFoundError):
        Part.load(tmp_path / "none.npz")


def test_an_older_format_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("specialize_nb.base.files._FORMAT", 1)
    path = Part(numbers=np.ones(2)).save(tmp_path / "old.npz")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 1, which this version no longer reads: compute it again"):
        Part.load(path)


def test_a_notebook_shows_the_verdict_and_the_first_rows():
    shown = whole()._repr_html_()
    assert "<b>Whole</b>: 30 numbers &lt; 9" in shown and shown.count("<tr") == 13 and "12 of 30 rows" in shown
    assert "rows;" not in small_table(pd.DataFrame({"a": [1, 2]}))


def test_every_part_of_the_contract_has_to_be_there():
    class Unfinished(Result):
        def to_frame(self):
            return pd.DataFrame()

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()
    assert plain_setting(np.float32(0.5)) == 0.5 and plain_setting(np.arange(2)) == [0, 1]
    with pytest.raises(TypeError, match="is a set: give numbers"):
        plain_setting({1})
