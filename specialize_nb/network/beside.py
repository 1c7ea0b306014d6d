"""Labels beside the target: what an example, or each of its positions, belongs to besides what is to be predicted.

A plain module, not a notebook: mechanism without a story. A sentence has a domain, a word a part of speech, a pixel an
object. `labels_beside` reads such labels, words or whole numbers, one an example or one a position, and says clearly
when they do not fit the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from specialize_nb.base.targets import IGNORED
from specialize_nb.base.words import counted
from specialize_nb.network.subject import Subject
from specialize_nb.network.tokens import positions_of

__all__ = ["Beside", "labels_beside"]


@dataclass(frozen=True, eq=False)
class Beside:
    """Labels beside the target.

    Attributes
    ----------
    codes : np.ndarray
        (n,) or (n, positions...) int64: which of `names`; -100 where there is none. Read-only
    names : tuple[str, ...]
        Of the labels, two or more
    note : str, default ''
        What was left out, a sentence
    """

    codes: np.ndarray  # (n,) or (n, positions...) int64: which of `names`; -100 where there is none. Read-only
    names: tuple[str, ...]  # Of the labels, two or more
    note: str = ""  # What was left out, a sentence

    @property
    def at_positions(self) -> bool:
        """Does each position have a label of its own?"""
        return self.codes.ndim > 1

    @property
    def told(self) -> dict[str, Any]:
        """What settings say of them, as JSON has it."""
        at = "positions" if self.at_positions else "examples"
        return dict(at=at, labels=list(self.names[:_MOST_TOLD]), n_labels=len(self.names))


_MOST_TOLD = 50  # names in settings


def labels_beside(
    subject: Subject,  # Whose examples
    by: Any,  # (n,) or (n, positions...) words or whole numbers; None, NaN and -100 stand for no label
) -> Beside:
    """Which label does each example, or each of its positions, have beside its target?

    Parameters
    ----------
    subject : Subject
        Whose examples
    by : Any
        (n,) or (n, positions...) words or whole numbers; None, NaN and -100 stand for no label

    Returns
    -------
    Beside

    Raises: `ValueError` for labels of another shape, floating numbers, or fewer than two different labels.
    """
    given = _table(by)
    _check_shape(given.shape, subject)
    missing = pd.isna(given)
    if given.dtype.kind in "iuf":
        missing = missing | (given == IGNORED)
    elif given.dtype.kind == "O":
        missing = missing | np.array([one == IGNORED for one in given.ravel().tolist()]).reshape(given.shape)
    numbers, names = _numbered(given[~missing])
    if len(names) < 2:
        told = f"`by` has {counted(len(names), 'label')}, {names}"
        raise ValueError(f"{told}: a label that tells examples apart has two or more different values")
    codes = np.full(given.shape, IGNORED, dtype=np.int64)
    codes[~missing] = numbers
    codes.setflags(write=False)
    what = "position" if given.ndim > 1 else "example"
    note = f"{counted(int(missing.sum()), what)} of {missing.size:,} with no label in `by` took no part in it."
    return Beside(codes, tuple(names), note if missing.any() else "")


def _table(by: Any) -> np.ndarray:
    if isinstance(by, Tensor):
        return by.detach().cpu().numpy()
    if isinstance(by, str | bytes) or not hasattr(by, "__len__"):
        raise TypeError(f"`by` is a {type(by).__name__}: give a label for each example, or for each position")
    if hasattr(by, "to_numpy"):
        return by.to_numpy()
    if hasattr(by, "dtype"):
        return np.asarray(by)
    try:
        return np.array(_kept_apart(by), dtype=object)
    except ValueError as error:
        raise ValueError("`by` holds rows of different lengths: fill them up with None to one length") from error


def _kept_apart(by: Any) -> list[Any]:
    """Lists of lists; of rows that are not as long as each other NumPy would make an array of lists."""
    rows = [one.tolist() if hasattr(one, "tolist") else one for one in by]
    lengths = {len(one) if isinstance(one, list | tuple) else -1 for one in rows}
    if len(lengths) > 1:
        raise ValueError(f"rows of lengths {sorted(lengths)}")
    return rows


def _check_shape(shape: Sequence[int], subject: Subject) -> None:
    n, positions = subject.data.n, positions_of(subject)
    allowed = [(n,)] + ([(n, *positions)] if positions else [])
    if tuple(shape) not in allowed:
        fits = ", or ".join([f"one label an example, {allowed[0]}", *(f"one a position, {one}" for one in allowed[1:])])
        raise ValueError(f"got `by` of shape {tuple(shape)} for {counted(n, 'example')}: give {fits}")


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Which label each is, and the names, in order where there is one."""
    if labels.dtype.kind == "f" and (labels == np.floor(labels)).all():
        labels = labels.astype(np.int64)  # as pandas has whole numbers where some are missing
    kinds = {type(one) for one in labels.tolist()}
    if bad := sorted({one.__name__ for one in kinds if not issubclass(one, str | int | np.integer | np.bool_)}):
        raise ValueError(f"`by` holds {', '.join(bad)}: give words or whole numbers; cut other numbers into bins first")
    numbers, found = pd.factorize(pd.Series(labels.tolist(), dtype=object), sort=len(kinds) == 1)
    names = [str(one) for one in found]
    if len(set(names)) < len(names):
        raise ValueError("some labels of `by` are words and some numbers that read the same: give one kind")
    return numbers, names
