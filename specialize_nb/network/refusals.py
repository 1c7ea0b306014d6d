"""Why torch.export refuses a model, and what would lift it.

A plain module, not a notebook: words for `program`, which exports, and for the units notebook, which takes hooks then.
"""

from __future__ import annotations

import keyword
import linecache
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["how_to_lift", "unwritable", "why_fixed", "why_refused"]


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
    reason = reason.rstrip(".")
    return f"{reason}. {_FLOW}" if "data-dependent" in str(error) else reason


_FLOW = "Data-dependent Python control flow is the usual cause"
_LOOP = "a loop over examples is written out, once for each of them"
_ACROSS = "runs along the examples, as it does without `batch_first=True`"
_LEN = "`len(x)` is a plain number, which is taken for a constant"
_CONSTANT = "compute shapes from `x.shape`, not from constants"


def why_fixed(
    model: nn.Module,  # Whose batch size torch.export took for a constant
    n: int | str,  # Which
    export: Callable[[], Any],  # Exports it once more, so that the line can be seen
) -> str:
    """Where does a model's code fix the batch size, and by what?

    Parameters
    ----------
    model : nn.Module
        Whose batch size torch.export took for a constant
    n : int | str
        Which
    export : Callable[[], Any]
        Exports it once more, so that the line can be seen

    Returns
    -------
    str
    """
    line, across = _line_that_fixes(export)
    why = _LOOP if re.search(r"\bfor\b", line) else _LEN if re.search(r"\blen\(", line) else _CONSTANT
    why = f"`nn.{across}` {_ACROSS}" if across else why
    where = f" in `{line[:100]}`" if line else ""
    return f"the code of {type(model).__name__} fixes the batch size at {n}{where}: {why}"


class _Listener(logging.Handler):
    """Keeps the first line of a model's code that makes torch.export take a size for a constant."""

    found = "", ""

    def emit(self, record: logging.LogRecord) -> None:
        if self.found == ("", "") and re.match(r"set_replacement \S+ = \d+ ", record.getMessage()):
            self.found = _line_of(sys._getframe())


def _line_that_fixes(export: Callable[[], Any]) -> tuple[str, str]:
    """What torch logs is the only sign of it, and the model's code is running then; empty if it gives none."""
    log, heard = logging.getLogger("torch.fx.experimental.symbolic_shapes"), _Listener()
    before, handlers = (log.level, log.propagate), list(log.handlers)
    try:
        log.handlers[:], log.propagate = [heard], False
        log.setLevel(logging.INFO)
        export()
    except Exception:  # then it is not told where
        return "", ""
    finally:
        log.handlers[:], log.propagate = handlers, before[1]
        log.setLevel(before[0])
    return heard.found


def _line_of(frame: FrameType | None) -> tuple[str, str]:
    """The innermost line of a module's method that is not torch's own, and the recurrent module that it calls."""
    across = ""
    while frame is not None:
        code, own = frame.f_code, frame.f_code.co_varnames[:1]
        module = frame.f_locals.get(own[0]) if own else None
        if isinstance(module, nn.RNNBase) and _runs_along_examples(module, frame.f_locals.get("input")):
            across = type(module).__name__
        if isinstance(module, nn.Module) and not code.co_filename.startswith(_TORCH):
            return linecache.getline(code.co_filename, frame.f_lineno).strip(), across
        frame = frame.f_back
    return "", across


def _runs_along_examples(module: nn.RNNBase, given: Any) -> bool:
    """Is the axis of its steps the batch's, whose size alone is no plain number?"""
    steps = 1 if module.batch_first and isinstance(given, Tensor) and given.ndim == 3 else 0
    return isinstance(given, Tensor) and isinstance(given.shape[steps], torch.SymInt)


_TORCH = os.path.dirname(torch.__file__)


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
    known = (advice for sign, advice in _ADVICE.items() if sign in str(error))
    return next(known, "write `x.shape[0]` for `len(x)`, and `torch.where` for a Python `if` on values")


_ADVICE = {  # What an error says -> what to do
    _LOOP: "write what it does for an example as operations on the whole batch, or with `torch.vmap`",
    _ACROSS: "give `batch_first=True`, or lay its input out as (steps, examples, numbers)",
    _LEN: "write `x.shape[0]` for `len(x)`",
    "fixes the batch size": "let nothing in it have as many rows as a batch",
    _FLOW: "write `torch.where` for a Python `if` on values",
    "says something else": "let it need neither the batch's size, nor earlier calls, nor numbers drawn outside torch",
    ".numpy()": "write with operations of torch what it does in NumPy",
    "not a known type": "let its `forward` take and return tensors alone, or tuples, lists and dicts of them",
    "fake tensor in the exported": "write without `.data` and without tensors that it makes and keeps as it runs",
}


def _packs(model: nn.Module) -> bool:
    return any(isinstance(module, nn.RNNBase) for module in model.modules())


def _scripted(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]


def _quantized(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "quantized" in type(module).__module__]
