"""The modularity of clusters that run through layers: the sum of what each pair of layers has of it.

A plain module, not a notebook: the mechanism behind `modularity_partition(depth="remove")`. Edges between two layers
are compared with the configuration model of that block alone, so that which layers are joined explains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from specialize_nb.clusters.blocks import find_modules, patterns
from specialize_nb.clusters.partition import Partition, label_array
from specialize_nb.graphs.graph import UnitGraph

__all__ = ["BlockClusters", "block_clusters", "block_modularity"]

_STARTS = (8, 4, 16, 2, 12, 3, 6, 24)  # Clusters that a run sets out from, run by run; it can merge them, not split
_SWEEPS = 30  # At most, in which every unit may move once


class _Block(NamedTuple):
    first: int
    second: int
    weights: Tensor  # (n_rows, n_columns), of sum 1
    rows: Tensor  # (n_rows,) its sums
    columns: Tensor  # (n_columns,)


def _blocks(graph: UnitGraph) -> list[_Block]:
    place, found = {layer: i for i, layer in enumerate(graph.layers)}, []
    for (a, b), block in graph.blocks.items():
        weights = block.detach() if block.device.type == "mps" else block.detach().double()
        if weights.any():
            weights = weights / weights.sum()
            found.append(_Block(place[a], place[b], weights, weights.sum(1), weights.sum(0)))
    return found


def block_modularity(
    graph: UnitGraph,  # Of any kind: edges between layers, or within them
    labels: Partition | Mapping[str, Any] | np.ndarray,  # Cluster of each unit, (n,) or layer by layer; -1: in none
    *,
    resolution: float = 1.0,  # Weight of what the strengths explain, at least 0
) -> float:  # Below 1; 0 for one cluster of all units at a resolution of 1; NaN without edges
    """How much more of its edges has a pair of layers inside clusters than its units' strengths explain, on average?

    Parameters
    ----------
    graph : UnitGraph
        Of any kind: edges between layers, or within them
    labels : Partition | Mapping[str, Any] | np.ndarray
        Cluster of each unit, (n,) or layer by layer; -1: in none
    resolution : float, default 1.0
        Weight of what the strengths explain, at least 0

    Returns
    -------
    float
        Below 1; 0 for one cluster of all units at a resolution of 1; NaN without edges

    Raises: `ValueError` if labels and units differ, or the labels are of one layer each.
    Source: Barber (2007), "Modularity and community detection in bipartite networks"; Newman's Q within a layer
    """
    found = np.split(label_array(graph, labels, graph.n_units), graph.offsets[1:-1])
    k = 1 + max(int(one.max()) for one in found)
    member = [np.eye(k + 1)[one][:, :k] for one in found]  # -1 is the last row
    return _q(_blocks(graph), member, resolution)


def _q(blocks: Sequence[_Block], member: Sequence[np.ndarray], resolution: float) -> float:
    total = []
    for one in blocks:
        row, column = (torch.from_numpy(member[i]).to(one.weights) for i in (one.first, one.second))
        inside = float((row * (one.weights @ column)).sum())
        total.append(inside - resolution * float((one.rows @ row) @ (one.columns @ column)))
    return float(np.mean(total)) if total else float("nan")


class BlockClusters(NamedTuple):
    """What was found.

    Attributes
    ----------
    labels : np.ndarray
        (n_units,) best clusters by first appearance, -1 for dead units
    runs : np.ndarray
        (n_seeds,) block modularity of each run
    """

    labels: np.ndarray  # (n_units,) best clusters by first appearance, -1 for dead units
    runs: np.ndarray  # (n_seeds,) block modularity of each run


def block_clusters(
    graph: UnitGraph,  # Of any kind, with at least one edge
    resolution: float,  # Weight of what the strengths explain, at least 0
    seeds: Sequence[int],  # One a run
) -> BlockClusters:
    """The clusters of the largest block modularity that any run found; each sets out from other modules.

    Parameters
    ----------
    graph : UnitGraph
        Of any kind, with at least one edge
    resolution : float
        Weight of what the strengths explain, at least 0
    seeds : Sequence[int]
        One a run

    Returns
    -------
    BlockClusters
    """
    blocks, shapes, alive = _blocks(graph), patterns(graph), graph.alive()
    ends, best, runs = graph.offsets[1:-1], None, []
    for i, seed in enumerate(seeds):
        k = int(min(_STARTS[i % len(_STARTS)], alive.sum()))
        start = find_modules(graph.sizes, shapes, alive, k, seed=seed).labels if k > 1 else np.where(alive, 0, -1)
        member = [np.eye(k + 1)[one][:, :k] for one in np.split(start, ends)]
        for _ in range(k):  # each time round, at least one cluster is merged away
            _move(blocks, member, resolution)
            if not _merge(blocks, member, resolution):
                break
        runs.append(_q(blocks, member, resolution))
        if best is None or runs[-1] > runs[best[0]] + 1e-12:
            best = i, np.concatenate([one.argmax(1) for one in member])
    labels = np.full(len(alive), -1)
    labels[alive] = pd.factorize(best[1][alive])[0]
    return BlockClusters(labels, np.array(runs))


def _move(blocks: Sequence[_Block], member: list[np.ndarray], resolution: float) -> None:
    """Let every unit join the cluster in which it adds most, layer by layer, until none moves."""
    for _ in range(_SWEEPS):
        moved = 0
        for layer in range(len(member)):
            met = [one for one in blocks if layer in (one.first, one.second)]
            alive = member[layer].any(1)
            parts = _halves(alive) if any(one.first == one.second for one in met) else [np.flatnonzero(alive)]
            for units in parts:
                field = sum(_field(one, layer, member, resolution) for one in met)
                if isinstance(field, int) or not len(units):
                    continue
                now = member[layer][units].argmax(1)
                gain = field[units] - field[units, now][:, None]
                new = np.where(gain.max(1) > 1e-15, gain.argmax(1), now)
                moved += int((new != now).sum())
                member[layer][units] = np.eye(member[layer].shape[1])[new]
        if not moved:
            return


def _halves(alive: np.ndarray) -> list[np.ndarray]:
    """Units that are joined to each other must not all move at once."""
    units = np.flatnonzero(alive)
    return [units[i :: min(8, len(units))] for i in range(min(8, len(units)))]


def _field(one: _Block, layer: int, member: list[np.ndarray], resolution: float) -> np.ndarray:
    """(n_units, k) what each unit of the layer adds to each cluster, by this block."""
    forward = one.first == layer
    weights, here, there = (one.weights, one.rows, one.columns) if forward else (one.weights.T, one.columns, one.rows)
    other = torch.from_numpy(member[one.second if forward else one.first]).to(one.weights)
    found = weights @ other - resolution * here[:, None] * (there @ other)
    if one.first == one.second:
        found = 2 * (found + resolution * here.square()[:, None] * other)
    return found.cpu().double().numpy()


def _merge(blocks: Sequence[_Block], member: list[np.ndarray], resolution: float) -> bool:
    """Put together the two clusters of which the modularity gains most; False if none gains."""
    k = member[0].shape[1]
    gain = np.zeros((k, k))
    for one in blocks:
        row, column = (torch.from_numpy(member[i]).to(one.weights) for i in (one.first, one.second))
        between = row.T @ one.weights @ column - resolution * torch.outer(one.rows @ row, one.columns @ column)
        gain += between.cpu().double().numpy()
    gain, used = gain + gain.T, np.sum([one.sum(0) for one in member], 0) > 0
    gain = np.where(np.triu(np.outer(used, used), 1), gain, -np.inf)
    a, b = np.unravel_index(gain.argmax(), gain.shape)
    if not gain[a, b] > 1e-15:
        return False
    for one in member:
        one[:, a] += one[:, b]
        one[:, b] = 0
    return True
