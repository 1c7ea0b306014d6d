"""Inputs on the device, and in the type, of a model.

A plain module, not a notebook: mechanism without a story.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["to_like", "to_model"]


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
    own = [*model.parameters(), *model.buffers()]
    if not own:
        return x
    return to_like(x, next((one for one in own if one.is_floating_point()), own[0]))


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
