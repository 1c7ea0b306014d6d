"""Does a model answer to every example by itself? Found out on the first batch of the data.

A plain module, not a notebook: mechanism without a story. Most models do, and then a batch can be cut into pieces, and
copies of it stacked. Others compute across the batch, or from places in it: they are given whole batches as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specialize_nb.base.devices import leading, to_model
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


_FEW = 15  # examples held against the whole batch; an odd number, so that no pairs stay together


def examples_apart(
    run: Callable[[Sequence[Tensor]], Tensor],  # Inputs of a batch -> what is said of it, (n, ...)
    tensors: Sequence[Tensor],  # Inputs of one batch
    whole: Tensor | None = None,  # What is said of the whole batch, where that is known already
) -> bool:
    """Is the same said of every example whichever others it comes with, and wherever it lies?

    Asked of the whole batch, its first examples and its last; a batch of one example has nothing to compare.

    Parameters
    ----------
    run : Callable[[Sequence[Tensor]], Tensor]
        Inputs of a batch -> what is said of it, (n, ...)
    tensors : Sequence[Tensor]
        Inputs of one batch
    whole : Tensor | None, default None
        What is said of the whole batch, where that is known already

    Returns
    -------
    bool
    """
    n = len(tensors[0])
    if n < 2:
        return True
    whole, few = run(tensors) if whole is None else whole, min(n // 2, _FEW)
    for rows in (slice(0, few), slice(n - few, n)):
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

    def run(tensors: Sequence[Tensor]) -> Tensor:
        value = program.examples_first(node, program.extract(program.inputs, [node])(*tensors)[0])
        return value.flatten(1) if value.ndim > 1 else value[:, None]

    return subject.once(("apart", node), lambda: examples_apart(run, first_batch(subject), _known(subject, node)))


def _known(subject: Subject, node: str) -> Tensor | None:
    """(n, d) what is said of the first batch, if that was kept."""
    outputs = subject.kept.get("outputs")
    if outputs is None or outputs.values is None or subject.scores_node.node != node:
        return None
    _, y = subject.once("first batch", lambda: next(iter(subject.data)))
    return torch.tensor(outputs.values[: len(y)], dtype=outputs.dtype, device=leading(subject.model).device)
