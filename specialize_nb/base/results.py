"""The base of all results: a frame, a picture, a verdict in words, and one file that keeps everything, without pickle.

A plain module, not a notebook: mechanism without a story. A result is a frozen dataclass; what `save` writes is its
fields, and `load` makes it again from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from specialize_nb.base.files import read_result, write_result

__all__ = ["Result", "freeze", "listed", "plain_setting", "read_only", "small_table", "with_notes"]

_ROWS = 12  # of the table in a notebook
_KIND = "Result"  # What a file says it holds; which one, its fields say


def read_only(
    array: Any,  # Numbers, of any shape
    dtype: type | None = float,  # What they become; None keeps their kind
) -> np.ndarray:
    """A copy of `array` that nobody can write to.

    Parameters
    ----------
    array : Any
        Numbers, of any shape
    dtype : type | None, default float
        What they become; None keeps their kind

    Returns
    -------
    np.ndarray
    """
    array = np.array(array, dtype=dtype)  # a copy: the caller's stays writeable
    array.setflags(write=False)
    return array


def freeze(
    content: Any,  # What a field holds; anything but arrays is left alone
) -> None:
    """Make the arrays in a field read-only: one, or those of a tuple or a mapping.

    Parameters
    ----------
    content : Any
        What a field holds; anything but arrays is left alone
    """
    if isinstance(content, np.ndarray):
        content.setflags(write=False)
    elif isinstance(content, Mapping | tuple | list):
        for one in content.values() if isinstance(content, Mapping) else content:
            freeze(one)


def plain_setting(
    setting: Any,  # What JSON does not know by itself
) -> Any:
    """NumPy's numbers and arrays as Python's.

    Parameters
    ----------
    setting : Any
        What JSON does not know by itself

    Returns
    -------
    Any

    Raises: `TypeError` for anything else.
    """
    if isinstance(setting, np.ndarray | np.generic):
        return setting.tolist()
    kind = type(setting).__name__
    raise TypeError(f"setting {setting!r} is a {kind}: give numbers, text, lists or dicts, as JSON has them")


def small_table(
    frame: pd.DataFrame,  # The most telling rows first
    rows: int = _ROWS,  # Shown at most
) -> str:
    """The first rows as HTML, numbers to three digits, and how many there are if these are not all.

    Parameters
    ----------
    frame : pd.DataFrame
        The most telling rows first
    rows : int, default _ROWS
        Shown at most

    Returns
    -------
    str
    """
    table = frame.head(rows).to_html(index=False, border=0, na_rep="–", float_format="{:.3g}".format)
    more = f"<p>{rows} of {len(frame)} rows; <code>to_frame()</code> has all.</p>" if len(frame) > rows else ""
    return table + more


def with_notes(
    headline: str,  # What was found, in words
    notes: Sequence[str],  # Sentences
) -> str:
    """A headline, and after it what was decided, approximated or left out on the way.

    Parameters
    ----------
    headline : str
        What was found, in words
    notes : Sequence[str]
        Sentences

    Returns
    -------
    str
    """
    return " ".join([headline if headline.endswith(".") else f"{headline}.", *notes]) if notes else headline


def listed(
    notes: Sequence[str],  # Sentences
) -> str:
    """Notes as a list in HTML; nothing if there are none.

    Parameters
    ----------
    notes : Sequence[str]
        Sentences

    Returns
    -------
    str
    """
    return f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in notes)}</ul>" if notes else ""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result(ABC):
    """What an analysis found.

    Attributes
    ----------
    notes : tuple[str, ...], default ()
        What was decided, approximated or left out on the way, a sentence each
    """

    notes: tuple[str, ...] = ()  # What was decided, approximated or left out on the way, a sentence each

    def __post_init__(self) -> None:
        for one in fields(self):
            freeze(getattr(self, one.name))

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """The numbers, tidy: identifiers as column names, nothing rounded."""

    @abstractmethod
    def plot(
        self,
        ax: Any = None,  # Axes to draw on; None makes new ones
    ) -> Any:  # The axes
        """The result as a picture. Returns the axes.

        Parameters
        ----------
        ax : Any, default None
            Axes to draw on; None makes new ones

        Returns
        -------
        Any
            The axes
        """

    @property
    @abstractmethod
    def headline(self) -> str:
        """What was found, in one line of words."""

    @property
    def verdict(self) -> str:
        """What was found, and the notes: what was decided, approximated or left out on the way."""
        return with_notes(self.headline, self.notes)

    def save(
        self,
        path: str | Path,  # The file to write, such as 'audit.npz'; one that is there is replaced
    ) -> Path:
        """Keep everything in one file. Returns its path.

        Parameters
        ----------
        path : str | Path
            The file to write, such as 'audit.npz'; one that is there is replaced

        Returns
        -------
        Path
        """
        arrays: dict[str, np.ndarray] = {}
        fields_kept = _packed_fields(self, "", arrays)
        return write_result(path, _KIND, arrays, {"result": type(self).__name__, "fields": fields_kept})

    @classmethod
    def load(
        cls,
        path: str | Path,  # A file that `save` wrote
    ):
        """What `save` kept.

        Parameters
        ----------
        path : str | Path
            A file that `save` wrote

        Raises: `FileNotFoundError`; `ValueError` if the file holds something else.
        """
        arrays, kept = read_result(path, _KIND, oldest=2)
        kind = cls if kept["result"] == cls.__name__ else _class_of(kept["result"])
        if not issubclass(kind, cls):
            raise ValueError(f"{str(path)!r} holds a {kind.__name__}, not a {cls.__name__}")
        return _made(kind, kept["fields"], arrays)

    def shown(self) -> pd.DataFrame:
        """The rows that a notebook shows, the most telling first."""
        return self.to_frame()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.verdict})"

    def _repr_html_(self) -> str:
        told = f"<p><b>{type(self).__name__}</b>: {escape(self.headline)}</p>{listed(self.notes)}"
        return told + small_table(self.shown())


# On disk: JSON, and arrays beside it. What JSON does not have is an object that says its kind, such as
# {"array": place}, {"tuple": [...]}, {"mapping": [[key, value], ...]}, {"frame": [[column, place], ...]},
# {"result": class, "fields": {...}}.


def _packed_fields(result: Result, place: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    names = [one.name for one in fields(result) if one.init]
    return {name: _packed(getattr(result, name), f"{place}{name}", arrays) for name in names}


def _packed(content: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    """`content` as JSON has it; arrays go to `arrays`, by the place they have in the result."""
    if content is None or isinstance(content, bool | int | float | str):
        return content
    if isinstance(content, np.generic):
        return content.item()
    if isinstance(content, np.ndarray):
        arrays[place] = content
        return {"array": place}
    if isinstance(content, Tensor):
        plain, half = content.detach().cpu(), content.dtype == torch.bfloat16  # which NumPy does not have
        arrays[place] = (plain.view(torch.int16) if half else plain).numpy()
        return {"tensor": place, "bfloat16": half}
    if isinstance(content, pd.DataFrame):
        columns = [[str(name), f"{place}/{i}"] for i, name in enumerate(content)]
        arrays |= {at: _column(content.iloc[:, i]) for i, (_, at) in enumerate(columns)}
        return {"frame": columns}
    if isinstance(content, Mapping):
        pairs = enumerate(content.items())
        return {
            "mapping": [
                [_packed(key, f"{place}/{i}", arrays), _packed(one, f"{place}/{i}", arrays)] for i, (key, one) in pairs
            ]
        }
    if isinstance(content, tuple | list):
        parts = [_packed(one, f"{place}/{i}", arrays) for i, one in enumerate(content)]
        return {"tuple" if isinstance(content, tuple) else "list": parts}
    if isinstance(content, Result):
        return {"result": type(content).__name__, "fields": _packed_fields(content, f"{place}/", arrays)}
    raise TypeError(
        f"{place} is a {type(content).__name__}, which cannot be kept: use numbers, text, arrays and frames"
    )


def _column(column: pd.Series) -> np.ndarray:
    return column.to_numpy() if column.dtype.kind in "bif" else column.to_numpy(dtype=str)


def _unpacked(content: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(content, dict):
        return content
    (kind, inside), *_ = content.items()
    if kind == "array":
        return arrays[inside]
    if kind == "tensor":
        plain = torch.from_numpy(arrays[inside].copy())
        return plain.view(torch.bfloat16) if content["bfloat16"] else plain
    if kind == "frame":
        return pd.DataFrame({name: arrays[at] for name, at in inside})
    if kind == "mapping":
        return {_unpacked(key, arrays): _unpacked(one, arrays) for key, one in inside}
    if kind == "result":
        return _made(_class_of(inside), content["fields"], arrays)
    parts = [_unpacked(one, arrays) for one in inside]
    return tuple(parts) if kind == "tuple" else parts


def _made(cls: type, kept: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Any:
    return cls(**{name: _unpacked(content, arrays) for name, content in kept.items()})


def _class_of(name: str) -> type:
    """The kind of result of that name, among those that are loaded."""
    kinds: list[type] = [Result]
    for kind in kinds:
        if kind.__name__ == name:
            return kind
        kinds += kind.__subclasses__()
    raise ValueError(f"the file holds a {name}, which this version does not know")
