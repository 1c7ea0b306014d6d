"""Inputs on the device of a model, and in its type where that is asked for; how much memory may be taken; and threads.

A plain module, not a notebook: mechanism without a story.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import joblib
import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

__all__ = [
    "check_memory",
    "check_room",
    "fitting",
    "floating_type",
    "free_memory",
    "in_threads",
    "leading",
    "room_for",
    "short_of",
    "taken_by",
    "threads",
    "to_like",
    "to_model",
    "typed_as",
    "typed_for",
]


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


def check_memory(
    memory: float | None,  # GB, above 0; None: what is free
) -> None:
    """Can so much be asked for?

    Parameters
    ----------
    memory : float | None
        GB, above 0; None: what is free

    Raises: `ValueError` if it is no number above 0.
    """
    number = isinstance(memory, int | float) and not isinstance(memory, bool)
    if memory is not None and not (number and memory > 0):
        raise ValueError(f"got memory={memory!r}: give GB above 0, such as 4, or None for what is free")


def room_for(
    memory: float | None,  # GB that may be taken, above 0; None: what is free
    device: torch.device | str = "cpu",  # Whose memory
    *,
    share: float = 1.0,  # Of what is free, where nobody said how much, above 0 to 1
) -> float:  # GB; infinite where nobody said, and the system does not tell
    """How much memory may be taken? What was asked for, where that is free; else a share of what is free.

    Parameters
    ----------
    memory : float | None
        GB that may be taken, above 0; None: what is free
    device : torch.device | str, default 'cpu'
        Whose memory
    share : float, default 1.0
        Of what is free, where nobody said how much, above 0 to 1

    Returns
    -------
    float
        GB; infinite where nobody said, and the system does not tell

    Raises: `ValueError` if `memory` is no number above 0.
    """
    check_memory(memory)
    return share * free_memory(device) if memory is None else min(memory, free_memory(device))


def short_of(
    need: float,  # GB
    memory: float | None = None,  # GB that may be taken, above 0; None: what is free
    device: torch.device | str = "cpu",  # Whose memory
    *,
    share: float = 1.0,  # Of what is free, where nobody said how much, above 0 to 1
) -> str:  # The end of a sentence on what needs it, without a full stop; '' if there is room
    """Is there too little memory for something, and how much is there?

    Parameters
    ----------
    need : float
        GB
    memory : float | None, default None
        GB that may be taken, above 0; None: what is free
    device : torch.device | str, default 'cpu'
        Whose memory
    share : float, default 1.0
        Of what is free, where nobody said how much, above 0 to 1

    Returns
    -------
    str
        The end of a sentence on what needs it, without a full stop; '' if there is room

    Raises: `ValueError` if `memory` is no number above 0.
    """
    if need <= room_for(memory, device, share=share):
        return ""
    free = free_memory(device)
    asked = "" if memory is None or memory >= free else f"memory={memory:,.3g} allows less"
    return f"about {need:,.3g} GB of memory, and {asked or f'{free:,.3g} GB are free'}"


def check_room(
    what: str,  # What needs it, as 'a graph of 5,000 edges'
    need: float,  # GB
    memory: float | None,  # GB that may be taken, above 0; None: what is free
    device: torch.device | str = "cpu",  # Whose memory
    *,
    advice: str,  # What to do if there is no room
) -> None:
    """Is there room for it? Asked before it is made: who takes more than there is, is killed without a word.

    Parameters
    ----------
    what : str
        What needs it, as 'a graph of 5,000 edges'
    need : float
        GB
    memory : float | None
        GB that may be taken, above 0; None: what is free
    device : torch.device | str, default 'cpu'
        Whose memory
    advice : str
        What to do if there is no room

    Raises: `MemoryError` if there is not; `ValueError` if `memory` is no number above 0.
    """
    if told := short_of(need, memory, device):
        raise MemoryError(f"{what} needs {told}: {advice}")


T = TypeVar("T")


def fitting(
    n_jobs: int | None,  # Threads or processes, as joblib counts them
    need: float,  # GB that each takes
    room: float,  # GB that there are for all
) -> int | None:  # The same number if there is room for so many; else as many as there is room for, from 1
    """How many workers have room beside each other?

    Parameters
    ----------
    n_jobs : int | None
        Threads or processes, as joblib counts them
    need : float
        GB that each takes
    room : float
        GB that there are for all

    Returns
    -------
    int | None
        The same number if there is room for so many; else as many as there is room for, from 1
    """
    n = joblib.effective_n_jobs(n_jobs)
    return n_jobs if n * need <= room else max(1, int(room / need))


def in_threads(
    function: Callable[[Any], T],  # Called with each of the things, in any order
    things: Sequence[Any],
    n_jobs: int | None = None,  # Threads, as joblib counts them; None leaves it to `joblib.parallel_config`, else one
    title: str = "",  # Of a progress bar; '' for none
) -> list[T]:  # In the order of the things
    """What does a function give for each of these things? Several are worked on side by side: see `threads`.

    Parameters
    ----------
    function : Callable[[Any], T]
        Called with each of the things, in any order
    things : Sequence[Any]
    n_jobs : int | None, default None
        Threads, as joblib counts them; None leaves it to `joblib.parallel_config`, else one
    title : str, default ''
        Of a progress bar; '' for none

    Returns
    -------
    list[T]
        In the order of the things
    """
    with threads(n_jobs) as each:
        return each(function, things, title)


@contextmanager
def threads(
    n_jobs: int | None = None,  # Threads, as joblib counts them; None leaves it to `joblib.parallel_config`, else one
) -> Iterator[Callable[..., list]]:  # Takes a function, things, and the title of a progress bar
    """Inside the block, what it yields gives what a function gives for each of some things, in threads side by side.

    If a number of threads is asked for, each computes with one thread of PyTorch and NumPy, and so does all else inside
    the block: results are the same bits however many there are. A thread is in the mode of autograd of its caller.

    Parameters
    ----------
    n_jobs : int | None, default None
        Threads, as joblib counts them; None leaves it to `joblib.parallel_config`, else one

    Returns
    -------
    Iterator[Callable[..., list]]
        Takes a function, things, and the title of a progress bar
    """
    n_threads = joblib.effective_n_jobs(n_jobs)
    if n_jobs is None and n_threads == 1:
        yield lambda function, things, title="": [function(one) for one in tqdm(things, desc=title, disable=not title)]
        return
    with _one_thread_each(), Parallel(n_jobs=n_threads, backend="threading", return_as="generator") as parallel:

        def each(function: Callable[[Any], Any], things: Sequence[Any], title: str = "") -> list[Any]:
            alike = partial(_alike, function, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
            found = parallel(delayed(alike)(one) for one in things)
            return list(tqdm(found, desc=title, total=len(things), disable=not title))

        yield each


def _alike(function: Callable[[Any], Any], grad: bool, inference: bool, one: Any) -> Any:
    with torch.inference_mode(inference), torch.set_grad_enabled(grad):
        return function(one)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with threadpool_limits(limits=1):  # those of NumPy, whose products differ in the last bit with their number
            yield
    finally:
        torch.set_num_threads(before)


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
