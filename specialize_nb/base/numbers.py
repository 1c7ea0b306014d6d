"""Are two values the same but for rounding?

A plain module, not a notebook: mechanism without a story.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["same_numbers"]

_CLOSE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 3e-2, torch.bfloat16: 1e-1}
# of the largest number: more than the order of summation changes


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
    known, odd = one.isfinite(), [part[~part.isfinite()].nan_to_num() for part in (one, other)]
    if not torch.equal(known, other.isfinite()) or not torch.equal(*odd):
        return False
    if not known.any():
        return True
    size = max(float(part[known].abs().max()) for part in (one, other))
    return float((one[known] - other[known]).abs().max()) <= _CLOSE.get(one.abs().dtype, 0.0) * size
