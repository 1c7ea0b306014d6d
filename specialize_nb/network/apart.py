"""Does a model answer to every example by itself? Found out on the first batch of the data.

A plain module, not a notebook: mechanism without a story. Most models do, and then a batch can be cut into pieces, and
copies of it stacked. Others compute across the batch, or from places in it: they are given whole batches as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specialize_nb.base.devices import to_model
from specialize_nb.base.numbers import same_numbers
from specialize_nb.network.subject import Subject

__all__ = ["examples_apart", "first_batch", "is_apart"]


def first_batch(
    subject: Subject,  # Whose data
) -> list[Tensor]:
    """The inputs of the first batch, as the traced program takes them.

    Parameters
    ----------
    subject : Subject
        Whose data

    Returns
    -------
    list[Tensor]
    """
    x, _ = subject.once("first batch", lambda: next(iter(subject.data)))
    return list(subject.network.program.arguments(to_model(x, subject.model)))


def examples_apart(
    run: Callable[[Sequence[Tensor]], Tensor],  # Inputs of a batch -> what is said of it, (n, ...)
    tensors: Sequence[Tensor],  # Inputs of one batch
) -> bool:
    """Is the same said of every example whichever others it comes with, and wherever it lies?

    Asked of the whole batch and its two halves; a batch of one example has nothing to compare.

    Parameters
    ----------
    run : Callable[[Sequence[Tensor]], Tensor]
        Inputs of a batch -> what is said of it, (n, ...)
    tensors : Sequence[Tensor]
        Inputs of one batch

    Returns
    -------
    bool
    """
    n = len(tensors[0])
    if n < 2:
        return True
    whole = run(tensors)
    for rows in (slice(0, n // 2), slice(n // 2, n)):
        try:
            part = run([one[rows] for one in tensors])
        except Exception:  # the model's own code: it needs the batch as it is
            return False
        if not same_numbers(part, whole[rows]):
            return False
    return True


@torch.inference_mode()
def is_apart(
    subject: Subject,  # A model and its data
    node: str,  # Of its program: what holds the scores
) -> bool:
    """Does what the network says of an example depend on that example alone? Found out once.

    Parameters
    ----------
    subject : Subject
        A model and its data
    node : str
        Of its program: what holds the scores

    Returns
    -------
    bool
    """
    program = subject.network.program
    run = lambda tensors: program.extract(program.inputs, [node])(*tensors)[0]  # noqa: E731
    return subject.once(("apart", node), lambda: examples_apart(run, first_batch(subject)))
