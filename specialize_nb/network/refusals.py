"""Why torch.export refuses a model, and what would lift it.

A plain module, not a notebook: words for `program`, which exports, and for the units notebook, which takes hooks then.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["how_to_lift", "unwritable", "why_refused"]


def unwritable(
    model: nn.Module,  # Any
) -> Iterator[str]:
    """Names in a model that no exported program can be written with: with a quote in them, or words of Python.

    Parameters
    ----------
    model : nn.Module
        Any

    Returns
    -------
    Iterator[str]
    """
    for prefix, module in model.named_modules():
        parts = (module.named_children(), module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        names = [name for part in parts for name, _ in part]
        bad = (name for name in names if keyword.iskeyword(name) or any(one in name for one in '"\\\n\r'))
        yield from (f"{prefix}.{name}".lstrip(".") for name in bad)


def why_refused(
    model: nn.Module,  # Any
    error: Exception | None = None,  # What torch.export raised
) -> str:
    """The cause in one sentence, without its full stop; '' if there is no error and none is to be expected.

    Parameters
    ----------
    model : nn.Module
        Any
    error : Exception | None, default None
        What torch.export raised

    Returns
    -------
    str
    """
    if isinstance(model, torch.jit.ScriptModule):
        return "it is TorchScript, compiled code that torch.export does not read"
    if names := list(unwritable(model)):
        return f"the name {names[0]!r} in it has a quote or is a word of Python, which no exported program can hold"
    if error is None:
        return ""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for told, found in (("TorchScript", _scripted(model)), ("quantized", _quantized(model))):
        if found:
            return f"module {found[0]!r} is {told}, which torch.export does not read ({reason})"
    if _packs(model) and ("FakeTensor" in reason or "pack_padded" in str(error)):
        return f"`pack_padded_sequence` cuts a batch by the lengths of its sequences ({reason})"
    return f"{reason}. Data-dependent Python control flow is the usual cause"


def how_to_lift(
    model: nn.Module,  # That torch.export refused
    error: Exception | None = None,  # What was told of it
) -> str:
    """What to change so that the wiring becomes known.

    Parameters
    ----------
    model : nn.Module
        That torch.export refused
    error : Exception | None, default None
        What was told of it

    Returns
    -------
    str
    """
    if _scripted(model):
        return "trace the `nn.Module` that it was compiled from"
    if _quantized(model):
        return "trace the model as it was before it was quantized"
    if any(unwritable(model)):
        return "rename it"
    if error is not None and "pack_padded_sequence" in str(error):
        return "give the recurrent module padded sequences, and mask what is padded"
    if error is not None and "fixes the batch size" in str(error):
        return "let nothing in it have as many rows as a batch"
    return "write `x.shape[0]` for `len(x)`, and `torch.where` for a Python `if` on values"


def _packs(model: nn.Module) -> bool:
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def _scripted(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]


def _quantized(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "quantized" in type(module).__module__]
