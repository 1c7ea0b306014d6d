"""A model is left as it was found, whatever its code keeps from one call to the next.

A plain module, not a notebook: mechanism without a story. Memory banks, counters and running means are written while a
model runs. Every pass of ours starts from the state that the user's model has, and puts it back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["as_found"]

_OWN = frozenset(vars(nn.Module()))  # What every module has, hooks among them


@contextmanager
def as_found(
    model: nn.Module,  # Its buffers and plain attributes are put back
) -> Iterator[None]:
    """After the block a model has the buffers and attributes that it had before, with the numbers that they held.

    Parameters
    ----------
    model : nn.Module
        Its buffers and plain attributes are put back

    Returns
    -------
    Iterator[None]
    """
    modules = [one for one in model.modules() if not isinstance(one, torch.jit.ScriptModule)]
    kept = [(one, dict(one._buffers), _attributes(one)) for one in modules]
    held = [one for _, buffers, plain in kept for one in (*buffers.values(), *(value for value, _ in plain.values()))]
    numbers = [(one, one.detach().clone()) for one in held if isinstance(one, Tensor)]
    try:
        yield
    finally:
        for module, buffers, plain in kept:
            module._buffers.clear()
            module._buffers.update(buffers)
            _put_back(module, plain)
        for one, before in numbers:
            with torch.no_grad(), torch.inference_mode(one.is_inference()):
                one.data = before if one.data.shape != before.shape else one.data.copy_(before)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Plain attributes, and what those hold that can be changed in place."""
    own = {name: one for name, one in vars(module).items() if name not in _OWN}
    return {name: (one, copy.copy(one) if isinstance(one, list | dict | set) else None) for name, one in own.items()}


def _put_back(module: nn.Module, plain: Mapping[str, tuple[Any, Any]]) -> None:
    for name in [name for name in vars(module) if name not in _OWN and name not in plain]:
        del vars(module)[name]
    for name, (one, before) in plain.items():
        vars(module)[name] = one
        if isinstance(one, list):
            one[:] = before
        elif isinstance(one, dict | set):
            one.clear()
            one.update(before)
