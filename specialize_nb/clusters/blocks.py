"""Modules that run through layers: each pair of layers beside what the strengths of its units explain.

A plain module, not a notebook: the mechanism behind `spectral_partition(depth="remove")`. The page *Modules that run
through layers* (`clusters.depth`) tells the story.

A block of weights is divided by the strengths of its rows and columns, so that only its pattern is left. The leading
eigenvectors of the patterns of a few neighbouring layers give a first guess, which grows layer by layer to all others.
Then the likelihood of a block model (modules that are joined more strongly inside, by a factor of each block's own) is
climbed from several such guesses, and the best is kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from specialize_nb.clusters.spectrum import leading_pairs
from specialize_nb.graphs.graph import UnitGraph

__all__ = ["Modules", "Pattern", "find_modules", "pattern_nulls", "pattern_score", "patterns"]

_POWERS = (0.25, 0.5, 1.0, 2.0)  # Of the weights; the one is taken that tells most of a factor
_SAMPLE = 2**18  # Entries of a block that are looked at to choose a power
_EXACT = 2**21  # Edges up to which the arithmetic is in double precision
_WINDOWS = (3, 5)  # Layers that a first guess is made of: in longer chains, waves along the layers mix with modules
_STARTS = 5  # Windows of each length that are tried, at most, besides the whole
_GROW, _CLIMB = 4, 16  # Sweeps for all starts, and for the best two
_FINISH = (4, 400)  # And for the one that is kept: at least, and at most, as far as there is
_ENOUGH = 2**31  # multiplications for it
_COLUMNS = 128  # Clusters of all starts together: as many columns are multiplied by a block at once
_HUGE = 2**27  # Edges from which each window gets one start alone
_FLAT = 1e-9  # Relative variance below which a block has no pattern


@dataclass(frozen=True, eq=False, kw_only=True)
class Pattern:
    """One pair of layers: its weights, and what the strengths of its units explain of them, rows times columns.

    Attributes
    ----------
    first : int
        Place of the layer of the rows
    second : int
        Place of the layer of the columns; that of the rows, for edges within a layer
    weights : Tensor
        (n_rows, n_columns) at least 0
    rows : Tensor
        (n_rows,) what is expected of an edge is the product of its row's entry and its column's
    columns : Tensor
        (n_columns,)
    noise : float
        Variance of an edge, as a multiple of what is expected of it; 0 for a block without a pattern
    """

    first: int  # Place of the layer of the rows
    second: int  # Place of the layer of the columns; that of the rows, for edges within a layer
    weights: Tensor  # (n_rows, n_columns) at least 0
    rows: Tensor  # (n_rows,) what is expected of an edge is the product of its row's entry and its column's
    columns: Tensor  # (n_columns,)
    noise: float  # Variance of an edge, as a multiple of what is expected of it; 0 for a block without a pattern

    @property
    def total(self) -> float:
        """Sum of what is expected, over all pairs of units."""
        both = float(self.rows.sum()) * float(self.columns.sum())
        return both - float(self.rows.square().sum()) if self.first == self.second else both


def patterns(
    graph: UnitGraph,  # Of any kind
) -> list[Pattern]:  # In the order of the graph's blocks; blocks without edges are left out
    """What is left of each block when the strengths of its units are taken out.

    Parameters
    ----------
    graph : UnitGraph
        Of any kind

    Returns
    -------
    list[Pattern]
        In the order of the graph's blocks; blocks without edges are left out
    """
    place = {layer: i for i, layer in enumerate(graph.layers)}
    exact = sum(block.numel() for block in graph.blocks.values()) <= _EXACT
    found, known = [], {}
    for (a, b), block in graph.blocks.items():
        if not block.any():
            continue
        if (shared := (id(block), a == b)) not in known:  # a residual stream gives many pairs of layers one block
            exact_here = exact and block.device.type != "mps"
            weights = block.detach().to(torch.float64 if exact_here else torch.float32, copy=True)
            known[shared] = _pattern(place[a], place[b], weights.div_(weights.max()))
        found.append(replace(known[shared], first=place[a], second=place[b]))
    return found


def _pattern(first: int, second: int, weights: Tensor) -> Pattern:
    rows, columns = _balance(weights)
    if _is_rate(weights, rows, columns):
        rows, columns = _margins(weights)
    else:
        _divide(weights, rows, columns)
        power = _telling_power(weights)
        if power != 1:
            _raise(weights, power)
            _divide(weights, *_balance(weights))
        live_rows, live_columns = weights.any(1), weights.any(0)
        rows, columns = live_rows.to(weights), live_columns.to(weights)
    if first == second:  # no unit is joined to itself, and the others make up for it
        whole = rows.sum() ** 2
        rows = columns = rows * (weights.sum() / (whole - rows.square().sum())).sqrt()
    inverse = [torch.where(one > 0, 1 / one, 0) for one in (rows, columns)]
    n_pairs = float((rows > 0).sum() * (columns > 0).sum())
    square = sum(
        float(i @ part.square() @ inverse[1]) for i, part in zip(inverse[0].split(256), weights.split(256), strict=True)
    )
    relative = (square - float(rows.sum()) * float(columns.sum())) / n_pairs
    noise = relative if relative > _FLAT * float(weights.max()) else 0.0
    return Pattern(first=first, second=second, weights=weights, rows=rows, columns=columns, noise=noise)


def _margins(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of the configuration model: the sums of rows and of columns, over the root of the whole sum."""
    root = weights.sum().sqrt()
    return weights.sum(1) / root, weights.sum(0) / root


def _balance(weights: Tensor, most: int = 20) -> tuple[Tensor, Tensor]:
    """Factors of rows and columns by which to divide, so that the mean of each live row and column is one.

    Strengths that vary much are told badly by plain sums, in which the strongest partners count most.
    """
    live_rows, live_columns = (weights > 0).any(1), (weights > 0).any(0)
    rows = columns = None
    columns = live_columns.to(weights)
    for _ in range(most):
        rows = _mean(weights @ torch.where(columns > 0, 1 / columns, 0), live_columns)
        new = _mean(torch.where(rows > 0, 1 / rows, 0) @ weights, live_rows)
        change = (new - columns).abs().max() / new.max()
        columns = new
        if change < 1e-4:
            break
    return rows, columns


def _mean(sums: Tensor, over: Tensor) -> Tensor:
    return sums / over.sum()


def _divide(weights: Tensor, rows: Tensor, columns: Tensor) -> None:
    """In place; dead rows and columns stay 0."""
    weights.mul_(torch.where(rows > 0, 1 / rows, 0)[:, None]).mul_(torch.where(columns > 0, 1 / columns, 0))


def _is_rate(weights: Tensor, rows: Tensor, columns: Tensor) -> bool:
    """Does the scatter of weights grow like their expected root, as that of counts, and not in proportion?

    Then a weak unit's few edges tell less than a strong unit's many, and must not be blown up to the same size.
    """
    inverse = torch.where(columns > 0, 1 / columns, 0)
    square = torch.cat([part.square() @ inverse.square() for part in weights.split(256)])
    live, n_live = rows > 0, float((columns > 0).sum())
    size, scatter = rows[live], square[live] / n_live / rows[live].square() - 1
    known = scatter > _FLAT
    if int(known.sum()) < 3:
        return False
    x, y = size[known].log(), scatter[known].log()
    x = x - x.mean()
    spread = float(x.square().mean())
    return spread > 0.05 and float((x * y).mean()) < -0.5 * spread  # less is the noise of the sums themselves


def _telling_power(weights: Tensor) -> float:
    """The power of the weights whose mean, beside its scatter, moves most when all weights grow by a factor."""
    order = weights.sum(1).argsort()
    step = max(1, weights.numel() // _SAMPLE)
    sample = weights[order[::step]].flatten()
    if not len(sample) or float((sample == 0).double().mean()) > 0.05:
        return 1.0
    told = []
    for power in _POWERS:
        raised = sample**power
        scatter = raised.std(correction=min(1, len(raised) - 1))
        told.append(power * float(raised.mean() / scatter.clamp(min=1e-12)))
    return _POWERS[int(np.argmax(np.round(told, 6)))]


def _raise(weights: Tensor, power: float) -> None:
    if power == 2:
        weights.square_()
    else:
        for _ in range(round(-np.log2(power))):
            weights.sqrt_()


def pattern_nulls(
    graph: UnitGraph,  # Of any kind
    n: int,  # Graphs, at least 1
    *,
    seed: int = 0,  # Seeds the draws; more graphs continue fewer; global generators are left alone
) -> Iterator[UnitGraph]:  # Made one at a time
    """What would the graph be if the pattern of each block were dealt out at random, and every unit as strong as it is?

    Of each block, what strengths leave unexplained changes places, among pairs of live units, and is multiplied by the
    strengths again. That is fair if weights scatter in proportion to what strengths explain.

    Parameters
    ----------
    graph : UnitGraph
        Of any kind
    n : int
        Graphs, at least 1
    seed : int, default 0
        Seeds the draws; more graphs continue fewer; global generators are left alone

    Returns
    -------
    Iterator[UnitGraph]
        Made one at a time
    """
    for i in range(n):
        rng, blocks = np.random.default_rng([seed, i]), {}
        for (a, b), block in graph.blocks.items():
            blocks[a, b] = _dealt(block.detach(), rng, within=a == b)
        yield UnitGraph(layers=graph.layers, sizes=graph.sizes, blocks=blocks, kind=graph.kind)


def _dealt(block: Tensor, rng: np.random.Generator, within: bool) -> Tensor:
    weights = block.cpu().double()
    if not weights.any():
        return block
    rows, columns = _balance(weights)
    if within:
        rows = columns = (rows * columns).sqrt()  # as of a symmetric matrix they should be
    live = torch.outer(rows > 0, columns > 0)
    live = live.triu(1) if within else live
    expected = torch.outer(rows, columns)[live]
    order = torch.from_numpy(rng.permutation(len(expected)))
    found = torch.zeros_like(weights)
    fitted = np.prod([1 - 1 / max(2, int((side > 0).sum())) for side in (rows, columns)])
    left = (weights[live] / expected) ** (fitted**-0.5)  # strengths that were fitted took some of the scatter
    found[live] = left[order] * expected
    return (found + found.T if within else found).to(block)


# First guesses


def _neighbours(n_layers: int, blocks: Sequence[Pattern]) -> list[set[int]]:
    near: list[set[int]] = [set() for _ in range(n_layers)]
    for one in blocks:
        near[one.first].add(one.second)
        near[one.second].add(one.first)
    return near


def _windows(n_layers: int, blocks: Sequence[Pattern], n: int) -> list[tuple[int, ...]]:
    """Groups of neighbouring layers, `n` of each length, spread over the network, and all layers."""
    near, chosen = _neighbours(n_layers, blocks), []
    for length in _WINDOWS:
        found = [_window(near, centre, length) for centre in range(n_layers)]
        found = [one for one in dict.fromkeys(found) if len(one) > 1 or one[0] in near[one[0]]]
        chosen += [found[i] for i in np.unique(np.linspace(0, len(found) - 1, n).round().astype(int))]
    return list(dict.fromkeys([*chosen, tuple(range(n_layers))]))


def _window(near: list[set[int]], centre: int, length: int) -> tuple[int, ...]:
    window, front = [centre], [centre]
    while front and len(window) < length:
        front = sorted({x for f in front for x in near[f]} - set(window), key=lambda x: (abs(x - centre), x))
        front = front[: length - len(window)]
        window += front
    return tuple(sorted(window))


class _Product:
    """Products with all patterns of some layers at once, each edge less what is expected, over its root."""

    def __init__(self, sizes: Sequence[int], blocks: Sequence[Pattern]) -> None:
        self.sizes, self.blocks = list(sizes), blocks
        self.inverse = [tuple(torch.where(s > 0, s.rsqrt(), 0)[:, None] for s in (b.rows, b.columns)) for b in blocks]
        self.root = [tuple(side.sqrt()[:, None] for side in (b.rows, b.columns)) for b in blocks]

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        parts, into = x.split(self.sizes), out.split(self.sizes)
        for one, (over, under), (row, column) in zip(self.blocks, self.inverse, self.root, strict=True):
            i, j, scale = one.first, one.second, max(one.total, 1e-300) ** -0.5
            left = over * (one.weights @ (under * parts[j])) - row * (column.T @ parts[j])
            into[i].add_(left + row**2 * parts[i] if i == j else left, alpha=scale)
            if i != j:
                into[j].add_(under * (one.weights.T @ (over * parts[i])) - column * (row.T @ parts[i]), alpha=scale)
        return out


def _embed(sizes: Sequence[int], blocks: Sequence[Pattern], k: int, max_iter: int | None) -> np.ndarray:
    """(n_units, k - 1) leading eigenvectors, of one mean square in each layer."""
    product, like = _Product(sizes, blocks), blocks[0].weights
    n_units, width = sum(sizes), max(16, k)
    if n_units <= max(512, 4 * width):
        matrix = product(torch.eye(n_units, dtype=like.dtype, device=like.device)).cpu().double()
        vectors = torch.linalg.eigh((matrix + matrix.T) / 2)[1].flip(1)[:, : k - 1]
    else:
        start = torch.randn(n_units, width, generator=torch.Generator().manual_seed(0)).to(like)
        none = torch.zeros(n_units, 1).to(like)
        vectors = leading_pairs(product, start, none, k - 1, lambda least: 1e-3, max_iter or 6).vectors
        vectors = vectors[:, : k - 1].cpu().double()
    vectors = vectors * torch.sign(vectors.gather(0, vectors.abs().argmax(0, keepdim=True)))
    parts = [part / part.square().mean().sqrt().clamp(min=1e-12) for part in vectors.split(list(sizes))]
    return torch.cat(parts).numpy()


def _outwards(blocks: Sequence[Pattern], known: np.ndarray) -> list[int]:
    """Layers that are known, then their neighbours, and so on."""
    near = _neighbours(len(known), blocks)
    order = np.flatnonzero(known).tolist()
    for layer in order:
        order += sorted(near[layer] - set(order))
    return order + [layer for layer in range(len(known)) if layer not in order]


def _guess(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    order = np.lexsort(np.round(points, 9).T)  # sorted first, so that the order of the units does not matter
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of points that coincide
        found = KMeans(k, n_init=1, max_iter=30, random_state=seed).fit(points[order]).labels_
    labels = np.empty(len(order), dtype=np.int64)
    labels[order] = found
    return labels


# The climb


class _Climb:
    """Coordinate ascent on the likelihood of a block model, from several starts at once.

    Each block has a factor of its own, by which edges inside modules are stronger than expected. All starts share one
    product with a block, which costs little more than that of one.
    """

    def __init__(
        self, sizes: Sequence[int], blocks: Sequence[Pattern], k: int, starts: Sequence[dict[int, np.ndarray]]
    ) -> None:
        self.blocks, self.k, like = blocks, k, blocks[0].weights
        self.member = [torch.full((n, len(starts), k), 1 / k).to(like) for n in sizes]  # probability of each cluster
        self.known = np.zeros((len(sizes), len(starts)), dtype=bool)  # has the layer been reached from the start?
        self.shares = np.full((2, len(blocks), len(starts)), np.nan)  # of weight inside clusters, observed and expected
        self.met: list[list[int]] = [[] for _ in sizes]
        self.loops = {one.first for one in blocks if one.first == one.second}
        for place, one in enumerate(blocks):
            for layer in {one.first, one.second}:
                self.met[layer].append(place)
        for i, labels in enumerate(starts):
            for layer, found in labels.items():
                one_hot = torch.eye(k, dtype=like.dtype)[torch.from_numpy(found)]
                self.member[layer][:, i], self.known[layer, i] = one_hot.to(like.device), True
        self.totals, self.noise = [one.total for one in blocks], np.array([one.noise or 1.0 for one in blocks])
        self.information = np.array(
            [total / one.noise if one.noise else 0.0 for one, total in zip(blocks, self.totals, strict=True)]
        )
        names = [id(one.weights) for one in blocks]
        self.shared = {name for name in names if names.count(name) > 1}
        self.products: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}  # of shared weights, and with what
        self._take_stock()
        for place, one in enumerate(blocks):
            self._share(place, self._times(one, True), one.first)

    def _take_stock(self) -> None:
        """What is kept beside the probabilities, anew."""
        self.products.clear()
        self.sides = [
            [_sums(one.rows, self.member[one.first]), _sums(one.columns, self.member[one.second])]
            for one in self.blocks
        ]  # (n_starts, k) each, expected strength of each cluster in the two layers of a block

    def _times(self, one: Pattern, forward: bool) -> Tensor:
        """Weights times the probabilities of the layer at their other end; once for all layers that share both."""
        name, other = (id(one.weights), forward), self.member[one.second if forward else one.first]
        known, product = self.products.get(name, (None, None))
        if product is None or known is not other:
            weights = one.weights if forward else one.weights.T
            product = (weights @ other.flatten(1)).unflatten(1, other.shape[1:])
            if name[0] in self.shared:
                self.products[name] = other, product
        return product

    def _share(self, place: int, product: Tensor, layer: int) -> None:
        one, sides = self.blocks[place], self.sides[place]
        if one.first == layer:
            sides[0] = _sums(one.rows, self.member[layer])
        if one.second == layer:
            sides[1] = _sums(one.columns, self.member[layer])
        expected = (sides[0] * sides[1]).sum(1)
        if one.first == one.second:
            expected = expected - _sums(one.rows.square(), self.member[layer].square()).sum(1)
        observed = (product * self.member[layer]).sum((0, 2))
        self.shares[:, place] = torch.stack([observed, expected]).cpu().double().numpy() / self.totals[place]

    def factors(self, pooled: bool) -> np.ndarray:  # (2, n_blocks, n_starts)
        """How much more than expected is inside clusters, and between them: of each block, or of all together."""
        known = np.stack([self.known[one.first] & self.known[one.second] for one in self.blocks])
        weights = np.where(known, self.information[:, None], 0) + 1e-300
        common = _factors(*(self.shares * weights).sum(1) / weights.sum(0))[:, None]
        common = np.where(common[0] < 1.05, [[[1.05]], [[0.98]]], common)  # or nothing would spread from what is known
        return np.where(known & (not pooled), _factors(*self.shares), common)

    def sweep(self, order: Sequence[int], *, pooled: bool, sharpness: float = 1.0) -> None:
        """Every layer once, given all others. A `sharpness` above 1 makes up minds."""
        inside, between = self.factors(pooled)
        weight = np.stack([np.log(inside / between), inside - between]) / self.noise[:, None]
        weight = torch.from_numpy(weight).to(self.member[0])[..., None]
        prior = self._prior() if not pooled else 0.0
        for layer in order:
            field, products = self._field(layer, weight)
            new = torch.softmax(sharpness * (field + prior), 2)
            self.member[layer] = (new + self.member[layer]) / 2 if layer in self.loops else new
            for place, product in products.items():
                self._share(place, product, layer)
                self.known[layer] |= self.known[self.blocks[place].first] | self.known[self.blocks[place].second]

    def _prior(self) -> Tensor:  # (n_starts, k)
        """Large modules are likelier than small ones, of what is shared out already."""
        share = torch.cat(self.member).mean(0)
        return (0.9 * share + 0.1 / self.k).log()

    def _field(self, layer: int, weight: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """(n_units, n_starts, k) log-likelihood of each cluster, and the products with each block's weights."""
        field, products = torch.zeros_like(self.member[layer]), {}
        for place in self.met[layer]:
            one = self.blocks[place]
            forward = one.first == layer
            here = one.rows if forward else one.columns
            product = products[place] = self._times(one, forward)
            if not one.noise:
                continue
            gain, cost = weight[0, place], weight[1, place]
            field.addcmul_(product, gain)
            field.sub_(here[:, None, None] * (self.sides[place][forward] * cost))
            if one.first == one.second:
                field.addcmul_(one.rows.square()[:, None, None] * self.member[layer], cost)
        return field, products

    def values(self) -> np.ndarray:  # (n_starts,)
        """Evidence lower bound, up to a constant, less what clusters tell of layers, which they are to run through."""
        inside, between = _factors(*self.shares)
        gain = self.shares[0] * np.log(inside) + (1 - self.shares[0]) * np.log(between)
        member = torch.cat(self.member).double()
        share = member.mean(0).clamp(min=1e-12)
        entropy = (member * share.log()).sum((0, 2)) - torch.xlogy(member, member).sum((0, 2))
        told = torch.zeros_like(entropy)
        for one in self.member:
            own = one.double().mean(0)
            told += len(one) * (torch.xlogy(own, own) - own * share.log()).sum(1)
        return self.information @ np.nan_to_num(gain) + (entropy - told).cpu().numpy()

    def keep(self, starts: Sequence[int]) -> None:
        """Go on with some of the starts."""
        chosen = list(starts)
        self.member = [one[:, chosen] for one in self.member]
        self.known, self.shares = self.known[:, chosen], self.shares[:, :, chosen]
        self._take_stock()

    def run(self, n: int, *, pooled: bool = False, sharpness: float = 1.0) -> bool:
        """At most `n` sweeps, there and back; True if the last changed next to nothing."""
        for i in range(n):
            before = [one.clone() for one in self.member]
            order = range(len(self.member))
            self.sweep(order if i % 2 == 0 else order[::-1], pooled=pooled, sharpness=sharpness)
            if max(float((a - b).abs().max()) for a, b in zip(before, self.member, strict=True)) < 1e-3:
                return True
        return False

    def unsure(self) -> np.ndarray:  # (n_layers,) bool
        """Layers that the first start leaves shared out nearly evenly, unit by unit."""
        sure = np.array([float(one[:, 0].amax(1).mean()) for one in self.member])
        return sure < (1 + 1 / self.k) / 2

    def settle(self, layers: np.ndarray) -> None:
        """Give the units of some layers, (n_layers,) bool, the cluster that they are joined to most, outwards."""
        for layer in np.flatnonzero(layers):
            self.member[layer].fill_(1 / self.k)
            self.known[layer] = False
        self._take_stock()
        order = [layer for layer in _outwards(self.blocks, ~layers) if layers[layer]]
        for _ in range(3):
            self.sweep(order, pooled=True, sharpness=1e6)

    def labels(self) -> np.ndarray:
        """(n_units,) most likely cluster, by the first start that is left."""
        return torch.cat(self.member)[:, 0].argmax(1).cpu().numpy()


def _sums(strengths: Tensor, member: Tensor) -> Tensor:  # (n_units,), (n_units, n_starts, k) -> (n_starts, k)
    return (strengths[None] @ member.flatten(1)).view(member.shape[1:])


def _factors(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:  # (...) each -> (2, ...)
    """Inside and between, from shares; modules that are joined less inside than between count as not joined."""
    inside = observed / np.maximum(expected, 1e-9)
    between = np.maximum((1 - observed) / np.maximum(1 - expected, 1e-9), 1e-3)
    return np.where(inside > between, [inside, between], 1.0)


class Modules(NamedTuple):
    """What was found.

    Attributes
    ----------
    labels : np.ndarray
        (n_units,) cluster of each unit, from 0, by first appearance; -1 for dead units
    sure : np.ndarray
        (n_units,) probability of that cluster by the block model, up to 1; 0 for dead units
    notes : tuple[str, ...]
        How they were found, and what that leaves out
    """

    labels: np.ndarray  # (n_units,) cluster of each unit, from 0, by first appearance; -1 for dead units
    sure: np.ndarray  # (n_units,) probability of that cluster by the block model, up to 1; 0 for dead units
    notes: tuple[str, ...]  # How they were found, and what that leaves out


def find_modules(
    sizes: Sequence[int],  # Units of each layer
    blocks: Sequence[Pattern],  # From `patterns`, at least one
    alive: np.ndarray,  # (n_units,) True for units with an edge
    k: int,  # Clusters, from 2 to the number of live units
    *,
    seed: int = 0,  # Seeds k-means
    n_init: int = 5,  # Starts of k-means in each window, at most
    max_iter: int | None = None,  # Most steps of the eigenvalue solver; None: 6
) -> Modules:
    """Which `k` modules run through the layers?

    Parameters
    ----------
    sizes : Sequence[int]
        Units of each layer
    blocks : Sequence[Pattern]
        From `patterns`, at least one
    alive : np.ndarray
        (n_units,) True for units with an edge
    k : int
        Clusters, from 2 to the number of live units
    seed : int, default 0
        Seeds k-means
    n_init : int, default 5
        Starts of k-means in each window, at most
    max_iter : int | None, default None
        Most steps of the eigenvalue solver; None: 6

    Returns
    -------
    Modules
    """
    live = np.split(alive, np.cumsum(sizes)[:-1])
    n_edges = sum(one.weights.numel() for one in blocks)
    large = n_edges > _EXACT
    windows = _windows(len(sizes), blocks, 2 if large else _STARTS)
    n_columns = 0 if n_edges > _HUGE else _COLUMNS
    rng, n_each = np.random.default_rng(seed), max(1, min(n_init, n_columns // (k * len(windows))))
    starts = [
        labels
        for window in windows
        for labels in _window_labels(sizes, blocks, live, window, k, rng.integers(2**31, size=n_each), max_iter)
    ]
    climb = _Climb(sizes, blocks, k, starts)
    n_climb = _CLIMB // 2 if large else _CLIMB
    climb.run(_GROW - 1 if large else _GROW, pooled=True)
    best = np.argsort(-np.round(climb.values(), 6), kind="stable")[:2]
    climb.keep(best)
    climb.run(n_climb)
    winner = int(np.argmax(np.round(climb.values(), 6)))
    climb.keep([winner])
    n_finish = int(np.clip(_ENOUGH // (2 * n_edges * k), *_FINISH))
    settled = climb.run(n_finish)
    sure = np.where(alive, torch.cat(climb.member)[:, 0].amax(1).cpu().double().numpy(), 0.0)
    unsure = climb.unsure()
    if len(np.unique(climb.labels()[alive])) < 2 or unsure.sum() >= len(unsure) - 1:  # the nearest there is to modules
        unsure[:] = True
        climb = _Climb(sizes, blocks, k, [starts[best[winner]]])
        settled = climb.run(n_finish, pooled=True, sharpness=1e6)
    elif unsure.any():
        climb.settle(unsure)
    hard = np.where(alive, climb.labels(), -1)
    return Modules(_numbered(hard), sure, _notes(blocks, hard, k, settled, unsure))


def pattern_score(
    blocks: Sequence[Pattern],  # From `patterns`
    labels: Sequence[np.ndarray],  # A layer: (n_units,) cluster of each unit; -1: in none
) -> float:  # Below 1; 0 for one cluster of all units
    """How much more of each pattern lies inside clusters than expected, on average over pairs of layers?

    Parameters
    ----------
    blocks : Sequence[Pattern]
        From `patterns`
    labels : Sequence[np.ndarray]
        A layer: (n_units,) cluster of each unit; -1: in none

    Returns
    -------
    float
        Below 1; 0 for one cluster of all units
    """
    k, excess = 1 + max(int(one.max()) for one in labels), []
    member = [np.eye(k + 1)[one][:, :k] for one in labels]  # -1 is the last row
    for one in (one for one in blocks if one.noise):
        row, column = (torch.from_numpy(member[i]).to(one.weights) for i in (one.first, one.second))
        inside = float((row * (one.weights @ column)).sum())
        expected = float((one.rows @ row) @ (one.columns @ column))
        if one.first == one.second:
            expected -= float(one.rows.square() @ row.sum(1))
        excess.append((inside - expected) / one.total)
    return float(np.mean(excess)) if excess else float("nan")


def _notes(blocks: Sequence[Pattern], labels: np.ndarray, k: int, settled: bool, unsure: np.ndarray) -> tuple[str, ...]:
    notes = []
    if flat := sum(one.noise == 0 for one in blocks):
        notes.append(f"In {flat} of {len(blocks)} pairs of layers, strengths explain all edges, so these tell nothing.")
    n_found = len(np.unique(labels[labels >= 0]))
    if n_found < k:
        notes.append(f"There are {n_found} clusters and not {k}: more of them would not have told more.")
    if unsure.all():
        notes.append(
            "No modules stand out from noise, so these clusters are the nearest there is to any: do not lean on them."
        )
    elif unsure.any():
        where = f"{unsure.sum()} of {len(unsure)} layers"
        notes.append(f"In {where} no modules stand out from noise: units there are with those they are joined to most.")
    if not settled and not unsure.all():
        notes.append("The search was stopped while a few units still changed their cluster.")
    return tuple(notes)


def _numbered(labels: np.ndarray) -> np.ndarray:
    """By first appearance; -1 stays."""
    found, first, index = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(found), dtype=np.int64)
    real = found >= 0
    rank[~real] = -1
    rank[real] = np.argsort(np.argsort(first[real]))
    return rank[index]


def _window_labels(
    sizes: Sequence[int],
    blocks: Sequence[Pattern],
    live: list[np.ndarray],
    window: tuple[int, ...],
    k: int,
    seeds: np.ndarray,
    max_iter: int | None,
) -> list[dict[int, np.ndarray]]:
    """For each seed, layer -> first guess of its clusters; none if the window is too small to hold them."""
    place = {layer: i for i, layer in enumerate(window)}
    inside = [one for one in blocks if one.first in place and one.second in place]
    alive = np.concatenate([live[layer] for layer in window])
    if not inside or (alive.sum() < 2 * k and len(window) < len(sizes)):
        return []
    moved = [_moved(one, place) for one in inside]
    points = _embed([sizes[layer] for layer in window], moved, k, max_iter)
    ends, found = np.cumsum([sizes[layer] for layer in window])[:-1], []
    for seed in seeds.tolist():
        labels = np.zeros(len(points), dtype=np.int64)
        labels[alive] = _guess(points[alive], k, seed)
        found.append(dict(zip(window, np.split(labels, ends), strict=True)))
    return found


def _moved(one: Pattern, place: dict[int, int]) -> Pattern:
    return replace(one, first=place[one.first], second=place[one.second])
