"""The clusterability cost and its gradient, by a few eigenvectors and by a dense solver."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from harness import Race, measure
from torch import Tensor

from specialize_nb.training.cost import clusterability_cost
from specialize_nb.training.models import mlp

SIZES = (100, 300, 300, 290, 10)  # 1,000 units, 207,900 edges
PEER = "autograd through torch.linalg.eigvalsh of the dense Laplacian"


def dense_cost(weights: list[Tensor], strength: float, m: int) -> Tensor:
    """The same number by one matrix over all units, float64."""
    start = np.cumsum((0, *SIZES))
    adjacency = torch.zeros(start[-1], start[-1], dtype=torch.float64)
    for i, weight in enumerate(weights):
        adjacency[start[i] : start[i + 1], start[i + 1] : start[i + 2]] = weight.double().abs().T
    adjacency = adjacency + adjacency.T
    root = adjacency.sum(1).rsqrt()
    laplacian = torch.eye(len(root), dtype=torch.float64) - adjacency * root[:, None] * root
    return strength / m * torch.linalg.eigvalsh(laplacian)[1 : m + 1].sum()


def race(warm: bool) -> Race:
    """Untrained weights, whose eigenvalues lie close together; they move by a tenth of a percent from call to call."""
    model, generator = mlp(SIZES), torch.Generator().manual_seed(0)
    cost = clusterability_cost(model, torch.zeros(1, SIZES[0]))
    weights = [weight for weight in model.parameters() if weight.ndim > 1]
    states = [[weight.detach() for weight in weights]]
    for _ in range(24):
        states.append([w * (1 + 1e-3 * torch.randn(w.shape, generator=generator)) for w in states[-1]])

    def gradient(value: Callable[[], Tensor], state: list[Tensor]) -> Tensor:
        for weight, moved in zip(weights, state, strict=True):
            weight.data, weight.grad = moved, None
        value().backward()
        return torch.cat([weight.grad.flatten() for weight in weights])

    def by_blocks() -> Tensor:
        if not warm:
            cost.memory.clear()
        return cost(model)

    mine, peers = itertools.cycle(states), itertools.cycle(states)

    def same(ours: Tensor, theirs: Tensor) -> str:
        return f"difference of the gradients {float((ours - theirs).norm() / theirs.norm()):.0e} of its norm"

    return Race(
        lambda: gradient(by_blocks, next(mine)),
        lambda: gradient(lambda: dense_cost(weights, cost.strength, cost.m), next(peers)),
        same,
    )


@measure("clusterability cost and gradient, MLP of 1,000 units, in training", peer=PEER, rounds=9)
def in_training() -> Race:
    return race(warm=True)


@measure("clusterability cost and gradient, MLP of 1,000 units, from a random start", peer=PEER, rounds=9)
def from_scratch() -> Race:
    return race(warm=False)
