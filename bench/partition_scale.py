"""One side of a race of measure_partition.py, in a process of its own: only so can its memory be told.

`python partition_scale.py ours|removed|peer FOLDER K` reads its input from FOLDER, says so, and clusters once a line.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from sklearn.cluster import SpectralClustering


def memory(which: str) -> float:
    """MB in memory, now ('VmRSS') or at most so far ('VmHWM'); getrusage would count the parent's before the fork."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def ours(folder: Path, k: int, depth: str = "keep") -> tuple[float, Callable[[], tuple[np.ndarray, str]]]:
    import torch

    from specialize_nb.clusters.spectral import spectral_partition
    from specialize_nb.graphs.graph import UnitGraph

    before = memory("VmRSS")
    fields = json.loads((folder / "graph.json").read_text())
    pairs = map(tuple, fields.pop("pairs"))
    made = [torch.from_numpy(np.load(folder / f"block{i}.npy")) for i in range(max(fields["files"]) + 1)]
    blocks = {pair: made[i] for pair, i in zip(pairs, fields["files"], strict=True)}
    graph = UnitGraph(layers=tuple(fields["layers"]), sizes=tuple(fields["sizes"]), blocks=blocks)
    return before, lambda: (np.concatenate(list(spectral_partition(graph, k, depth=depth).labels.values())), "")


def peer(folder: Path, k: int) -> tuple[float, Callable[[], tuple[np.ndarray, str]]]:
    before = memory("VmRSS")
    parts = tuple(np.load(folder / f"{name}.npy") for name in ("data", "indices", "indptr"))
    adjacency = sp.csr_array(parts, shape=(len(parts[2]) - 1,) * 2)
    solvers = ["arpack", "lobpcg"]  # the first is the default; where its factors do not fit into memory, the other

    def cluster() -> tuple[np.ndarray, str]:
        found = SpectralClustering(
            k, affinity="precomputed", n_init=25, random_state=0, eigen_solver=solvers[0], assign_labels="kmeans"
        )
        try:
            return found.fit_predict(adjacency), solvers[0]
        except MemoryError:
            solvers.pop(0)
            return cluster()

    return before, cluster


def main(side: str, folder: str, k: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what SuperLU prints when memory runs out is no answer
    sides = {"ours": ours, "removed": partial(ours, depth="remove"), "peer": peer}
    before, cluster = sides[side](Path(folder), int(k))
    print("ready", flush=True, file=answers)
    for target in sys.stdin:
        labels, note = cluster()
        np.save(target.strip(), labels)
        print(json.dumps({"mb": memory("VmHWM") - before, "note": note}), flush=True, file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
