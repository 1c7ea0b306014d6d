"""Streamed correlations beside a bare product of matrices, which no way of correlating can do without."""

import os
import subprocess
import sys

import torch
from harness import Race, measure
from torch import nn

from specialize_nb.base.data import batches
from specialize_nb.graphs.activations import activation_graph
from specialize_nb.network.units import trace

N_UNITS, N_EXAMPLES, BATCH = 4096, 10_000, 256
PRODUCT = "bare float64 product of all activations, laid ready"

MEMORY = """
import sys, torch
from pathlib import Path
from torch import nn
from specialize_nb.graphs.activations import activation_graph
from specialize_nb.network.units import trace

class Endless:
    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(int(sys.argv[1]) // 256):
            yield torch.randn(256, 8, generator=generator), torch.zeros(256, dtype=torch.int64)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 1024), nn.ReLU(), nn.Linear(1024, 2)).eval()
activation_graph(model, Endless(), trace(model, torch.zeros(2, 8)), corr=sys.argv[2])
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) // 1024)
"""


def scene():
    """A layer so wide on inputs so few that the model's own work is next to nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, N_UNITS), nn.ReLU(), nn.Linear(N_UNITS, 2)).eval().requires_grad_(False)
    x = torch.randn(N_EXAMPLES, 8, generator=generator)
    data = batches((x, torch.zeros(N_EXAMPLES, dtype=torch.int64)), batch_size=BATCH)
    return model, data, trace(model, x), model[0](x)


def bare(values: torch.Tensor, tile: int) -> torch.Tensor:
    """The sum of products, 512 examples at a time; of the upper triangle alone if the tile is not the whole."""
    total = torch.zeros(N_UNITS, N_UNITS, dtype=torch.float64)
    for part in values.split(512):
        for first in range(0, N_UNITS, tile):
            total[first : first + tile, first:].addmm_(part[:, first : first + tile].T, part[:, first:])
    return total


def race(corr: str, tile: int) -> Race:
    model, data, network, values = scene()
    ready = values.double()
    ready -= ready.mean(0)

    def same(mine, theirs) -> str:
        if corr != "pearson":
            return "no answers"
        size = theirs.diagonal().rsqrt()
        edges = (theirs * size[:, None] * size).square().triu(1)
        return f"largest difference of an edge {float((mine.block('0', '0').triu(1) - edges).abs().max()):.0e}"

    return Race(lambda: activation_graph(model, data, network, corr=corr), lambda: bare(ready, tile), same)


@measure(f"activation_graph, Pearson, {N_UNITS:,} units, {N_EXAMPLES:,} examples", peer=PRODUCT)
def pearson() -> Race:
    return race("pearson", N_UNITS)


@measure(
    f"activation_graph, Pearson, {N_UNITS:,} units, {N_EXAMPLES:,} examples, half the product",
    peer="the floor: the same in tiles, upper triangle only",
)
def pearson_triangle() -> Race:
    return race("pearson", 256)


@measure(f"activation_graph, Spearman, {N_UNITS:,} units, {N_EXAMPLES:,} examples", peer=PRODUCT, rounds=3)
def spearman() -> Race:
    return race("spearman", N_UNITS)


def peak(n_examples: int, corr: str) -> int:
    """Megabytes that a process of its own held at most, as Linux counts them."""
    command = [sys.executable, "-c", MEMORY, str(n_examples), corr]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout)


@measure("activation_graph, both kinds, 1,024 units, 20,480 examples, a process each", peer="2,560 examples", rounds=1)
def memory() -> Race:
    def run(n_examples: int) -> list[int]:
        return [peak(n_examples, corr) for corr in ("pearson", "spearman")]

    def same(mine, theirs) -> str:
        return "peak memory {} and {} MB, against {} and {} MB".format(*mine, *theirs)

    return Race(lambda: run(20_480), lambda: run(2_560), same)
