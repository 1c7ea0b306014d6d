"""Runs of `importance` that are killed: what is kept, what is computed again, and that the end is the same to the bit.

A plain module: it takes processes that die.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from specialize_nb.base.data import digits
from specialize_nb.clusters.partition import Partition
from specialize_nb.lesions.importance import importance
from specialize_nb.lesions.runs import Store
from specialize_nb.training.fit import fit
from specialize_nb.training.models import mlp

N_KILLS, PATIENCE = 10, 600  # seconds until a worker that was killed must be gone, however busy the machine is
HIDDEN = (24, 24)
OPTIONS = {"n_controls": 149, "n_boot": 20, "outcomes": ["cross_entropy", "accuracy"]}

CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_lesions_kill as t
t.run(sys.argv[2], n_controls=1)  # loads what runs load
print("ready", flush=True)
for line in sys.stdin:  # a run each, in a process of its own: only this one has to load PyTorch
    seconds, folder = line.strip().split(" ", 1)
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_PROF, float(seconds))  # of its own work; then the system kills it; 0 is never
        t.run(sys.argv[2], store=folder)
        os._exit(0)
    _, status, used = os.wait4(pid, 0)
    print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, flush=True)
"""


def scene(path):
    """The model and partition saved at `path`, and every other test digit."""
    model, data = mlp((64, *HIDDEN, 10)), digits("test")
    model.load_state_dict(torch.load(path))
    rng = np.random.default_rng(0)
    linear = [name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)]
    labels = {name: rng.integers(4, size=width) for name, width in zip(linear, HIDDEN, strict=False)}
    return model, (data.x[::2], data.y[::2]), Partition.from_labels(labels)


def run(path, **options):
    return importance(*scene(path), **OPTIONS | options)


def numbers(found):
    """Everything random or measured in a result, as bytes."""
    parts = (found.value, found.draws, found.matched, found.replicates)
    return {(i, name): array.tobytes() for i, part in enumerate(parts) for name, array in part.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("kill") / "weights.pt"
    model = mlp((64, *HIDDEN, 10))
    fit(model, digits("train"), epochs=3)
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def whole(weights):
    return numbers(run(weights))


def blocks(folder):
    return sorted(Path(folder).glob("*/*.npz"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="killed runs are forked, which needs Linux or macOS")
def test_ten_kills_at_random_moments_change_no_bit(weights, whole, tmp_path):
    folder, rng = tmp_path / "store", np.random.default_rng(0)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), weights]
    kept, codes, seen, killed = [0], [], {}, -signal.SIGPROF
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=environment, **pipes) as child:

        def one(folder, seconds):
            print(seconds, folder, file=child.stdin, flush=True)
            code, used = child.stdout.readline().split()
            return int(code), float(used)

        assert child.stdout.readline() == "ready\n"
        code, took = one(tmp_path / "unharmed", 0)  # seconds of its own work, however busy the machine is
        assert code == 0
        while codes.count(killed) < N_KILLS or not max(kept):
            assert len(codes) < 6 * N_KILLS, "runs end before they are killed, or keep nothing until then"
            codes.append(one(folder, rng.uniform(0.01, 1) * took)[0])
            assert codes[-1] in (0, killed)
            for path in blocks(folder):  # what was whole stays as it is
                content = path.read_bytes()
                assert seen.setdefault(path, content) == content
            kept.append(len(seen))
            if codes[-1] == 0:
                for path in seen:  # the next begins anew
                    path.unlink()
                seen.clear()
        child.stdin.close()
    assert numbers(run(weights, store=folder)) == whole
    for path in blocks(folder):
        with np.load(path) as archive:
            assert all(np.asarray(archive[name]).size for name in archive.files)
    assert json.loads(next(folder.glob("*/run.json")).read_text())["identity"]


def test_a_dask_worker_killed_midway_changes_no_bit(weights, whole, tmp_path, dask_cluster, monkeypatch):
    folder, put, kept = tmp_path / "store", Store.put, []

    def put_and_kill(self, key, arrays):
        put(self, key, arrays)
        kept.append(key)
        if len(kept) == 5:
            os.kill(victim, signal.SIGKILL)

    monkeypatch.setattr(Store, "put", put_and_kill)
    with dask_cluster(2) as client:
        before = set(client.run(os.getpid).values())
        victim = min(before)
        found = run(weights, store=folder)
        limit = time.monotonic() + PATIENCE
        while victim in client.run(os.getpid, on_error="ignore").values():
            assert time.monotonic() < limit, f"the worker was alive {PATIENCE} seconds later"
            time.sleep(0.01)
    assert len(before) == 2 and 5 < len(blocks(folder)) == len(kept)
    assert numbers(found) == whole
