"""Long runs: blocks of work on one process, many, or a cluster; each finished block is on disk, and none is done twice.

A plain module, not a notebook: `nbs/tutorials/several_machines.ipynb` shows how it is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from io import BytesIO
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any
from uuid import uuid4

import cloudpickle
import joblib
import numpy as np
import pandas as pd
import torch
from joblib.externals.loky import get_reusable_executor
from joblib.parallel import get_active_backend
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm.auto import tqdm

from specialize_nb.base.files import read_result, write_atomic, write_result

__all__ = ["Block", "Store", "content_hash", "run_blocks"]

_ROUNDS = 3  # how often the blocks of dead workers are tried
_SUSPECTS = 3  # blocks that Dask gives up until all others are stopped: then it may be none of them
_LEFTOVER = 3600  # seconds after which an unfinished file has no writer any more: writing one takes seconds
_FORMAT = 1

Arrays = dict[str, np.ndarray]


# What makes the numbers of a run


def content_hash(
    *things: Any,  # Strings, bytes, numbers, None; arrays, tensors, data frames; sequences and mappings of these
) -> str:  # 64 hex digits
    """One name for what these things hold: the same in every process, on every machine and device.

    Equal numbers of Python and NumPy have one name, tuples and lists too; the order of a mapping does not count.

    Parameters
    ----------
    *things : Any
        Strings, bytes, numbers, None; arrays, tensors, data frames; sequences and mappings of these

    Returns
    -------
    str
        64 hex digits

    Raises: `TypeError` for anything else, whose content cannot be known.
    """
    return _digest(things).hex()


def _tagged(tag: str, *parts: Any) -> bytes:  # parts: bytes, or arrays of them
    return hashlib.sha256(b"".join([hashlib.sha256(part).digest() for part in (tag.encode(), *parts)])).digest()


def _digest(thing: Any) -> bytes:
    if isinstance(thing, np.generic):
        return _digest(thing.item()) if thing.dtype.kind in "biufcSU" else _of_array(np.asarray(thing))
    if thing is None or isinstance(thing, bool | int | complex):
        kind = bool if isinstance(thing, bool) else int if isinstance(thing, int) else type(thing)
        return _tagged(kind.__name__, repr(thing if thing is None else kind(thing)).encode())
    if isinstance(thing, float):
        return _tagged("float", float(thing).hex().encode())
    if isinstance(thing, str):
        return _tagged("str", str.__str__(thing).encode("utf-8", "surrogatepass"))
    if isinstance(thing, bytes | bytearray):
        return _tagged("bytes", bytes(thing))
    if isinstance(thing, Tensor):
        return _of_tensor(thing)
    if type(thing) in (np.ndarray, np.memmap):
        return _of_array(thing)
    if isinstance(thing, Mapping):
        return _tagged("mapping", *sorted(_digest(key) + _digest(value) for key, value in thing.items()))
    if isinstance(thing, tuple | list):
        return _tagged("sequence", *map(_digest, thing))
    if isinstance(thing, pd.DataFrame):
        columns = [thing.index.to_series(), *(thing.iloc[:, i] for i in range(thing.shape[1]))]
        return _tagged("frame", _digest(list(thing.columns)), *map(_of_column, columns))
    raise TypeError(
        f"no content hash of a {type(thing).__module__}.{type(thing).__qualname__}: give the numbers, strings, arrays "
        "or tensors that it is made of (of a model, its `state_dict()`)"
    )


def _of_array(array: np.ndarray) -> bytes:
    if array.dtype.kind not in "biufcSUmM" or array.dtype.char in "gG":
        raise TypeError(f"no content hash of an array of {array.dtype}: give arrays of numbers or strings")
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    content = little.reshape(-1).view(np.uint8)
    return _tagged("array", little.dtype.str.encode(), repr(array.shape).encode(), content)


def _of_tensor(tensor: Tensor) -> bytes:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise TypeError(f"no content hash of a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    content = plain.reshape(-1).view(torch.uint8).numpy()
    return _tagged("tensor", str(tensor.dtype).encode(), repr(tuple(tensor.shape)).encode(), content)


def _of_column(column: pd.Series) -> bytes:
    values = column.to_numpy()
    return _tagged("column", str(column.dtype).encode(), _digest(list(values) if values.dtype == object else values))


# Blocks on disk


@dataclass(frozen=True)
class Block:
    """A piece of a run that is computed, and kept, as a whole.

    Attributes
    ----------
    key : str
        Content hash of all that makes its numbers and is not in the identity of the run
    arguments : tuple
        What the function is given after `shared`; small
    cost : float
        In passes, for the bar of progress and for sharing passes
    group : str
        Blocks of one group can be computed together; '' is alone
    """

    key: str  # Content hash of all that makes its numbers and is not in the identity of the run
    arguments: tuple = field(compare=False, repr=False)  # What the function is given after `shared`; small
    cost: float = field(default=1.0, compare=False)  # In passes, for the bar of progress and for sharing passes
    group: str = field(default="", compare=False)  # Blocks of one group can be computed together; '' is alone


class Store:
    """A folder that keeps the finished blocks of runs, each run in a folder of its own.

    A run is known by its identity: names of what makes its numbers, with a content hash each. Blocks of one identity
    are never read by another.

    Parameters
    ----------
    path : str | Path
        Made when the first block is kept
    identity : Mapping[str, str]
        As {'model': content_hash(...), 'data': ..., 'settings': ...}

    Warns: `RuntimeWarning` if there are runs here, but none of this identity.
    """

    def __init__(
        self,
        path: str | Path,  # Made when the first block is kept
        identity: Mapping[str, str],  # As {'model': content_hash(...), 'data': ..., 'settings': ...}
    ):
        self.path, self.identity = Path(path), {str(name): str(value) for name, value in identity.items()}
        self.run = content_hash(self.identity)[:32]
        self.folder, self._prepared = self.path / self.run, False
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{str(self.path)!r} is a file; a store is a folder")
        if not (self.folder / "run.json").exists() and (others := self._others()):
            self._warn(*min(others, key=lambda other: (len(other[0]), -other[1])))

    def _others(self) -> list[tuple[list[str], int]]:
        """Of each run that holds blocks: the parts of its identity that differ, and how many blocks."""
        found = []
        for path in sorted(self.path.glob("*/run.json")):
            try:
                known = dict(json.loads(path.read_text(encoding="utf-8"))["identity"])
            except (OSError, ValueError, TypeError, KeyError):
                continue  # no run of ours, or a damaged one: nothing can be said of it
            names = [*self.identity, *(name for name in known if name not in self.identity)]
            differing = [name for name in names if known.get(name) != self.identity.get(name)]
            if differing and (kept := len(list(path.parent.glob("*.npz")))):
                found.append((differing, kept))
        return found

    def _warn(self, differing: list[str], kept: int) -> None:
        *first, last = differing
        names, verb = (f"{', '.join(first)} and {last}", "differ") if first else (last, "differs")
        whose = f"its {kept} blocks are" if kept > 1 else "its one block is"
        warnings.warn(
            f"the {names} {verb} from the run kept in {str(self.path)!r}: {whose} left alone, this run starts anew",
            RuntimeWarning,
            stacklevel=3,
        )

    def _file(self, key: str) -> Path:
        if not re.fullmatch(r"\w[\w.-]{0,127}", key, re.ASCII):
            raise ValueError(f"{key!r} cannot name a block: use letters, digits, '_', '-', '.', 128 at most")
        return self.folder / f"{key}.npz"

    @property
    def n_kept(self) -> int:
        """How many blocks of this run are on disk?"""
        return len(list(self.folder.glob("*.npz")))

    def prepare(self) -> None:
        """Make the folder, see that it can be written to, clear what killed writers left.

        Raises: `OSError` if nothing can be written there.
        """
        content = json.dumps({"format": _FORMAT, "identity": self.identity}, indent=1) + "\n"
        try:
            now = write_atomic(self.folder / "run.json", content.encode()).stat().st_mtime
        except OSError as error:
            told = f"cannot write to {str(self.folder)!r} ({error.strerror or error}): choose a folder that can be"
            raise OSError(error.errno, told) from error
        for left in self.folder.glob(".*"):  # `write_atomic` names what is unfinished so
            try:
                if now - left.stat().st_mtime > _LEFTOVER:
                    left.unlink()
            except OSError:
                pass  # another process was quicker
        self._prepared = True

    def get(
        self,
        key: str,  # Of the block
    ) -> Arrays | None:
        """The arrays of a block, or None if it is not kept.

        Parameters
        ----------
        key : str
            Of the block

        Returns
        -------
        Arrays | None

        Warns: `RuntimeWarning` if its file is damaged: it counts as not kept.
        """
        path = self._file(key)
        try:
            arrays, fields = read_result(path, "Block")
            if fields != {"key": key, "run": self.run}:
                raise ValueError(f"{str(path)!r} is the block of another run")
        except FileNotFoundError:
            return None
        except ValueError as error:
            warnings.warn(f"{error}; this block is computed again", RuntimeWarning, stacklevel=3)
            return None
        return arrays

    def put(
        self,
        key: str,  # Of the block: letters, digits, '_', '-', '.', 128 at most
        arrays: Mapping[str, np.ndarray],  # What it gave, by name
    ) -> None:
        """Keep a block: whole, or not at all.

        Parameters
        ----------
        key : str
            Of the block: letters, digits, '_', '-', '.', 128 at most
        arrays : Mapping[str, np.ndarray]
            What it gave, by name
        """
        path = self._file(key)
        if not self._prepared:
            self.prepare()
        write_result(path, "Block", arrays, {"key": key, "run": self.run})

    def __repr__(self) -> str:
        return f"Store({self.n_kept} blocks of run {self.run[:8]})"


# What a worker does


def _checked(result: Any) -> Arrays:
    """What a block gave, as it would come back from disk."""
    if not isinstance(result, Mapping):
        raise TypeError(f"a block has to give a dict of arrays, not a {type(result).__name__}")
    arrays = {name: np.asarray(array) for name, array in result.items()}
    if wrong := [name for name, array in arrays.items() if not isinstance(name, str) or array.dtype.hasobject]:
        raise TypeError(f"a block gave {wrong}, which cannot be kept: names are strings, arrays hold no Python objects")
    return arrays


_Settings = tuple[torch.dtype, str]


def _settings() -> _Settings:
    """What changes numbers, and is a setting of the process."""
    return torch.get_default_dtype(), torch.get_float32_matmul_precision()


@contextmanager
def _alike(settings: _Settings) -> Iterator[None]:
    """One thread and these settings inside the block, so that numbers are the same everywhere; as before afterwards."""
    threads, before = torch.get_num_threads(), _settings()
    try:
        torch.set_num_threads(1)
        _set(settings)
        with threadpool_limits(limits=1):  # those of NumPy, whose products differ in the last bit with their number
            yield
    finally:
        torch.set_num_threads(threads)
        _set(before)


def _set(settings: _Settings) -> None:
    dtype, precision = settings
    torch.set_default_dtype(dtype)
    if precision != torch.get_float32_matmul_precision():
        torch.set_float32_matmul_precision(precision)


class _WorkerTraceback(Exception):
    """Where it happened in the worker; shown as the cause of an error."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass
class _Failure:
    error: Exception
    where: str  # traceback in the worker


def _failure(error: Exception) -> _Failure:
    where = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:  # an error that cannot travel would look like a dead worker
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return _Failure(error, where)


_OPENING = threading.Lock()


@lru_cache(maxsize=1)
def _slot(digest: str) -> list:
    return []


def _open(digest: str, parcel: np.ndarray) -> tuple[Callable, Any]:
    """The function and what all its blocks share: unpickled once in each worker."""
    with _OPENING:
        slot = _slot(digest)
        if not slot:
            slot.append(pickle.loads(memoryview(parcel)))
    return slot[0]


def _work(place: int, arguments: bytes, digest: str, parcel: np.ndarray, settings: _Settings) -> tuple[int, Any]:
    """One bundle of blocks in a worker: its place, and what each gave or why it failed."""
    try:
        function, shared = _open(digest, parcel)
        with _alike(settings):
            return place, [_checked(one) for one in function(shared, pickle.loads(arguments))]
    except Exception as error:
        return place, _failure(error)


def _work_here(place: int, arguments: list[tuple], function: Callable, shared: Any) -> tuple[int, Any]:
    """One bundle of blocks in a thread of this process."""
    try:
        with _alike(_settings()):
            return place, [_checked(one) for one in function(shared, arguments)]
    except Exception as error:
        return place, _Failure(error, "")


class _OnDevice(Exception):
    """What the blocks share is on a device that processes of one machine cannot have twice."""


class _Pickler(cloudpickle.Pickler):
    """Refuses tensors that are not in the memory of the CPU."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) and obj.device.type != "cpu":
            raise _OnDevice
        return super().reducer_override(obj)


def _parcel(function: Callable, shared: Any, any_device: bool) -> np.ndarray:
    """Function and what blocks share, pickled into one array: joblib maps large arrays, and ships them once."""
    buffer = BytesIO()
    (cloudpickle.Pickler if any_device else _Pickler)(buffer, protocol=5).dump((function, shared))
    return np.frombuffer(buffer.getbuffer(), dtype=np.uint8)


# The parent


@dataclass
class _Run:
    """What is done of a run, and what is left."""

    blocks: dict[str, Block]  # by key, each once
    store: Store | None
    bar: Any
    most: float = 0.0  # cost of the blocks of one bundle, but for a block that costs more alone
    found: dict[str, Arrays] = field(default_factory=dict)

    @property
    def left(self) -> list[Block]:
        return [block for key, block in self.blocks.items() if key not in self.found]

    @property
    def bundles(self) -> list[list[Block]]:
        """What is left, in pieces that are computed by one call: neighbours of one group, as many as cost little."""
        found: list[list[Block]] = []
        for block in self.left:
            last = found[-1] if found else []
            alike = block.group and last and last[0].group == block.group
            if alike and sum(one.cost for one in last) + block.cost <= self.most:
                last.append(block)
            else:
                found.append([block])
        return found

    @property
    def so_far(self) -> str:
        if self.store is None:
            return f"{len(self.found)} of {len(self.blocks)} blocks were done, and are lost: give a store to keep them"
        return f"{len(self.found)} of {len(self.blocks)} blocks are kept in {str(self.store.folder)!r}"

    def keep(self, block: Block, arrays: Arrays) -> None:
        if self.store is not None:
            try:
                self.store.put(block.key, arrays)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                told = "the disk is full" if full else f"a block cannot be written ({error.strerror or error})"
                then = "free space" if full else "mend that"
                raise OSError(error.errno, f"{told}: {self.so_far}; {then} and run the same call again") from error
        self.found[block.key] = arrays
        self.bar.update(block.cost)


def run_blocks(
    function: Callable[..., Mapping[str, np.ndarray]],  # Called as `function(shared, *block.arguments)`
    shared: Any,  # What all blocks need: a model, data; sent to each worker once
    blocks: Sequence[Block],  # Blocks of one key are computed once
    *,
    together: Callable[..., Sequence[Mapping[str, np.ndarray]]]
    | None = None,  # `together(shared, [block.arguments, ...])`
    most: float = 0.0,  # Blocks of one group that cost no more are computed by one call of `together`
    store: Store | None = None,  # Where finished blocks are kept, and taken from
    n_jobs: int | None = None,  # Processes; None leaves it to `joblib.parallel_config`, else this one
    progress: bool = False,  # Show a progress bar?
    description: str = "",  # Title of the bar
) -> list[Arrays]:  # What each block gave, in their order
    """What does every block give? Computed once, by one process, many, or a cluster, with the same bits.

    Each block runs with one torch thread. What is not in the memory of the CPU stays in this process, unless Dask has
    workers with devices of their own.

    Parameters
    ----------
    function : Callable[..., Mapping[str, np.ndarray]]
        Called as `function(shared, *block.arguments)`
    shared : Any
        What all blocks need: a model, data; sent to each worker once
    blocks : Sequence[Block]
        Blocks of one key are computed once
    together : Callable[..., Sequence[Mapping[str, np.ndarray]]] | None, default None
        `together(shared, [block.arguments, ...])`
    most : float, default 0.0
        Blocks of one group that cost no more are computed by one call of `together`
    store : Store | None, default None
        Where finished blocks are kept, and taken from
    n_jobs : int | None, default None
        Processes; None leaves it to `joblib.parallel_config`, else this one
    progress : bool, default False
        Show a progress bar?
    description : str, default ''
        Title of the bar

    Returns
    -------
    list[Arrays]
        What each block gave, in their order

    Raises: what `function` raises; `OSError` if a block cannot be kept; `RuntimeError` if workers go on dying.
    Warns: `RuntimeWarning` if workers died and their blocks are tried again, or a block on disk is damaged.
    """
    blocks = list(blocks)
    costs = sum({block.key: block.cost for block in blocks}.values())
    with tqdm(total=costs, desc=description, unit="pass", disable=not progress) as bar:
        run = _Run({block.key: block for block in blocks}, store, bar, most if together else 0.0)
        if store is not None:
            for block in run.blocks.values():
                if (kept := store.get(block.key)) is not None:
                    run.found[block.key] = kept
            bar.initial = bar.n = sum(run.blocks[key].cost for key in run.found)
            bar.refresh()
        if run.left:
            if store is not None:
                store.prepare()
            _compute(run, together or _One(function), shared, n_jobs, description)
    return [run.found[block.key] for block in blocks]


@dataclass(frozen=True)
class _One:
    """A function of one block as one of several."""

    function: Callable

    def __call__(self, shared: Any, several: Sequence[tuple]) -> list[Any]:
        return [self.function(shared, *arguments) for arguments in several]


def _compute(run: _Run, function: Callable, shared: Any, n_jobs: int | None, description: str) -> None:
    backend, _ = get_active_backend()
    if n_jobs != 1 and getattr(backend, "client", None) is not None:  # of Dask
        with backend.retrieval_context():  # a block of Dask's that asks for blocks frees its thread for them
            return _on_cluster(run, backend, function, shared, description or "blocks")
    if joblib.effective_n_jobs(n_jobs) == 1 or len(run.bundles) == 1:
        return _in_order(run, function, shared)
    if getattr(backend, "supports_sharedmem", False):
        with _alike(_settings()):
            return _rounds(run, partial(_one_round, run, n_jobs, _work_here, _arguments, (function, shared)))
    _end_workers_with(os.getpid())
    try:
        parcel = _parcel(function, shared, any_device=False)
    except _OnDevice:
        return _in_order(run, function, shared)
    same = (hashlib.sha256(parcel).hexdigest(), parcel, _settings())
    _rounds(run, partial(_one_round, run, n_jobs, _work, _packed, same))


def _packed(bundle: Sequence[Block]) -> bytes:
    """Arguments as bytes, of functions of the user's too."""
    return cloudpickle.dumps(_arguments(bundle))


@lru_cache(maxsize=1)
def _end_workers_with(process: int) -> None:
    """Idle workers would keep a process of somebody's pool from ending for minutes."""
    Finalize(None, _end_workers, exitpriority=100)


def _end_workers() -> None:
    get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


def _in_order(run: _Run, function: Callable, shared: Any) -> None:
    with _alike(_settings()):
        for bundle in run.bundles:
            for block, found in zip(bundle, function(shared, _arguments(bundle)), strict=True):
                run.keep(block, _checked(found))


def _arguments(bundle: Sequence[Block]) -> list[tuple]:
    return [block.arguments for block in bundle]


def _rounds(
    run: _Run,
    one_round: Callable[[], _Failure | None],  # Computes what is left, keeps it, says what failed
) -> None:
    """Run what is left; and again, if workers died of it."""
    for attempt in range(1, _ROUNDS + 1):
        try:
            failure = one_round()
            break
        except (BrokenProcessPool, CancelledError) as error:  # loky's errors are kinds of the first
            told = f"a worker died ({type(error).__name__}: killed, or out of memory?)"
        if attempt == _ROUNDS:
            raise RuntimeError(
                f"{told} in each of {_ROUNDS} rounds: {run.so_far}. See what kills them (if memory: fewer jobs, "
                "smaller blocks), and run the same call again"
            )
        again = f"{len(run.left)} of {len(run.blocks)} blocks are tried again, round {attempt + 1} of {_ROUNDS}"
        warnings.warn(f"{told}: {again}", RuntimeWarning, stacklevel=4)
    _raise(failure)


def _raise(failure: _Failure | None) -> None:
    if failure is not None:
        raise failure.error from (_WorkerTraceback(failure.where) if failure.where else None)


def _one_round(
    run: _Run, n_jobs: int | None, work: Callable, own: Callable[[Sequence[Block]], Any], same: tuple
) -> _Failure | None:
    """Keep every block the moment it arrives; stop at the first that failed. Calls `work(i, own(bundle), *same)`."""
    bundles = run.bundles
    parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
    tasks = (joblib.delayed(work)(place, own(bundle), *same) for place, bundle in enumerate(bundles))
    with _ended(parallel(tasks)) as answers:
        for place, answer in answers:
            if isinstance(answer, _Failure):
                return answer
            _keep(run, bundles[place], answer)
    return None


def _keep(run: _Run, bundle: Sequence[Block], answer: Sequence[Arrays]) -> None:
    for block, found in zip(bundle, answer, strict=True):
        run.keep(block, found)


@contextmanager
def _ended(answers: Iterator) -> Iterator[Iterator]:
    """No block runs on after the block of code."""
    try:
        yield answers
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* have been cancelled", UserWarning)  # of joblib: it is meant
            answers.close()


# A cluster of Dask


def _itself(parcel: np.ndarray) -> np.ndarray:
    return parcel


@dataclass(frozen=True)
class _Cluster:
    """Where blocks are sent, and what each is sent with."""

    client: Any
    options: Mapping[str, Any]  # that `joblib.parallel_config` was given for each task: priority, resources
    name: str  # of the tasks, on Dask's own page
    digest: str
    parcel: Any  # Dask's promise of it
    size: int  # bytes of the parcel
    settings: _Settings

    def submit(self, bundle: Sequence[Block]) -> Any:
        """Dask's promise of what one bundle gives."""
        given = (0, _packed(bundle), self.digest, self.parcel, self.settings)
        return self.client.submit(_work, *given, key=f"{self.name}-{uuid4().hex}", pure=False, **self.options)

    def spread(self, n: int) -> None:
        """Give what blocks share to as many workers, if there are: else few blocks would all go to the one that has it.

        Raises: `RuntimeError` if they cannot take it.
        """
        import distributed

        distributed.wait([self.parcel])
        if self.parcel.status == "error":
            error = self.parcel.exception()
            need = "more memory" if isinstance(error, distributed.KilledWorker) else "this package, in these versions"
            told = f"workers cannot take the {self.size:,} bytes that blocks share ({type(error).__name__}: {error})"
            raise RuntimeError(f"{told}: they need {need}") from error
        if n > 1 and len(self.client.ncores()) > 1:
            self.client.replicate([self.parcel], n=n)


def _on_cluster(run: _Run, backend: Any, function: Callable, shared: Any, name: str) -> None:
    """Every block is a task of its own, of which Dask is told at once: a cluster may have few workers yet, and grow.

    So is what blocks share. Scattered, as joblib would send it, it is gone with the worker that holds it, and the run
    with it; what a task gives is made again.
    """
    import dask

    joblib.effective_n_jobs()  # waits for a first worker, and says so if none comes
    parcel = _parcel(function, shared, any_device=True)
    digest = hashlib.sha256(parcel).hexdigest()
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
        sent = backend.client.submit(_itself, parcel, key=f"shared-{digest}", pure=True)
    name = name.replace(" ", "-") or "blocks"
    cluster = _Cluster(backend.client, backend.submit_kwargs, name, digest, sent, parcel.nbytes, _settings())
    try:
        cluster.spread(len(run.bundles))
        _rounds(run, partial(_cluster_round, run, cluster))
    finally:
        sent.release()  # an error that is looked at would hold it, and workers the memory


def _cluster_round(run: _Run, cluster: _Cluster) -> _Failure | None:
    """Keep every block the moment it arrives; stop at the first that failed.

    Dask gives a block up that has been on several workers that died. Some may only have waited there: so each is
    tried alone.
    """
    failure = None
    while run.left and failure is None:
        suspects, failure = _collected(run, cluster, run.bundles)
        if suspects and failure is None:
            told = f"{len(suspects)} of {len(run.blocks)} blocks were on workers that died (killed, or out of memory?)"
            warnings.warn(f"{told}: they are tried again, one at a time", RuntimeWarning, stacklevel=6)
        for block in suspects:
            guilty, failure = ({}, failure) if failure else _collected(run, cluster, [[block]])
            for error in guilty.values():
                raise RuntimeError(_accused(run, cluster, block, error.allowed_failures + 1)) from error
    return failure


def _accused(run: _Run, cluster: _Cluster, block: Block, times: int) -> str:
    place = f" of {block.group}" if block.group else ""
    return (
        f"a worker died that had only block {block.key}{place} to compute, {times} times: {run.so_far}. See what kills "
        "them (if memory: fewer threads a worker, smaller batches of data; what blocks share takes "
        f"{cluster.size:,} bytes of each), and run the same call again"
    )


def _collected(
    run: _Run, cluster: _Cluster, bundles: Sequence[list[Block]]
) -> tuple[dict[Block, Exception], _Failure | None]:
    """Blocks that were on workers that died, too often; and the first failure."""
    from distributed import KilledWorker, as_completed

    suspects: dict[Block, Exception] = {}
    left = {cluster.submit(bundle): bundle for bundle in bundles}
    try:
        for task in as_completed(list(left)):
            try:
                _, answer = task.result()
            except KilledWorker as error:
                suspects |= dict.fromkeys(left.pop(task), error)
                if len(suspects) >= _SUSPECTS:
                    break
                continue
            if isinstance(answer, _Failure):
                return suspects, answer
            _keep(run, left[task], answer)
            del left[task]
    finally:
        cluster.client.cancel(list(left))  # no block runs on after this, nor keeps what it gave
    return suspects, None
