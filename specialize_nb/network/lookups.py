"""What a table of embeddings is asked for and does not hold: tokens of another vocabulary, or too many positions.

A plain module, not a notebook: mechanism without a story. PyTorch says "index out of range in self". A user has to know
which number was out of range, where it stands, and what the table holds; a second run of the model that failed tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["LookupRefused", "check_lookup"]


class LookupRefused(IndexError):
    """A table of embeddings does not hold what it is asked for."""


def check_lookup(
    model: nn.Module,  # That failed
    error: Exception,  # As it failed
    again: Callable[[], Any],  # Runs it again on the same inputs
    *,
    where: str = "",  # Which inputs these are, for the message; '' for nothing
) -> None:
    """Did a model fail because it looked up what its embeddings do not hold? Then an error says what, where and why.

    Parameters
    ----------
    model : nn.Module
        That failed
    error : Exception
        As it failed
    again : Callable[[], Any]
        Runs it again on the same inputs
    where : str, default ''
        Which inputs these are, for the message; '' for nothing

    Raises: `LookupRefused`, from the error; returns if something else went wrong.
    """
    if not isinstance(error, IndexError | RuntimeError):
        return
    try:
        with _Watched(model):
            again()
    except LookupRefused as told:
        raise LookupRefused(f"{type(model).__name__} fails{where}: {told}") from error
    except Exception:  # the model's own code, which fails in another way
        return


class _Watched(TorchFunctionMode):
    """Looks at every lookup before it is done."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(one): name.removesuffix(".weight") for name, one in model.named_parameters()}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = kwargs or {}
        if func is F.embedding:
            index, table = (args[i] if len(args) > i else given[key] for i, key in enumerate(("input", "weight")))
            _check(index, table, repr(self.names.get(id(table), "a table")))
        return func(*args, **given)


def _check(index: Tensor, table: Tensor, name: str) -> None:
    n = len(table)
    if index.is_floating_point():
        told = f"{name} looks up rows by whole numbers and gets {str(index.dtype)[6:]}"
        raise LookupRefused(f"{told}: give tokens as whole numbers, such as `ids.long()`")
    if not index.numel() or (index.min() >= 0 and index.max() < n):
        return
    if _counts_positions(index):
        told = f"{name} has a row for each of {n:,} positions, and the sequences need {int(index.max()) + 1:,}"
        raise LookupRefused(f"{told}: cut them, or take a model for longer ones")
    place = ((index < 0) | (index >= n)).nonzero()[0].tolist()
    value = int(index[tuple(place)])
    at = "" if index.ndim != 2 else f" (example {place[0]}, position {place[1]})"
    told = f"it is given {value}{at}, and {name} knows 0 to {n - 1:,}"
    raise LookupRefused(f"{told}: give what the model's own tokenizer makes, or another number where it pads")


def _counts_positions(index: Tensor) -> bool:
    """Do rows hold numbers one after the other, all the same, from the first few on?"""
    if not index.ndim or index.shape[-1] < 2:
        return False
    rows = index.reshape(-1, index.shape[-1])
    return bool((rows.diff() == 1).all() and (rows == rows[0]).all() and 0 <= rows[0, 0] < 4)
