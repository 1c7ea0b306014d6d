"""Inputs on the device of a model, and in its type where that is asked for; and how much memory a device has left.

A plain module, not a notebook: mechanism without a story.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["floating_type", "free_memory", "leading", "taken_by", "to_like", "to_model", "typed_as", "typed_for"]


def free_memory(
    device: torch.device | str = "cpu",  # Whose memory
) -> float:  # GB; infinite where the system does not tell
    """How much memory can still be taken? What torch holds on a GPU without need counts as free.

    Parameters
    ----------
    device : torch.device | str, default 'cpu'
        Whose memory

    Returns
    -------
    float
        GB; infinite where the system does not tell
    """
    if torch.device(device).type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + idle) / 1e9
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return math.inf


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
    return typed_for(model)(x)


def typed_for(
    model: nn.Module,  # Its parameters and buffers
) -> Callable[[Any], Any]:
    """A function that does to inputs what `typed_as` does, for those who ask often: the model is looked at once.

    Parameters
    ----------
    model : nn.Module
        Its parameters and buffers

    Returns
    -------
    Callable[[Any], Any]
    """
    own, like = floating_type(model), leading(model)
    placed = any(True for _ in (*model.parameters(), *model.buffers()))

    def typed(x: Any) -> Any:
        x = to_like(x, like) if placed else x
        return pytree.tree_map_only(Tensor, lambda one: one.to(own) if own and one.is_floating_point() else one, x)

    return typed


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
