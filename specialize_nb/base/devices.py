"""Inputs on the device, and in the type, of a model.

A plain module, not a notebook: mechanism without a story.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["leading", "to_like", "to_model"]


def leading(
    model: nn.Module,  # Its parameters and buffers
) -> Tensor:
    """A tensor of the type that most numbers of a model have, floating before whole; an empty one if it has none.

    Parameters
    ----------
    model : nn.Module
        Its parameters and buffers

    Returns
    -------
    Tensor
    """
    own = [*model.parameters(), *model.buffers()]
    floating = [one for one in own if one.is_floating_point()] or own
    counts: dict[torch.dtype, int] = {}
    for one in floating:
        counts[one.dtype] = counts.get(one.dtype, 0) + one.numel()
    most = max(counts, key=lambda dtype: counts[dtype], default=None)
    return next((one for one in floating if one.dtype == most), torch.empty(0))


def to_model(
    x: Any,  # (batch, ...), or several such tensors in a tuple or mapping
    model: nn.Module,  # Its parameters and buffers say where to go
) -> Any:
    """The inputs on the model's device, and in its floating type if they are floating.

    Parameters
    ----------
    x : Any
        (batch, ...), or several such tensors in a tuple or mapping
    model : nn.Module
        Its parameters and buffers say where to go

    Returns
    -------
    Any
    """
    return to_like(x, leading(model)) if any(True for _ in (*model.parameters(), *model.buffers())) else x


def to_like(
    x: Any,  # (batch, ...), or several such tensors in a tuple or mapping
    like: Tensor,  # Says where to go
) -> Any:
    """The inputs on a tensor's device, and in its floating type if both are floating.

    Parameters
    ----------
    x : Any
        (batch, ...), or several such tensors in a tuple or mapping
    like : Tensor
        Says where to go

    Returns
    -------
    Any
    """
    both = like.is_floating_point()
    return pytree.tree_map_only(
        Tensor, lambda one: one.to(like.device, like.dtype if both and one.is_floating_point() else one.dtype), x
    )
