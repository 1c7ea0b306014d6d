"""Gromov-Wasserstein distances between the layers of one network."""

import numpy as np
import ot
import torch
from harness import Race, measure
from joblib import Parallel, delayed
from torch import nn

from specialize_nb.layers.distances import layer_distances
from specialize_nb.layers.gromov import point_distances
from specialize_nb.training.models import mlp


def network(n_layers: int) -> tuple[nn.Module, torch.Tensor]:
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    return mlp((64, *[64] * (n_layers - 1), 64)), x


def solved_by_pot(a: np.ndarray, b: np.ndarray) -> float:
    value = ot.gromov.gromov_wasserstein2(a, b, loss_fun="square_loss", symmetric=True)
    return float(np.sqrt(max(0.0, float(value))))


def bare(model: nn.Sequential, x: torch.Tensor, n_jobs: int = 1) -> np.ndarray:
    """POT's own start, pair by pair, of activations at hand."""
    stops = [i for i, module in enumerate(model) if isinstance(module, nn.ReLU)] + [len(model) - 1]
    with torch.no_grad():
        apart = [point_distances(model[: stop + 1](x).double().numpy()) for stop in stops]
    found = np.zeros((len(apart), len(apart)))
    pairs = np.triu_indices(len(apart), 1)
    tasks = (delayed(solved_by_pot)(apart[i], apart[j]) for i, j in zip(*pairs, strict=True))
    found[pairs] = Parallel(n_jobs=n_jobs)(tasks)
    return found + found.T


def same(mine: np.ndarray, theirs: np.ndarray) -> str:
    upper = np.triu_indices(len(mine), 1)
    ratio = mine[upper] / theirs[upper]
    return f"ours is the smaller in {np.mean(ratio < 1 - 1e-6):.0%} of pairs, on average {1 - ratio.mean():.0%} less"


@measure(
    "layer_distances, Gromov-Wasserstein, 10 layers (45 pairs), n = 300, 5 starts",
    peer="POT from its own start, 1 start",
    rounds=3,
)
def few_layers() -> Race:
    model, x = network(10)
    return Race(lambda: layer_distances(model, x).matrix, lambda: bare(model, x), same)


@measure(
    "layer_distances, Gromov-Wasserstein, 50 layers (1,225 pairs), n = 300, 5 starts, 2 processes",
    peer="POT from its own start, 1 start, 2 processes",
    rounds=1,
)
def many_layers() -> Race:
    model, x = network(50)
    return Race(lambda: layer_distances(model, x, n_jobs=2).matrix, lambda: bare(model, x, 2), same)


@measure("layer_distances, Gromov-Wasserstein, 20 layers (190 pairs), n = 300, 2 processes", peer="1 process", rounds=1)
def processes() -> Race:
    model, x = network(20)
    return Race(
        lambda: layer_distances(model, x, n_jobs=2).matrix,
        lambda: layer_distances(model, x, n_jobs=1).matrix,
        lambda mine, theirs: f"largest difference {abs(mine - theirs).max():.2g}",
    )
