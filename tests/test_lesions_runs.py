"""Long runs: whatever dies, is damaged or is interrupted, the numbers are those of a run that nothing happened to."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from specialize_nb.base import files
from specialize_nb.lesions import runs
from specialize_nb.lesions.runs import Block, Store, content_hash, run_blocks

HERE, IDENTITY = Path(__file__).parent, {"model": "m1", "data": "d1", "settings": "s1"}
PATIENCE = 600  # seconds until what is waited for is taken never to come, however busy the machine is


def wait_until(happens):
    """Come back as soon as `happens()` is true."""
    limit = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < limit, f"waited {PATIENCE} seconds in vain"
        time.sleep(0.002)


def network():
    generator = torch.Generator().manual_seed(0)
    model = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval().requires_grad_(False)
    )
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model, torch.randn(32, 3, 8, 8, generator=generator)


def scores(shared, group, pause=0.0):
    """What one group scores; with `pause` None it is never told, so that whoever asks can be interrupted or killed."""
    model, x = shared
    while pause is None:
        time.sleep(0.01)
    time.sleep(pause)
    with torch.inference_mode():
        hidden = model[1](model[0](x)) * torch.as_tensor(group)[:, None, None]
        return {"scores": model[3](model[2](hidden)).numpy(), "kept": np.asarray(group)}


def work(n=20, pause=0.0, free=None, more=()):
    """`n` blocks, always the same ones; those from place `free` on never end."""
    groups = [np.random.default_rng(i).random(8) < 0.7 for i in range(n)]
    pauses = [pause if free is None or i < free else None for i in range(n)]
    return [Block(content_hash(i, group), (group, pauses[i], *more), 2.0) for i, group in enumerate(groups)]


def content(results):
    """Every bit of it, with names, types and shapes."""
    return [[(name, a.dtype.str, a.shape, a.tobytes()) for name, a in result.items()] for result in results]


def generators():
    """The state of those that belong to the user."""
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()  # noqa: NPY002


@pytest.fixture(scope="module")
def expected():
    return content(run_blocks(scores, network(), work()))


# Content


def test_content_is_what_counts_and_all_of_it():
    x = np.arange(6.0).reshape(2, 3)
    same = [
        (x, np.asfortranarray(x), x.astype(">f8"), np.arange(12.0).reshape(2, 6)[:, :3] * 0 + x),
        (1, np.int64(1), np.uint8(1)),
        (0.5, np.float32(0.5)),
        ([1, "a"], (1, "a")),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (torch.tensor([1.0]), nn.Parameter(torch.tensor([1.0])), torch.tensor([0.0, 1.0])[1:]),
        (torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)),
        (pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1, 2]}, index=[0, 1])),
    ]
    for group in same:
        assert len({content_hash(one) for one in group}) == 1, group
    other = [one[0] for one in same] + [
        x.T, x.astype("f4"), x.ravel(), x + 0.0 * 1j, -x, np.zeros((2, 0)), np.zeros((0, 2)), np.array(["a", "b"]),
        True, 1.0, -0.0, 0.0, float("nan"), float("inf"), 1j, None, "1", b"1", "", [], [[]], [[], []], ["ab"], ["a", "b"],
        {}, {"a": 2, "b": 1}, torch.tensor(1.0), torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1]),
        torch.tensor([True]), torch.tensor([1 + 2j]), torch.tensor([1 + 2j]).conj(), torch.zeros(0),
        pd.DataFrame({"b": [1, 2]}), pd.DataFrame({"a": ["1", "2"]}), pd.DataFrame({"a": [1, 2]}, index=[1, 0]),
        np.array("2026-11-21", "M8[D]"),
    ]  # fmt: skip
    assert len({content_hash(one) for one in other}) == len(other)
    assert content_hash("ab", "c") != content_hash("a", "bc") and content_hash(1) != content_hash(1, None)


def test_content_is_named_alike_by_other_processes_and_in_time():
    things = {"w": np.arange(3), "t": torch.ones(2, dtype=torch.bfloat16), "k": (1, 0.1, None, b"x", True)}
    assert content_hash(things) == "33a85e8f7f58a0911096f02ed0d8dbd1e4d35cd36528bcbc1b380e6785779e9f"


def test_what_has_no_known_content_is_refused():
    for thing in (object(), nn.Linear(1, 1), {1, 2}, np.array([{}]), torch.ones(1, device="meta"), [lambda: 0]):
        with pytest.raises(TypeError, match="no content hash of a"):
            content_hash(thing)


# The store


def test_a_block_comes_back_as_it_went(tmp_path):
    store = Store(tmp_path / "runs", IDENTITY)
    arrays = {"a": np.array([np.nan, -0.0]), "b": np.zeros((0, 2), np.int8), "c": np.array(True)}
    assert store.get("k") is None and store.n_kept == 0 and not store.path.exists()
    store.put("k", arrays)
    assert content([Store(tmp_path / "runs", IDENTITY).get("k")]) == content([arrays]) and store.n_kept == 1
    assert repr(store) == f"Store(1 blocks of run {store.run[:8]})"
    for key in ("../k", "", ".k", "a/b", "k\n"):
        with pytest.raises(ValueError, match="cannot name a block"):
            store.put(key, arrays)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file; a store is a folder"):
        Store(tmp_path / "file", IDENTITY)


def test_another_identity_is_told_and_nothing_mixed(tmp_path):
    run_blocks(scores, network(), work(3), store=Store(tmp_path, IDENTITY))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Store(tmp_path, dict(reversed(IDENTITY.items()))).n_kept == 3
    changed = {**IDENTITY, "model": "m2", "settings": "s2"}
    with pytest.warns(RuntimeWarning, match=r"the model and settings differ from .* its 3 blocks are left alone"):
        other = Store(tmp_path, changed)
    assert other.n_kept == 0 and other.get(work(1)[0].key) is None
    run_blocks(scores, network(), work(1), store=other)
    with pytest.warns(
        RuntimeWarning, match=r"the settings differs from .* its one block is left alone, this run starts"
    ):
        Store(tmp_path, {**changed, "settings": "s3"})  # the nearest is told
    with pytest.warns(RuntimeWarning, match="the version differs"):
        Store(tmp_path, {**IDENTITY, "version": "2"})
    assert Store(tmp_path, IDENTITY).n_kept == 3
    os.replace(other._file(work(1)[0].key), Store(tmp_path, IDENTITY)._file(work(1)[0].key))
    with pytest.warns(RuntimeWarning, match="is the block of another run; this block is computed again"):
        assert Store(tmp_path, IDENTITY).get(work(1)[0].key) is None


def test_damaged_blocks_are_computed_again(tmp_path, expected):
    store, blocks = Store(tmp_path, IDENTITY), work()
    run_blocks(scores, network(), blocks, store=store)
    for block, damage in zip(blocks, (b"", b"no archive", None, "cut"), strict=False):
        path = store._file(block.key)
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        path.write_bytes(whole[:-9] if damage == "cut" else flipped if damage is None else damage)
    with pytest.warns(RuntimeWarning, match="this block is computed again") as told:
        assert content(run_blocks(scores, network(), blocks, store=store)) == expected
    told = [warning for warning in told if warning.category is RuntimeWarning]
    assert len(told) == 4 and all(warning.filename == __file__ for warning in told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert content(run_blocks(None, None, blocks, store=store)) == expected  # all of it from disk


def test_a_full_disk_keeps_what_there_is_and_the_next_call_goes_on(tmp_path, monkeypatch, expected):
    store, write, written = Store(tmp_path, IDENTITY), files.write_atomic, []

    def full(path, content):
        written.append(path)
        if len(written) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(files, "write_atomic", full)
    with pytest.raises(OSError, match=r"the disk is full: 6 of 20 blocks are kept in .*; free space and run") as caught:
        run_blocks(scores, network(), work(), store=store)
    assert caught.value.errno == errno.ENOSPC and store.n_kept == 6
    assert content(run_blocks(scores, network(), work(), store=store)) == expected


def test_a_folder_that_cannot_be_written_is_said_before_work_starts(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(runs, "write_atomic", refuse)
    with pytest.raises(PermissionError, match=r"cannot write to .* \(Permission denied\): choose a folder"):
        run_blocks(None, None, work(2), store=Store(tmp_path, IDENTITY))


def test_old_leftovers_are_cleared_and_young_ones_left(tmp_path):
    store = Store(tmp_path, IDENTITY)
    store.put("k", {})
    old, young = store.folder / ".k.npz.abc", store.folder / ".k.npz.def"
    for path, age in ((old, 4000), (young, 10)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    Store(tmp_path, IDENTITY).put("l", {})
    assert not old.exists() and young.exists() and store.n_kept == 2


# Runs


def test_blocks_come_in_their_order_and_once(expected):
    calls = []

    def counted(shared, *arguments):
        calls.append(torch.get_num_threads())
        return scores(shared, *arguments)

    blocks, threads = work(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = run_blocks(counted, network(), [*blocks, *blocks[::-1]])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert content(found) == expected + expected[::-1] and calls == [1] * 20
    assert run_blocks(None, None, []) == []


class Model:
    """Made by a class that another process knows only if it is sent along."""

    def __init__(self):
        self.network, self.pid, self.loads = network(), os.getpid(), 0

    def __setstate__(self, state):
        self.__dict__.update(state, loads=self.loads + 1 if hasattr(self, "loads") else 1, loaded=time.time_ns())


def told(shared, group, pause, meeting=None):
    """The scores, and where and how they were made; at a `meeting` each process waits until two have come."""
    found = scores(shared.network, group, pause)
    if meeting is not None:
        (Path(meeting) / str(os.getpid())).touch()
        wait_until(lambda: len(os.listdir(meeting)) == 2)
    here = [os.getpid(), shared.loaded, torch.get_num_threads(), int(torch.get_default_dtype() == torch.float64)]
    return {**found, "here": np.array(here)}


def test_processes_give_the_same_bits_and_are_sent_the_model_once(tmp_path, expected):
    shared, before = Model(), torch.get_default_dtype()
    state = generators()
    torch.set_default_dtype(torch.float64)
    try:
        found = run_blocks(told, shared, work(more=[str(tmp_path)]), n_jobs=2)
    finally:
        torch.set_default_dtype(before)
    here = np.array([result.pop("here") for result in found])
    assert content(found) == expected
    assert len(np.unique(here[:, 0])) == 2 == len(np.unique(here[:, :2], axis=0)) and os.getpid() not in here[:, 0]
    assert (here[:, 2:] == 1).all()  # one thread, and the default type of this process
    assert generators() == state


def test_threads_share_what_is_here(expected):
    shared, threads = network(), torch.get_num_threads()
    with joblib.parallel_config("threading", n_jobs=2):
        found = run_blocks(lambda s, *a: scores(s, *a) | {"id": np.array(id(s))}, shared, work(pause=0.01))
    assert {int(result.pop("id")) for result in found} == {id(shared)}
    assert content(found) == expected and torch.get_num_threads() == threads


def squares(shared, several):
    "Each block's square, and how many were computed with it."
    return [{"square": np.array([i * i]), "together": np.array([len(several)])} for (i,) in several]


def alone(shared, i):
    return squares(shared, [(i,)])[0]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_blocks_of_one_group_share_a_call_as_far_as_they_cost_little(tmp_path, n_jobs):
    groups = ["a", "a", "a", "b", "b", "a", "", ""]
    blocks = [Block(key=f"{i}", arguments=(i,), cost=2.0, group=group) for i, group in enumerate(groups)]
    store = Store(tmp_path / "store", {"n": "1"})
    store.put("4", {"square": np.array([16]), "together": np.array([0])})
    found = run_blocks(alone, None, blocks, together=squares, most=4.0, store=store, n_jobs=n_jobs)
    assert [int(one["square"][0]) for one in found] == [i * i for i in range(8)]
    assert [int(one["together"][0]) for one in found] == [2, 2, 1, 1, 0, 1, 1, 1]  # of "b" one was kept
    assert store.n_kept == 8
    apart = run_blocks(alone, None, blocks, together=squares)
    assert {int(one["together"][0]) for one in apart} == {1}  # nothing costs as little as nothing


def pid(shared, i):
    return {"pid": np.array(os.getpid())}


def test_what_is_on_a_device_stays_in_this_process():
    blocks = [Block(str(i), (i,)) for i in range(4)]
    found = run_blocks(pid, {"model": nn.Linear(2, 2, device="meta")}, blocks, n_jobs=2)  # no CPU holds it either
    assert {int(result["pid"]) for result in found} == {os.getpid()}


class Two(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def fails(shared, i, kind):
    if i == 5:
        raise KeyError("no such layer") if kind == "key" else Two("this", "that")
    time.sleep(0.05)
    return {"i": np.array(i)}


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_an_error_of_the_function_goes_through_and_finished_blocks_are_kept(tmp_path, n_jobs):
    store, blocks = Store(tmp_path, IDENTITY), [Block(str(i), (i, "key")) for i in range(9)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError, match="no such layer") as caught:
            run_blocks(fails, None, blocks, store=store, n_jobs=n_jobs)
    assert n_jobs is None or "in fails" in str(caught.value.__cause__)
    assert store.n_kept >= 4 and store.get("5") is None
    with pytest.raises(TypeError, match="has to give a dict of arrays, not a list"):
        run_blocks(sorted, [1], [Block("x", ()), Block("y", ())], n_jobs=n_jobs)
    with pytest.raises((Two, RuntimeError), match="this and that"):  # it cannot be pickled
        run_blocks(fails, None, [Block(str(i), (i, "two")) for i in range(4, 6)], n_jobs=n_jobs)


def dies(shared, i, marker):
    if i == 3 and not (marker and Path(marker).exists()):
        Path(marker or os.devnull).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"i": np.array(i)}


def test_blocks_of_a_dead_worker_are_tried_again(tmp_path):
    blocks = [Block(str(i), (i, str(tmp_path / "dead"))) for i in range(8)]
    with pytest.warns(RuntimeWarning, match=r"a worker died .* of 8 blocks are tried again, round 2 of 3") as told:
        found = run_blocks(dies, None, blocks, n_jobs=2)
    assert [int(result["i"]) for result in found] == list(range(8)) and len(told) == 1
    assert told[0].filename == __file__


def test_workers_that_go_on_dying_are_given_up(tmp_path):
    store, blocks = Store(tmp_path, IDENTITY), [Block(str(i), (i, "")) for i in range(6)]
    with pytest.warns(RuntimeWarning, match="tried again"):
        with pytest.raises(RuntimeError, match=r"in each of 3 rounds: \d of 6 blocks are kept in .*run the same call"):
            run_blocks(dies, None, blocks, store=store, n_jobs=2)
    assert store.get("3") is None


def test_the_bar_counts_passes_and_what_was_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    store = Store(tmp_path, IDENTITY)
    run_blocks(scores, network(), work(5), store=store)
    assert capsys.readouterr().err == ""
    run_blocks(scores, network(), work(8), store=store, progress=True, description="conv1")
    shown = capsys.readouterr().err.split("\r")
    assert any("conv1:  62%" in line and "10.0/16.0" in line for line in shown) and "16.0/16.0" in shown[-1]


# Killed

NURSERY = """
import os, sys
sys.path.insert(0, sys.argv[1])
import joblib, torch
import test_lesions_runs as t

for line in sys.stdin:  # each line is a run, in a process of its own that need not import anything
    backend, free = line.split()
    if (pid := os.fork()) == 0:
        os.setpgrp()
        with joblib.parallel_config(backend, n_jobs=2):
            blocks = t.work(pause=0.05, free=int(free))
            t.run_blocks(t.scores, t.network(), blocks, store=t.Store(sys.argv[2], t.IDENTITY))
        os._exit(0)
    os.setpgid(pid, pid)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("over", flush=True)
"""


@pytest.fixture
def begin(tmp_path):
    """`begin(backend, free)` starts a run of `free` blocks that end and others that do not; returns nursery and pid."""
    (tmp_path / "nursery.py").write_text(NURSERY)
    command = [sys.executable, str(tmp_path / "nursery.py"), str(HERE), str(tmp_path / "store")]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    begun = []
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, bufsize=1, **streams) as process:

        def start(backend, free):
            process.stdin.write(f"{backend} {free}\n")
            process.stdin.flush()
            begun.append(int(process.stdout.readline()))
            return process, begun[-1]

        try:
            yield start
        finally:
            for pid in filter(is_alive, begun):
                os.killpg(pid, signal.SIGKILL)


def is_alive(pid):
    """Is any process left of the group that `pid` began?"""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_killed_at_ten_random_moments_it_ends_as_if_nothing_had_happened(tmp_path, begin, expected):
    store, moments, kept = Store(tmp_path / "store", IDENTITY), np.random.default_rng(0), []
    for time_of_kill in range(10):
        nursery, pid = begin("loky" if time_of_kill in (3, 6, 9) else "threading", 1 + 2 * time_of_kill)
        # At a random moment after the next block is on disk; the first three times, after any number of blocks. Two
        # more blocks can end than the time before, so that there is a next one always, and at last one left to do.
        if time_of_kill > 2:
            wait_until(lambda: store.n_kept > kept[-1])
        time.sleep(moments.uniform(0, 0.3 if time_of_kill < 3 else 0.08))
        os.killpg(pid, signal.SIGKILL)
        assert nursery.stdout.readline() == "over\n"
        kept.append(store.n_kept)
    assert kept == sorted(kept) and 0 < kept[-1] < 20 and len(set(kept)) >= 7, kept
    assert content(run_blocks(scores, network(), work(), store=store)) == expected


def test_an_interrupt_keeps_what_is_finished_and_ends_the_workers(tmp_path, begin, expected):
    store, (nursery, pid) = Store(tmp_path / "store", IDENTITY), begin("loky", 4)
    wait_until(lambda: store.n_kept == 4)  # the workers are in blocks that do not end by themselves
    os.kill(pid, signal.SIGINT)
    wait_until(lambda: not is_alive(pid))  # none of its processes is left
    assert "KeyboardInterrupt" in nursery.communicate()[1]
    assert store.n_kept == 4
    assert content(run_blocks(scores, network(), work(), store=store)) == expected


# A cluster


def test_a_killed_dask_worker_costs_its_block_only(tmp_path, dask_cluster, expected):
    begun, shared, state = tmp_path / "begun", Model(), generators()
    begun.mkdir()
    blocks = [replace(one, arguments=(*one.arguments, i)) for i, one in enumerate(work())]
    store = Store(tmp_path / "store", IDENTITY)
    with dask_cluster(2) as client:
        pids = client.run(os.getpid)
        victim = min(pids.values())
        found = run_blocks(told_and_killed, (shared, str(begun), victim, str(store.folder)), blocks, store=store)
        wait_until(lambda: victim not in client.run(os.getpid, on_error="ignore").values())
    here = np.array([result.pop("here") for result in found])
    assert content(found) == expected
    assert os.getpid() not in here[:, 0] and (here[:, 2] == 1).all() and victim in here[:, 0]
    times = [[int(path.name.split("-")[1]) for path in begun.glob(f"{i}-*")] for i in range(20)]
    lost = [i for i in range(20) if len(times[i]) == 2]
    assert len(lost) == 1 and victim in times[lost[0]]  # it alone was begun twice
    assert all(len(pids) == 1 for i, pids in enumerate(times) if i not in lost)
    assert generators()[1:] == state[1:]  # Dask itself draws from `random`


def told_and_killed(shared, group, pause, i):
    """The victim kills itself in its second block, when its first is on disk; the others wait until it has."""
    model, begun, victim, kept = shared
    mine = list(Path(begun).glob(f"*-{os.getpid()}-*"))
    (Path(begun) / f"{i}-{os.getpid()}-{time.time_ns()}").touch()
    if os.getpid() == victim and mine:
        wait_until(lambda: list(Path(kept).glob("*.npz")))  # of this worker: no other has ended one
        os.kill(victim, signal.SIGKILL)
    wait_until(lambda: os.getpid() == victim or len(list(Path(begun).glob(f"*-{victim}-*"))) == 2)
    return told(model, group, pause)


def test_few_blocks_leave_no_dask_worker_idle_and_an_interrupt_keeps_what_is_finished(
    tmp_path, dask_cluster, expected, monkeypatch
):
    (meeting := tmp_path / "meeting").mkdir()
    put, store = Store.put, Store(tmp_path / "store", IDENTITY)

    def put_and_interrupt(self, key, arrays):
        put(self, key, arrays)
        if self.n_kept == 5:
            raise KeyboardInterrupt

    dask = pytest.importorskip("dask")
    with dask.config.set({"distributed.scheduler.work-stealing": False}), dask_cluster(2) as client:
        found = run_blocks(told, Model(), work(2, more=[str(meeting)]))  # ends if each worker has one of the two
        assert len({int(result["here"][0]) for result in found}) == 2
        with pytest.raises(KeyError, match="no such layer") as caught:
            run_blocks(fails, None, [Block(str(i), (i, "key")) for i in range(9)])
        assert "in fails" in str(caught.value.__cause__)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as interrupted:
            patch.setattr(Store, "put", put_and_interrupt)
            run_blocks(scores, network(), work(), store=store)
        wait_until(lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
        assert store.n_kept == 5 and interrupted.tb  # although the error is still looked at
        assert content(run_blocks(scores, network(), work(), store=store)) == expected
        assert int(run_blocks(pid, None, [Block("0", (0,))], n_jobs=1)[0]["pid"]) == os.getpid()


def test_what_kills_dask_workers_is_named_and_what_waited_there_is_not(tmp_path, dask_cluster):
    dask = pytest.importorskip("dask")
    store, blocks = Store(tmp_path / "store", IDENTITY), [Block(str(i), (i, ""), group="conv1") for i in range(6)]
    marked = [Block(str(i), (i, str(tmp_path / "dead"))) for i in range(6)]
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), dask_cluster(2):
        with pytest.warns(RuntimeWarning, match=r"were on workers that died .* tried again, one at a time") as seen:
            found = run_blocks(dies, None, marked)
        assert [int(result["i"]) for result in found] == list(range(6))
        assert [one.filename for one in seen if issubclass(one.category, RuntimeWarning)] == [__file__]
        with pytest.warns(RuntimeWarning, match="one at a time"):
            with pytest.raises(
                RuntimeError, match=r"had only block 3 of conv1 to compute, 1 times: . of 6 blocks are kept in"
            ):
                run_blocks(dies, None, blocks, store=store)
    assert store.get("3") is None and store.n_kept >= 4


def test_a_cluster_of_one_worker_gives_the_same_bits(dask_cluster, expected):
    with dask_cluster(1, processes=False):
        assert content(run_blocks(scores, network(), work())) == expected


def test_idle_workers_do_not_keep_a_process_from_ending():
    code = (
        "import multiprocessing as mp, numpy as np\n"
        "from specialize_nb.lesions.runs import Block, run_blocks\n"
        "def one(shared, i): return {'x': np.full(2, i)}\n"
        "def child(): assert len(run_blocks(one, None, [Block(str(i), (i,)) for i in range(3)], n_jobs=2)) == 3\n"
        "process = mp.get_context('fork').Process(target=child)\n"
        "process.start()\n"
        "process.join(250)\n"  # idle workers end by themselves after 300 seconds
        "assert process.exitcode == 0, process.exitcode\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=PATIENCE
    )
