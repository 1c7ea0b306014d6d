"""Inputs on the device of a model, and in its type where that is asked for.

A plain module, not a notebook: mechanism without a story.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["floating_type", "leading", "taken_by", "to_like", "to_model", "typed_as"]


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


def floating_type(
    model: nn.Module,  # Its parameters and buffers
) -> torch.dtype | None:
    """The floating type that most numbers of a model have; None if it has none.

    Parameters
    ----------
    model : nn.Module
        Its parameters and buffers

    Returns
    -------
    torch.dtype | None
    """
    like = leading(model)
    return like.dtype if like.numel() and like.is_floating_point() else None


def to_model(
    x: Any,  # (batch, ...), or several such tensors in a tuple or mapping
    model: nn.Module,  # Its parameters and buffers say where to go
) -> Any:
    """The inputs on the model's device, in the types that they have.

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
    """The inputs on a tensor's device, in the types that they have.

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
    return pytree.tree_map_only(Tensor, lambda one: one.to(like.device), x)


def typed_as(
    x: Any,  # (batch, ...), or several such tensors in a tuple or mapping
    model: nn.Module,  # Its parameters and buffers say where to go
) -> Any:
    """The inputs on the model's device, and in its floating type if they are floating, whether it needs that or not.

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
    own, x = floating_type(model), to_model(x, model)
    return pytree.tree_map_only(Tensor, lambda one: one.to(own) if own and one.is_floating_point() else one, x)


def taken_by(
    x: Any,  # (batch, ...), or several such tensors in a tuple or mapping
    model: nn.Module,  # In eval mode, or it is not called
) -> Any:
    """The inputs on the model's device, and in its floating type only if it refuses theirs.

    Parameters
    ----------
    x : Any
        (batch, ...), or several such tensors in a tuple or mapping
    model : nn.Module
        In eval mode, or it is not called

    Returns
    -------
    Any
    """
    given, typed = to_model(x, model), typed_as(x, model)
    same = [one.dtype for one in pytree.tree_leaves(given)] == [one.dtype for one in pytree.tree_leaves(typed)]
    if same or any(module.training for module in model.modules()):
        return typed
    return given if _takes(model, given) else typed


def _takes(model: nn.Module, x: Any) -> bool:
    """Does the model take these inputs? It is called on copies, which it may change in place."""
    x = pytree.tree_map_only(Tensor, Tensor.clone, x)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(**x) if isinstance(x, Mapping) else model(*(x if isinstance(x, tuple | list) else (x,)))
    except Exception:  # whatever it is, the model does not take them
        return False
    return True
