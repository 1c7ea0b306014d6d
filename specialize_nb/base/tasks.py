"""Do the targets of some data belong to a task that will do, and do they fit a model?

A plain module, not a notebook: mechanism without a story. The notebook about data tells what the tasks are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from specialize_nb.base.data import Batches, retasked
from specialize_nb.base.targets import IGNORED, Task, words_told
from specialize_nb.base.words import counted

__all__ = ["check_labels", "check_task", "ordered_as", "settled"]


def check_labels(
    data: Batches,  # Checked data
    n_scores: int,  # Numbers an example that the model puts out: of classes, the scores
) -> None:
    """Is there a number that the model puts out for every target, and a score for every class?

    Parameters
    ----------
    data : Batches
        Checked data
    n_scores : int
        Numbers an example that the model puts out: of classes, the scores

    Raises: `ValueError` that names the first class without a score, or says how many numbers there are and should be.
    """
    if data.task == "dense" and data.labels.max() >= n_scores:
        first, *at = (int(one[0]) for one in np.nonzero(data.labels >= n_scores))
        where = f"position {at[0] if len(at) == 1 else tuple(at)}"
        found = data.labels[(first, *at)]
        message = f"example {first} has the class {found} at {where}, but the model scores {n_scores}"
        one = data.labels[data.labels >= n_scores]
        hint = f"; if {found} marks positions that do not count, give {IGNORED} there" if (one == found).all() else ""
        raise ValueError(f"{message} (0 to {n_scores - 1}): fix the targets, or use a model with more outputs{hint}")
    if data.task == "classes" and data.labels.max() >= n_scores:
        first = int(np.argmax(data.labels >= n_scores))
        message = f"example {first} has the label {data.labels[first]}, but the model scores {n_scores} classes"
        from_one = data.labels.min() == 1 and data.labels.max() == n_scores
        hint = "; if they are counted from 1, give y - 1" if from_one else ""
        raise ValueError(f"{message} (0 to {n_scores - 1}): fix the labels, or use a model with more outputs{hint}")
    if data.task == "classes" and data.names and len(data.names) != n_scores:
        told = f"the targets hold {counted(len(data.names), 'word')}, and the model scores {n_scores} classes"
        advice = "give integer classes, or data with examples of every class"
        raise ValueError(f"{told}: which word is which class cannot be told; {advice}")
    if data.task in ("labels", "numbers") and (width := data.labels[0].size) != n_scores:
        labels, numbers = f"{counted(width, 'label')} of 0 or 1", f"{counted(width, 'number')} to predict"
        kind = labels if data.task == "labels" else numbers
        message = f"the targets have {kind} an example, and the model puts out {n_scores}"
        advice = "give as many, or say with `output` which output is meant, or `task`"
        dense = width > 1 and (data.labels == data.labels.round()).all()
        hint = "; classes at positions need a score for each class at each position" if dense else ""
        raise ValueError(f"{message}: {advice}{hint}")


def check_task(
    data: Batches,  # Checked data
    allowed: Sequence[Task],  # Tasks that will do
    what: str,  # What needs them, such as a function's name
) -> None:
    """Do the targets belong to a task that will do?

    Parameters
    ----------
    data : Batches
        Checked data
    allowed : Sequence[Task]
        Tasks that will do
    what : str
        What needs them, such as a function's name

    Raises: `ValueError` that says what they are, what is needed and how to say so.
    """
    if data.task in allowed:
        return
    needed, found = " or ".join(_TOLD[one] for one in allowed), _TOLD[data.task]
    open_to = [one for one in data.others if one in allowed]
    hint = f"; if that is what they are, give batches(data, task={open_to[0]!r})" if open_to else ""
    raise ValueError(f"{what} needs {needed}; these data have {found}{hint}")


_TOLD = {
    "classes": "integer class indices as targets",
    "dense": "a class at each position as targets",
    "labels": "several labels of 0 or 1 an example as targets",
    "numbers": "floating numbers as targets",
    "none": "no targets",
}


def settled(
    data: Batches,  # Checked data
    n_scores: int,  # Numbers an example that the model puts out
) -> Batches:
    """The data with a task that fits the model, where the targets alone left it open.

    Whole numbers may be classes, labels or numbers: with one output, zeros and ones are labels and others are numbers;
    with several, they are classes.

    Parameters
    ----------
    data : Batches
        Checked data
    n_scores : int
        Numbers an example that the model puts out

    Returns
    -------
    Batches

    Raises: `ValueError` if they fit in no way.
    """
    if not data.others:
        return data
    if "dense" in (data.task, *data.others):  # whether scores are at positions, `Subject` looks
        found = retasked(data, next(one for one in (data.task, *data.others) if one != "dense"))
        told = "The model puts out no scores at positions, so the targets are taken as numbers to predict."
        return replace(found, notes=(*found.notes, told)) if found.task == "numbers" else found
    said, flat = "say `task` if they are something else", data.labels
    if n_scores == 1:
        task: Task = "labels" if bool(np.isin(flat, (0, 1)).all()) else "numbers"
        what = "labels of 0 or 1" if task == "labels" else "numbers to predict"
    elif flat.max() < n_scores:
        task, what = "classes", "classes"
    elif data.task == "numbers":
        told = f"the targets are whole numbers up to {flat.max():g}, and the model puts out {n_scores} an example"
        advice = f"give classes from 0 to {n_scores - 1}, or {n_scores} numbers an example"
        raise ValueError(f"{told}: they fit neither as classes nor as numbers; {advice}")
    else:
        return replace(data, others=())
    if task == data.task == "classes":
        return replace(data, others=())
    outputs = "one number" if n_scores == 1 else f"{n_scores} numbers"
    told = f"The model puts out {outputs} an example, so the targets are taken as {what}; {said}."
    found = retasked(data, task)
    return replace(found, notes=(*found.notes, told))


def ordered_as(
    data: Batches,  # Checked data
    names: Sequence[str],  # Classes in the order that is wanted, those of the data among them
    told: str,  # Whose order that is, a sentence; it takes the place of the note on the order they had
) -> Batches:
    """The same data with the classes that words name in another order; as they are where they are numbers.

    Parameters
    ----------
    data : Batches
        Checked data
    names : Sequence[str]
        Classes in the order that is wanted, those of the data among them
    told : str
        Whose order that is, a sentence; it takes the place of the note on the order they had

    Returns
    -------
    Batches

    Raises: `ValueError` if a word is not among the classes.
    """
    if not data.names:
        return data
    if unknown := [one for one in data.names if one not in names]:
        raise ValueError(f"the model has no class {unknown[0]!r}; it has {list(names)[:10]}")
    place = np.array([list(names).index(one) for one in data.names])
    labels = place[data.labels.astype(np.int64)].astype(data.labels.dtype)
    before = words_told(data.names)
    notes = (*(note for note in data.notes if note != before), told)
    return replace(data, labels=labels, names=tuple(names), notes=notes)
