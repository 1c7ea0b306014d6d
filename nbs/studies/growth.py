"""How do seconds and memory grow with units, examples, lesions and layers? Writes growth.csv next to this.

    python nbs/studies/growth.py          # about ten minutes on one core; goes on where it was broken off

One thing grows at a time, all else stays. Each row is a process of its own: seconds of one processor for each stage,
and the most memory that the process held.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve()
TABLE = HERE.with_name("growth.csv")
USUAL = dict(units=256, layers=3, examples=400, lesions=200)  # units of each layer; lesions of each layer
GROWS = {
    "units": [128, 256, 512, 1024, 2048],
    "layers": [2, 4, 8, 16],
    "examples": [100, 400, 1600, 6400, 25600],
    "lesions": [50, 200, 800, 3200],
}
N_ROUNDS = 3


def measured(units: int, layers: int, examples: int, lesions: int) -> dict[str, float]:
    """Seconds of each stage for a dense network with random weights, and the peak in GB."""
    import numpy as np
    import torch

    from specialize_nb import activation_graph, spectral_partition, trace, weight_graph
    from specialize_nb.lesions.damage import damage_run
    from specialize_nb.training.models import mlp

    torch.set_num_threads(1)
    model = mlp((64, *[units] * layers, 10), seed=0)
    x = torch.rand(examples, 64, generator=torch.Generator().manual_seed(0))
    y, rng, seconds = torch.arange(examples) % 10, np.random.default_rng(0), {}

    def stage(name, function):
        start = time.process_time()
        found = function()
        seconds[f"{name}_s"] = time.process_time() - start
        return found

    network = stage("trace", lambda: trace(model, x[:2]))
    graph = stage("weight_graph", lambda: weight_graph(network))
    stage("partition", lambda: spectral_partition(graph, 12))
    stage("activation_graph", lambda: activation_graph(model, x, network))
    run = stage("set_up", lambda: damage_run(model, (x, y), network, network.hidden, n_boot=0))
    groups = {name: rng.random((lesions, units)) < 0.1 for name in network.hidden}
    stage("lesions", lambda: [run.work.damage([({name: table}, False)]) for name, table in groups.items()])
    return seconds | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def main() -> None:
    known = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=["grows", "size", "round"])
    done = set(known[["grows", "size", "round"]].itertuples(index=False, name=None))
    asked = [(name, size, i) for i in range(N_ROUNDS) for name, sizes in GROWS.items() for size in sizes]
    for name, size, i in asked:
        if (name, size, i) in done:
            continue
        given = json.dumps(USUAL | {name: size})
        command = [sys.executable, str(HERE), "--one", given]
        told = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        row = {"grows": name, "size": size, "round": i} | json.loads(told.stdout.splitlines()[-1])
        pd.DataFrame([row]).round(4).to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)
        print(row, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measured(**json.loads(sys.argv[2]))))
    else:
        main()
