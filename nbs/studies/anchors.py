"""The n-cut of networks before training, beside what was published: writes anchors.csv beside this file.

Filan et al. (2021), arXiv 2103.03386, k = 12: 10.295 (sd 0.032) for an MLP 784-256x4-10 with Glorot's uniform weights,
and 10.923 (sd 0.007) for the channels of three convolutions of 64. Which layers and which norm of a kernel they meant
for the second is not said; six readings are measured. Run it with `python nbs/studies/anchors.py`: some two minutes.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from specialize_nb import cnn, mlp, spectral_partition, trace, weight_graph

N_NETWORKS, K = 100, 12
CHANNELS = ["0", "2", "5"]  # the three convolutions
READINGS = {  # name -> norm of a kernel, layers
    f"{units}, {norm}": (norm, layers)
    for units, layers in (("channels", CHANNELS), ("input and channels", ["input", *CHANNELS]))
    for norm in ("l1", "l2", "matrix1")
}


def glorot(model: nn.Module, seed: int) -> nn.Module:
    """`model` with Glorot's uniform weights, drawn without the global generator."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter, generator=generator)
    return model


def measure() -> Iterator[tuple[str, str, int, float]]:
    for seed in range(N_NETWORKS):
        graph = weight_graph(trace(glorot(mlp(), seed), torch.zeros(1, 784)))
        yield "mlp", "all units", seed, spectral_partition(graph, K, seed=seed).ncut
        network = trace(glorot(cnn(), seed), torch.zeros(1, 1, 28, 28))
        for reading, (norm, layers) in READINGS.items():
            graph = weight_graph(network, norm=norm).subgraph(layers)
            yield "cnn", reading, seed, spectral_partition(graph, K, seed=seed).ncut


if __name__ == "__main__":
    found = pd.DataFrame(measure(), columns=["network", "reading", "seed", "ncut"])
    found.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.5f")
    print(found.groupby(["network", "reading"])["ncut"].agg(["mean", "std", "min", "max", "count"]).round(4))
