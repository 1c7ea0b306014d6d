"""What targets say: classes, a class at each position, several labels, numbers, or nothing.

A plain module, not a notebook: mechanism without a story. Targets come in many forms: whole numbers, words, zeros and
ones, floating numbers, lists, frames. `raw_targets` makes arrays of them, `task_of` says which task they belong to, or
that it cannot be told, and `encoded` makes of them what that task works with.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from specialize_nb.base.words import check_choice

__all__ = [
    "IGNORED",
    "TASKS",
    "Task",
    "TaskFound",
    "check_said",
    "class_names",
    "encoded",
    "raw_targets",
    "task_of",
    "words_told",
]

Task = Literal["classes", "dense", "labels", "numbers", "none"]
TASKS: tuple[Task, ...] = get_args(Task)
IGNORED = -100  # the target of a position that does not count, as PyTorch has it
_TOO_MANY = 2**31  # classes: no model has a score for each
_SAY = "say which with task='classes', 'dense' (a class at each position), 'labels' (0/1 labels) or 'numbers'"
_NONE = "or give (x, None) to go without targets"


def raw_targets(
    y: Any,  # Targets of some examples: a tensor, array, list, series or frame; None for none
    n: int,  # Examples
    where: str,  # Where they are, for messages
) -> np.ndarray:
    """Targets as an array of numbers or words, a row an example.

    Parameters
    ----------
    y : Any
        Targets of some examples: a tensor, array, list, series or frame; None for none
    n : int
        Examples
    where : str
        Where they are, for messages

    Returns
    -------
    np.ndarray

    Raises: `TypeError` for what is neither; `ValueError` for targets that are missing, or one number for all.
    """
    if y is None:
        return np.zeros((n, 0))
    array = _array(y, where)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "latin-1")
    if array.dtype.kind == "U" and array.size and _are_numerals(array):
        array = array.astype(np.int64)  # numerals are numbers, not words: '10' comes after '9'
    if array.dtype == np.longdouble:
        with np.errstate(over="ignore"):  # what is too large is told with what is not finite
            array = array.astype(np.float64)
    if array.dtype.kind not in "biufU":
        raise TypeError(f"{where} has targets of type {array.dtype}: give numbers, words, or None where there are none")
    if not array.ndim:
        hint = "if the examples are single ones, give a DataLoader, which makes batches of them"
        raise ValueError(f"{where} has one target, {array.item()!r}, not one for each of {n} examples; {hint}")
    return array


def _are_numerals(words: np.ndarray) -> bool:
    """Whole numbers that int64 holds?"""
    return bool(np.char.isdecimal(words).all() and np.char.str_len(words).max() < 19)


def _array(y: Any, where: str) -> np.ndarray:
    """Any form as an array; words and numbers are not mixed."""
    if isinstance(y, Tensor):
        return _of_tensor(y, where)
    if isinstance(y, np.ma.MaskedArray) and np.ma.getmaskarray(y).any():
        raise ValueError(f"{where} has masked targets: leave those examples out, {_NONE}")
    if hasattr(y, "to_numpy"):
        y = y.to_numpy()
    if hasattr(y, "toarray"):
        raise TypeError(f"{where} has targets in a sparse {type(y).__name__}: give them dense, as y.toarray()")
    if isinstance(y, list | tuple) and any(isinstance(one, Tensor | np.ndarray) for one in y):
        y = [_array(one, where).tolist() for one in y]
    try:
        array = y if isinstance(y, np.ndarray) else np.asarray(y, dtype=object if _has_words(y) else None)
    except ValueError as error:
        raise ValueError(f"{where} has targets that are not equally long: each example needs as many") from error
    if array.dtype.kind == "T":  # NumPy's strings of any length, which may have gaps
        array = array.astype(object)
    return _without_objects(array, where) if array.dtype == object else array


_PLAIN = (torch.float16, torch.float32, torch.float64)  # floating types that NumPy has as well


def _of_tensor(y: Tensor, where: str) -> np.ndarray:
    """A tensor as an array; types that NumPy lacks become float32."""
    if y.is_nested:
        raise TypeError(f"{where} has targets in a nested tensor: each example needs as many; give a dense tensor")
    try:
        plain = y.detach().cpu()
        plain = plain if plain.layout == torch.strided else plain.to_dense()
        plain = plain.float() if plain.is_floating_point() and plain.dtype not in _PLAIN else plain
        return plain.resolve_conj().resolve_neg().numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        told = f"{where} has targets in a tensor of type {str(y.dtype)[6:]} on {y.device}, which cannot be read"
        raise TypeError(f"{told} ({str(error).splitlines()[0]}): give int64, float32 or float64") from error


def _has_words(y: Any) -> bool:
    return isinstance(y, list | tuple) and any(one is None or isinstance(one, str) for one in y)


def _without_objects(array: np.ndarray, where: str) -> np.ndarray:
    """The words or the numbers that an array of objects holds."""
    flat = array.ravel().tolist()
    if missing := [i for i, one in enumerate(flat) if pd.api.types.is_scalar(one) and pd.isna(one)]:
        rows = [i * len(array) // max(array.size, 1) for i in missing]
        raise ValueError(f"{where} has examples without a target: {_some(rows)}; leave them out, {_NONE}")
    words = [isinstance(one, str) for one in flat]
    if any(words) and not all(words):
        raise TypeError(f"{where} has targets of which some are words and some are numbers: give one kind")
    try:
        found = np.array(array.tolist())
    except ValueError as error:
        raise ValueError(f"{where} has targets that are not equally long: each example needs as many") from error
    if found.dtype == object and all(isinstance(one, Real | Decimal) for one in flat):
        found = np.array([_as_float(one) for one in flat]).reshape(array.shape)
    if found.dtype == object:
        raise TypeError(f"{where} has targets of type {type(flat[0]).__name__}: give numbers or words")
    return found


def _as_float(one: Real | Decimal) -> float:
    """A number of any kind; infinite if it is too large, which is told with what is not finite."""
    try:
        return float(one)
    except OverflowError:
        return np.inf


class TaskFound(NamedTuple):
    """Which task targets belong to.

    Attributes
    ----------
    task : Task
        The one that they belong to as far as can be told without the model
    others : tuple[Task, ...]
        Others that they may belong to, which the number of the model's outputs tells apart
    told : str
        What was decided, a sentence; '' where nothing had to be
    """

    task: Task  # The one that they belong to as far as can be told without the model
    others: tuple[Task, ...]  # Others that they may belong to, which the number of the model's outputs tells apart
    told: str  # What was decided, a sentence; '' where nothing had to be


def task_of(
    y: np.ndarray,  # (n,) or (n, ...), from `raw_targets`
) -> TaskFound:
    """Which task do these targets belong to?

    Parameters
    ----------
    y : np.ndarray
        (n,) or (n, ...), from `raw_targets`

    Returns
    -------
    TaskFound

    Raises: `ValueError` if they belong to none, or could belong to several: it says what to say.
    """
    if not y[0].size:
        return TaskFound("none", (), "")
    if y.dtype.kind == "U":
        return _words_found(y)
    _check_finite(y)
    return _column_found(y) if y.size == len(y) else _table_found(y)


def _words_found(y: np.ndarray) -> TaskFound:
    told = check_said(y, "classes")
    return TaskFound("classes", ("labels",) if len(class_names(y)) == 2 else (), told)


def _column_found(y: np.ndarray) -> TaskFound:
    """One number an example."""
    binary, whole = _is_binary(y), _is_whole(y)
    if y.dtype.kind in "biu":
        if np.unique(y[y < 0]).size > 1:
            told = "The targets are whole numbers, some of them below 0: they are taken as numbers to predict."
            return TaskFound("numbers", (), told)
        if y.min() < 0:
            check_said(y, "classes")
        if y.max() >= _TOO_MANY:
            told = f"The targets are whole numbers up to {y.max()}, too large for classes: they are numbers to predict."
            return TaskFound("numbers", (), told)
        return TaskFound("classes", ("labels",) if binary else ("numbers",), "")
    if binary:
        return TaskFound("numbers", ("labels", "classes"), "")
    return TaskFound("numbers", ("classes",) if whole and y.min() >= 0 else (), _told_shares(y))


def _table_found(y: np.ndarray) -> TaskFound:
    """Several numbers an example."""
    if _is_binary(y) and y.ndim == 2:
        if (y.sum(1) == 1).all():
            told = "Every example has exactly one of the labels: they are taken as classes; say task='labels' if not."
            return TaskFound("classes", (), told)
        return TaskFound("labels", ("dense",) if y.dtype.kind in "biu" else (), "")
    found = f"the targets are {_shape(y)}"
    if y.dtype.kind in "biu":
        return _whole_found(y)
    if _is_binary(y):
        reason = "several zeros and ones an example, in more than one row"
        said = "task='dense' takes them as a class at each position, task='numbers' as numbers to predict"
        raise ValueError(f"{found}: {reason}; {said}, {_NONE}")
    if _is_distribution(y):
        reason = "rows that sum to 1, so they may be shares of classes or numbers"
        said = "task='classes' takes the largest share as the class, task='numbers' the shares as they are"
        raise ValueError(f"{found}: {reason}; {said}")
    return TaskFound("numbers", (), _told_shares(y))


def _whole_found(y: np.ndarray) -> TaskFound:
    """Several whole numbers an example: a class at each position, unless they cannot be."""
    if y[y != IGNORED].min(initial=0) < 0:
        told = "The targets are whole numbers, some of them below 0: they are taken as numbers to predict."
        return TaskFound("numbers", (), told)
    if y.max() >= _TOO_MANY:
        told = f"The targets are whole numbers up to {y.max()}, too large for classes: they are numbers to predict."
        return TaskFound("numbers", (), told)
    if (y == IGNORED).any():
        return TaskFound("dense", (), check_said(y, "dense"))
    return TaskFound("dense", ("numbers",), "")


def _told_shares(y: np.ndarray) -> str:
    """What is said of numbers that might be meant as the probabilities of labels."""
    inside = y.dtype.kind == "f" and 0 <= y.min() and y.max() <= 1
    return "The targets lie between 0 and 1 and are taken as numbers to predict: labels are 0 or 1." if inside else ""


def check_said(
    y: np.ndarray,  # (n,) or (n, ...), from `raw_targets`
    task: Task,  # What they are said to be
) -> str:  # What was decided, a sentence; '' where nothing had to be
    """Can targets be what they are said to be?

    Parameters
    ----------
    y : np.ndarray
        (n,) or (n, ...), from `raw_targets`
    task : Task
        What they are said to be

    Returns
    -------
    str
        What was decided, a sentence; '' where nothing had to be

    Raises: `ValueError` that says why they cannot.
    """
    check_choice("task", task, TASKS)
    if task == "none":
        return ""
    if not y[0].size:
        raise ValueError(f"task={task!r} needs targets, and there are none: give (x, y), or leave `task` out")
    if y.dtype.kind != "U":
        _check_finite(y)
    said = {"classes": _classes_said, "dense": _dense_said, "labels": _labels_said, "numbers": _numbers_said}
    return said[task](y)


def _classes_said(y: np.ndarray) -> str:
    if y.dtype.kind == "U" and y.size != len(y):
        raise ValueError(f"the targets are {_shape(y)} of words; one word an example is its class")
    if y.dtype.kind == "U":
        return words_told(class_names(y))
    if y.size != len(y):
        if y.ndim == 2 and _is_distribution(y):
            return "" if _is_binary(y) else "Each example's class is the one that has the largest share."
        raise ValueError(f"the targets are {_shape(y)}; classes are (n,) whole numbers from 0 on, or words")
    if not _is_whole(y):
        i = int(np.flatnonzero(y.ravel() != np.floor(y.ravel()))[0])
        raise ValueError(f"example {i} has the target {y.ravel()[i]}; classes are whole numbers from 0 on")
    if y.min() < 0:
        i = int(np.flatnonzero(y.ravel() < 0)[0])
        one = "; one sequence of tokens is a table of one row, as ids[None]" if y.ndim == 1 and len(y) > 1 else ""
        ignored = f"examples to be ignored have to be left out{one}" if (y == -100).any() else ""
        signs = "if -1 and 1 are two classes give (y > 0), " if np.isin(y, (-1, 1)).all() else ""
        hint = ignored or f"{signs}if the targets are numbers to be predicted say task='numbers'"
        raise ValueError(f"example {i} has the label {y.ravel()[i]}; class indices start at 0; {hint}")
    if y.max() >= _TOO_MANY:
        i = int(y.ravel().argmax())
        told = f"example {i} has the label {y.ravel()[i]}, too large for a class: classes are counted from 0 on"
        raise ValueError(f"{told}; number them so, or say task='numbers' if they are to be predicted")
    return ""


def _dense_said(y: np.ndarray) -> str:
    wanted = "a class at each position is a whole number from 0 on"
    if y.dtype.kind == "U" or y.ndim < 2:
        raise ValueError(f"the targets are {_shape(y)}; {wanted}, (n, positions) or (n, height, width)")
    if not _is_whole(y):
        i, value = next((i, one) for i, one in enumerate(y.ravel()) if one != np.floor(one))
        raise ValueError(f"example {i // y[0].size} has the target {value}; {wanted}")
    counted = y != IGNORED
    if (y[counted] < 0).any() or y.max() >= _TOO_MANY:
        wrong = (counted & (y < 0)) | (y >= _TOO_MANY)
        i = int(np.flatnonzero(wrong.reshape(len(y), -1).any(1))[0])
        told = f"example {i} has the target {y[i][wrong[i]][0]:g} at a position"
        raise ValueError(f"{told}; {wanted}, or {IGNORED} where the position does not count")
    if (none := ~counted.reshape(len(y), -1).any(1)).any():
        told = f"every target of {_some(np.flatnonzero(none))} is {IGNORED}, so that no position counts"
        raise ValueError(f"{told}: leave these examples out")
    if counted.all() or (y.ndim == 2 and counted[:, :-1].all()):  # what follows the last token is never known
        return ""
    return f"{1 - counted.mean():.0%} of the positions have the target {IGNORED} and do not count."


def words_told(
    names: Sequence[str],  # Classes that words name, in alphabetical order
) -> str:
    """What is said of targets that are words, a sentence.

    Parameters
    ----------
    names : Sequence[str]
        Classes that words name, in alphabetical order

    Returns
    -------
    str
    """
    shown = f"{len(names)} words" if len(names) > 6 else f"the words {', '.join(map(repr, names))}"
    told = f"The targets are {shown}, taken as classes in alphabetical order: class 0 is {names[0]!r}"
    return told + (f", class {len(names) - 1} is {names[-1]!r}." if len(names) > 1 else ".")


def _labels_said(y: np.ndarray) -> str:
    if y.dtype.kind == "U":
        if y.size != len(y) or len(class_names(y)) > 2:
            raise ValueError(f"the targets are {len(np.unique(y))} words; labels are 0 or 1, or one of two words")
        return words_told(class_names(y))
    if not _is_binary(y):
        rows = ~np.isin(y, (0, 1)).reshape(len(y), -1).all(1)
        raise ValueError(f"labels are 0 or 1, and {_some(np.flatnonzero(rows))} have others: {_SAY}")
    return ""


def _numbers_said(y: np.ndarray) -> str:
    if y.dtype.kind == "U":
        raise ValueError("the targets are words, not numbers: leave `task` out, or say task='classes'")
    return ""


def class_names(
    y: np.ndarray,  # (n,) or (n, 1), from `raw_targets`
) -> tuple[str, ...]:
    """The classes that words name, in alphabetical order; none for numbers.

    Parameters
    ----------
    y : np.ndarray
        (n,) or (n, 1), from `raw_targets`

    Returns
    -------
    tuple[str, ...]
    """
    return tuple(np.unique(y).tolist()) if y.dtype.kind == "U" else ()


def encoded(
    y: np.ndarray,  # (n,) or (n, ...), from `raw_targets`, or what this function made of them
    task: Task,  # What they are
    names: Sequence[str] = (),  # Classes that words name, in their order
) -> np.ndarray:  # int64 (n,) or (n, ...) classes; float64 (n, L) labels, (n, ...) numbers, (n, 0) for none
    """Targets as their task works with them.

    Parameters
    ----------
    y : np.ndarray
        (n,) or (n, ...), from `raw_targets`, or what this function made of them
    task : Task
        What they are
    names : Sequence[str], default ()
        Classes that words name, in their order

    Returns
    -------
    np.ndarray
        int64 (n,) or (n, ...) classes; float64 (n, L) labels, (n, ...) numbers, (n, 0) for none
    """
    if task == "none":
        return np.zeros((len(y), 0))
    if y.dtype.kind == "U":
        place = {name: i for i, name in enumerate(names)}
        y = np.array([place.get(one, -1) for one in y.ravel().tolist()], dtype=np.int64)
    if task == "classes":
        y = y if y.size == len(y) else y.reshape(len(y), -1).argmax(1)
        return y.reshape(-1).astype(np.int64)
    if task == "dense":
        return y.astype(np.int64)
    return (y.reshape(len(y), -1) if task == "labels" else y).astype(np.float64)


def _check_finite(y: np.ndarray) -> None:
    bad = ~np.isfinite(y).reshape(len(y), -1).all(1)
    if bad.any():
        what = f"NaN or infinite targets in {_some(np.flatnonzero(bad))}, {bad.sum()} of {len(y)} examples"
        raise ValueError(f"{what}: expected finite numbers; leave them out, {_NONE}")


def _is_binary(y: np.ndarray) -> bool:
    return bool(np.isin(y, (0, 1)).all())


def _is_whole(y: np.ndarray) -> bool:
    return y.dtype.kind in "biu" or bool((y == np.floor(y)).all())


def _is_distribution(y: np.ndarray) -> bool:
    """Rows of shares that sum to 1?"""
    return y.ndim == 2 and bool((y >= 0).all() and (np.abs(y.sum(1, dtype=np.float64) - 1) < 1e-3).all())


def _shape(y: np.ndarray) -> str:
    return f"{y.dtype.name} of shape {y.shape}"


def _some(rows: Sequence[int]) -> str:
    """A few of some examples, in words."""
    known = list(dict.fromkeys(int(row) for row in rows))
    told = ", ".join(map(str, known[:5]))
    return f"example {told}" if len(known) == 1 else f"examples {told}{' and others' if len(known) > 5 else ''}"
