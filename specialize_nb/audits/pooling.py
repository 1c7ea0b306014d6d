"""Several tasks as one data set: what an audit judges together, and which task each example belongs to.

A plain module, not a notebook: mechanism without a story. The page of the audit tells why tasks are judged together
first and apart afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch.utils import _pytree as pytree

from specialize_nb.base.data import Batches, UnevenBatches, batches
from specialize_nb.base.targets import IGNORED, Task
from specialize_nb.base.words import counted

__all__ = ["Pooled", "is_mapping_of_tasks", "pooled", "tasks_of"]

_LEAST = 4  # examples of a task, so that they can be drawn again
_TARGETS = ("labels", "label")  # entries of a batch in a mapping, which no task is called


class Pooled(NamedTuple):
    """Data of one task or of several.

    Attributes
    ----------
    data : Any
        In a form that `batches` takes
    find : Any
        The same of the data to find with; None where none were given
    labels : np.ndarray | None
        (n,) of objects: the task of each example, None for an example of no task; None where
    shapes : Mapping[str, Any]
        Task -> the shapes of an example; empty where there is one task
    """

    data: Any  # In a form that `batches` takes
    find: Any  # The same of the data to find with; None where none were given
    labels: np.ndarray | None  # (n,) of objects: the task of each example, None for an example of no task; None where
    # there is one task
    shapes: Mapping[str, Any]  # Task -> the shapes of an example; empty where there is one task


def is_mapping_of_tasks(
    data: Any,  # What somebody gave as data
) -> bool:
    """Are these names of tasks with data of each, and not the entries of a batch?

    The values of a batch are tables of numbers; those of tasks are data sets: pairs, mappings, loaders, lists of
    batches.

    Parameters
    ----------
    data : Any
        What somebody gave as data

    Returns
    -------
    bool
    """
    if not isinstance(data, Mapping) or not len(data) or any(name in data for name in _TARGETS):
        return False
    return all(map(_is_data_set, data.values()))


def _is_data_set(one: Any) -> bool:
    if isinstance(one, Mapping | Batches):
        return True
    if one is None or isinstance(one, str | bytes) or hasattr(one, "dtype") or hasattr(one, "to_numpy"):
        return False
    if isinstance(one, tuple):
        return len(one) == 2 and not isinstance(one[0], int | float | str)
    if isinstance(one, list):
        return not one or isinstance(one[0], tuple | Mapping)
    return isinstance(one, Iterable) or hasattr(one, "__getitem__")


def pooled(
    data: Any,  # Data of any form, or a mapping from the names of tasks to such data
    find: Any = None,  # Data to find with, or a mapping of the same kind
    by: Any = None,  # (n,) the task of each example; None or -100 where it belongs to none
    task: Task | None = None,  # What the targets are; None looks at them
) -> Pooled:
    """The examples of all tasks, one task after the other, and which task each belongs to.

    Parameters
    ----------
    data : Any
        Data of any form, or a mapping from the names of tasks to such data
    find : Any, default None
        Data to find with, or a mapping of the same kind
    by : Any, default None
        (n,) the task of each example; None or -100 where it belongs to none
    task : Task | None, default None
        What the targets are; None looks at them

    Returns
    -------
    Pooled

    Raises: `ValueError` for one task alone, tasks with few examples or with targets of different kinds, or tasks that
    are given twice; what `batches` raises, with the name of the task.
    """
    if is_mapping_of_tasks(find):
        find = _joined([_read(str(name), one, None).source for name, one in find.items()])
    if not is_mapping_of_tasks(data):
        return Pooled(data, find, None if by is None else _labels(by), {})
    if by is not None:
        told = f"`data` names tasks, {list(data)[:3]}, and `by` names others"
        raise ValueError(f"{told}: give one of the two")
    if len(data) < 2:
        told = f"`data` names 1 task, {list(data)}"
        raise ValueError(f"{told}: name two or more, or give the data themselves, which is then one task")
    read = {str(name): _read(str(name), one, task) for name, one in data.items()}
    _check_kinds(read)
    labels = np.concatenate([np.full(one.n, name, dtype=object) for name, one in read.items()])
    shapes = {name: one.shapes for name, one in read.items()}
    return Pooled(_joined([one.source for one in read.values()]), find, labels, shapes)


@dataclass(frozen=True)
class _Joined:
    """The batches of several data sets, one after the other."""

    sources: Sequence[Iterable]

    def __iter__(self) -> Iterator[Any]:
        return (item for source in self.sources for item in source)


def _joined(sources: Sequence[Iterable]) -> Iterable:
    """A list, if all of them are in memory anyhow."""
    whole = _Joined(sources)
    return list(whole) if all(isinstance(one, list) for one in sources) else whole


class _Task(NamedTuple):
    """The data of one task."""

    source: Iterable  # Of batches
    n: int  # Examples
    kinds: tuple[Task, ...]  # What the targets may be; () where it is not known
    shapes: tuple[tuple[int, ...], ...]  # Of each input of an example; those of all lengths where batches have several


def _read(name: str, data: Any, task: Task | None) -> _Task:
    try:
        found = batches(data, task=task)
    except UnevenBatches:
        return _uneven(data)
    except (TypeError, ValueError) as error:
        raise type(error)(f"task {name!r}: {error}") from error
    return _Task(found.source, found.n, (found.task, *found.others), _shapes(found.example))


def _uneven(data: Iterable) -> _Task:
    """Batches of several lengths, which are padded to one when the model is known."""
    n, shapes = 0, {}
    for item in data:
        inputs = item if isinstance(item, Mapping) else item[0]
        n += len(pytree.tree_leaves(inputs)[0])
        shapes |= dict.fromkeys(_shapes(inputs))
    return _Task(data, n, (), tuple(shapes))


def _shapes(x: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(np.shape(one)[1:]) for one in pytree.tree_leaves(x))


def _check_kinds(read: Mapping[str, _Task]) -> None:
    known = {name: one.kinds for name, one in read.items() if one.kinds}
    if known and not set.intersection(*map(set, known.values())):
        told = f"tasks have targets of different kinds, { ({name: kinds[0] for name, kinds in known.items()}) }"
        advice = "say with `task=` what they all are, or take `dissociation`, which judges each by its own"
        raise ValueError(f"{told}, and an audit judges all of them together: {advice}")


def _labels(by: Any) -> np.ndarray:
    """(n,) of objects, None for no task, which -100 says too."""
    given = pd.Series(by.tolist() if hasattr(by, "tolist") else list(by), dtype=object)
    if any(isinstance(one, list | tuple) for one in given):
        shape = tuple(np.shape(by)) or (len(given),)
        raise ValueError(f"got `by` of shape {shape}: give one label an example, (n,)")
    nowhere = given.isna() | given.map(lambda one: isinstance(one, int | float) and one == IGNORED)
    return given.where(~nowhere, None).to_numpy(dtype=object)


def tasks_of(
    labels: np.ndarray | None,  # (n,) of objects, as `Pooled` has them
    places: np.ndarray | None,  # (m,) where the examples that judge stand among the n; None: all do
    n: int,  # Examples that were given
) -> np.ndarray | None:  # (m,) the task of each example that judges; None where there is one task
    """Which task does each example that judges belong to?

    Parameters
    ----------
    labels : np.ndarray | None
        (n,) of objects, as `Pooled` has them
    places : np.ndarray | None
        (m,) where the examples that judge stand among the n; None: all do
    n : int
        Examples that were given

    Returns
    -------
    np.ndarray | None
        (m,) the task of each example that judges; None where there is one task

    Raises: `ValueError` for another number of labels than of examples, labels of one task alone, or a task with fewer
    than four examples.
    """
    if labels is None:
        return None
    if len(labels) != n:
        raise ValueError(f"got `by` of shape ({len(labels)},) for {counted(n, 'example')}: give one label an example")
    own = labels if places is None else labels[places]
    sizes = pd.Series(own, dtype=object).value_counts().to_dict()
    if len(every := sorted({str(one) for one in labels if one is not None})) < 2:
        raise ValueError(f"`by` has {counted(len(every), 'task')}, {every}: give two or more, or leave it out")
    for name in sorted({one for one in labels if one is not None}, key=str):
        if (size := sizes.get(name, 0)) < _LEAST:
            told = f"task {str(name)!r} has {counted(size, 'example')} to be judged on"
            raise ValueError(f"{told}: give {_LEAST} or more, twice as many where half of them find the clusters")
    return own
