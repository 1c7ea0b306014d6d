"""Are two values the same but for rounding, and how much do numbers of any size vary?

A plain module, not a notebook: mechanism without a story.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["same_numbers", "spread_of"]

_CLOSE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 3e-2, torch.bfloat16: 1e-1}
# of the largest number: more than the order of summation changes
_AT_ONCE = 2**22  # numbers that are compared together: a language model puts out hundreds of millions


def same_numbers(
    one: Tensor,  # Of any shape
    other: Tensor,  # To be compared with
) -> bool:
    """Are two values equal but for the order of summation? What is not finite has to be the same in both.

    Parameters
    ----------
    one : Tensor
        Of any shape
    other : Tensor
        To be compared with

    Returns
    -------
    bool
    """
    if one.shape != other.shape:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    size = apart = 0.0
    for a, b in zip(*(part.reshape(-1).split(_AT_ONCE) for part in (one, other)), strict=True):
        known = a.isfinite()
        if not torch.equal(known, b.isfinite()):
            return False
        if not bool(known.all()):
            if not torch.equal(*(part[~known].nan_to_num() for part in (a, b))):
                return False
            a, b = a[known], b[known]
        if a.numel():
            size = max(size, float(a.abs().max()), float(b.abs().max()))
            apart = max(apart, float((a - b).abs().max()))
    return apart <= _CLOSE.get(one.abs().dtype, 0.0) * size


def spread_of(
    values: np.ndarray,  # (n, ...) numbers of any size
    rounding: float = 1e-14,  # Of their size: numbers that vary by less are the same
) -> np.ndarray:  # (d,) standard deviations, the other axes in one; exactly 0 where all numbers are the same
    """How much does each of several numbers vary over the examples? Squares of huge or tiny ones are never taken.

    Parameters
    ----------
    values : np.ndarray
        (n, ...) numbers of any size
    rounding : float, default 1e-14
        Of their size: numbers that vary by less are the same

    Returns
    -------
    np.ndarray
        (d,) standard deviations, the other axes in one; exactly 0 where all numbers are the same
    """
    rows = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    size = np.abs(rows).max(0, initial=0.0)
    size = np.where(size > 0, size, 1.0)
    shares = (rows / size).std(0)
    return np.where(shares > rounding, shares, 0.0) * size
