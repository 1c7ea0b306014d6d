"""One layer's units as they lie in one value of a traced program, and what operations do to them.

A plain module, not a notebook: index algebra that `wiring` is made of. A strand is a tensor of *unit indices* of the
value's own shape (batch of one). What only moves numbers is run on the indices; what mixes numbers unites their units.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Links", "Strand", "along", "compact", "links", "merge", "narrow", "overlaps", "scaled", "spread", "unite"]

Groups = tuple[np.ndarray, ...]


@dataclass(eq=False)
class Strand:
    """One layer's units in one value.

    Attributes
    ----------
    layer : int
        Index of the layer; inputs count down from -1
    unit : Tensor
        The value's shape, batch of one; int32 unit (or, with groups, group) indices, -1 where none
    scale : Tensor | None, default None
        Same shape: product of the constant factors met since; None is one
    groups : Groups | None, default None
        Units of each group, if numbers here come from several units each
    """

    layer: int  # Index of the layer; inputs count down from -1
    unit: Tensor  # The value's shape, batch of one; int32 unit (or, with groups, group) indices, -1 where none
    scale: Tensor | None = None  # Same shape: product of the constant factors met since; None is one
    groups: Groups | None = None  # Units of each group, if numbers here come from several units each

    def with_(self, unit: Tensor, scale: Tensor | None = None) -> Strand:
        """The same units, laid out anew."""
        return Strand(self.layer, unit, scale, self.groups)

    @property
    def parts(self) -> list[Tensor]:
        """The indices, and the factors if there are any."""
        return [self.unit] if self.scale is None else [self.unit, self.scale]

    @property
    def counting_axis(self) -> int | None:
        """The axis that alone tells which unit a number is of, wherever it is of one; None if there is none."""
        for axis in range(1, self.unit.ndim):
            line = self.unit.movedim(axis, 0).flatten(1)
            most = line.amax(1, keepdim=True)
            if self.groups is None and most.unique().numel() > 1 and bool(((line == most) | (line < 0)).all()):
                return axis
        return None

    @property
    def layout_axis(self) -> int | None:
        """The axis along which units count up from 0, each alone and of one kind elsewhere; None if there is none."""
        varied = [axis for axis, size in enumerate(self.unit.shape) if size > 1 and self.unit.stride(axis) != 0]
        varied = [axis for axis in varied if varies(self.unit, [axis])]
        axis = varied[0] if varied else max(range(self.unit.ndim), default=0)
        if self.groups is not None or len(varied) > 1 or self.unit.ndim < 2:
            return None
        line = self.unit.movedim(axis, 0).flatten(1)[:, 0]
        return axis if torch.equal(line, torch.arange(len(line), dtype=line.dtype)) else None


@dataclass(eq=False)
class Links:
    """Which slices of a weight hold which units: pairs of a slice and a unit, and the factor between them.

    Attributes
    ----------
    pairs : np.ndarray
        (2, n_links) int64: slice of the weight; unit
    scale : Tensor | None
        (n_links,); None is one
    """

    pairs: np.ndarray  # (2, n_links) int64: slice of the weight; unit
    scale: Tensor | None  # (n_links,); None is one


def along(
    values: Tensor,  # (shape[axis],)
    shape: Sequence[int],  # Of the result
    axis: int,  # Where the values lie in it
) -> Tensor:
    """`values` (shape[axis],) laid along `axis` of `shape`, without taking memory for the rest.

    Parameters
    ----------
    values : Tensor
        (shape[axis],)
    shape : Sequence[int]
        Of the result
    axis : int
        Where the values lie in it

    Returns
    -------
    Tensor
    """
    return values.view([-1 if d == axis % len(shape) else 1 for d in range(len(shape))]).expand(*shape)


def narrow(
    value: Tensor,  # Of any shape
    dims: Iterable[int],  # Axes to be cut to one
) -> Tensor:
    """The first slice of `value` along `dims`, which stay as dimensions of one.

    Parameters
    ----------
    value : Tensor
        Of any shape
    dims : Iterable[int]
        Axes to be cut to one

    Returns
    -------
    Tensor
    """
    for dim in dims:
        value = value.narrow(dim, 0, 1)
    return value


def varies(
    value: Tensor,  # Of any shape
    dims: Sequence[int],  # Axes to look along
) -> bool:
    """True if `value` is not the same all along `dims`.

    Parameters
    ----------
    value : Tensor
        Of any shape
    dims : Sequence[int]
        Axes to look along

    Returns
    -------
    bool
    """
    dims = [d for d in dims if value.shape[d] > 1 and value.stride(d) != 0]
    return bool(dims) and not bool((value.amin(dims) == value.amax(dims)).all())


def compact(
    value: Tensor,  # Of any shape
) -> Tensor:
    """`value` with memory for one slice only along dimensions where all slices are the same.

    Parameters
    ----------
    value : Tensor
        Of any shape

    Returns
    -------
    Tensor
    """
    if value.numel() < 4096:
        return value
    shape = value.shape
    for dim in range(value.ndim):
        if value.shape[dim] > 1 and not varies(value, [dim]):
            value = value.narrow(dim, 0, 1)
    return value.clone(memory_format=torch.contiguous_format).expand(shape)


def spread(
    strand: Strand,  # Of a shape that broadcasts
    shape: Sequence[int],  # Of the result
) -> Strand:
    """The strand broadcast to `shape`; itself if it has that shape.

    Parameters
    ----------
    strand : Strand
        Of a shape that broadcasts
    shape : Sequence[int]
        Of the result

    Returns
    -------
    Strand
    """
    if strand.unit.shape == tuple(shape):
        return strand
    return strand.with_(*(part.broadcast_to(tuple(shape)) for part in strand.parts))


def scaled(
    strand: Strand,  # Of any shape
    factor: Tensor,  # Of a shape that broadcasts to it; signs are dropped
) -> Strand:
    """The strand after its value was multiplied by `factor`, which broadcasts to it.

    Parameters
    ----------
    strand : Strand
        Of any shape
    factor : Tensor
        Of a shape that broadcasts to it; signs are dropped

    Returns
    -------
    Strand
    """
    shape = strand.unit.shape
    factor = _thin(factor.abs().broadcast_to(shape))
    if strand.scale is not None:
        factor = factor * _thin(strand.scale)
    return strand.with_(strand.unit, factor.broadcast_to(shape))


def _thin(value: Tensor) -> Tensor:
    """`value` with dimensions of one where it takes no memory anyway."""
    return narrow(value, [d for d in range(value.ndim) if value.stride(d) == 0])


def merge(
    strand: Strand,  # Of any shape
    dims: Sequence[int],  # Axes along which numbers were mixed
) -> Strand:
    """The strand after all numbers along `dims` were mixed; `dims` stay as dimensions of one.

    Parameters
    ----------
    strand : Strand
        Of any shape
    dims : Sequence[int]
        Axes along which numbers were mixed

    Returns
    -------
    Strand
    """
    dims = sorted({d % strand.unit.ndim for d in dims})
    scale = None if strand.scale is None else _thin(strand.scale).mean(dims, keepdim=True)
    if not varies(strand.unit, dims):
        unit = narrow(strand.unit, dims)
        return strand.with_(unit, None if scale is None else scale.broadcast_to(unit.shape))
    thin = _thin(strand.unit)
    rest = [d for d in range(thin.ndim) if d not in dims]
    rows = thin.permute(*rest, *dims).flatten(len(rest)).reshape(-1, int(np.prod([thin.shape[d] for d in dims])))
    sets, index = _distinct(rows.numpy())
    groups = tuple(_members(strand, row) for row in sets)
    shape = [1 if d in dims else thin.shape[d] for d in range(thin.ndim)]
    unit = torch.from_numpy(index.reshape(shape).astype(np.int32))
    empty = torch.tensor([len(group) == 0 for group in groups])
    unit = torch.where(empty[unit.long()], -1, unit)
    full = [1 if d in dims else size for d, size in enumerate(strand.unit.shape)]
    merged = Strand(strand.layer, unit.expand(full), groups=groups)
    return merged if scale is None else merged.with_(merged.unit, scale.broadcast_to(full))


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows of a matrix, and which of them each row is; by a fingerprint, as sorting rows is slow."""
    weights = np.random.default_rng(0).integers(1, 2**62, rows.shape[1], dtype=np.int64)
    _, first, index = np.unique(rows.astype(np.int64) @ weights, return_index=True, return_inverse=True)
    if np.array_equal(rows[first][index], rows):
        return rows[first], index
    return np.unique(rows, axis=0, return_inverse=True)  # two rows with one fingerprint


def unite(
    strands: Sequence[Strand],  # In one value, of one shape
) -> list[Strand]:
    """Mixed strands of one layer that came into one value by several ways, as one.

    Parameters
    ----------
    strands : Sequence[Strand]
        In one value, of one shape

    Returns
    -------
    list[Strand]
    """
    found: list[Strand] = []
    for strand in strands:
        place = next((i for i, one in enumerate(found) if one.layer == strand.layer and one.groups is not None), None)
        if place is None or strand.groups is None:
            found.append(strand)
        else:
            found[place] = _united(found[place], strand)
    return found


def _united(a: Strand, b: Strand) -> Strand:
    pair = torch.stack([part.contiguous() for part in torch.broadcast_tensors(_thin(a.unit), _thin(b.unit))])
    ids, index = np.unique(pair.flatten(1).numpy(), axis=1, return_inverse=True)
    groups = tuple(
        np.union1d(*(_members(one, np.array([i])) for one, i in zip((a, b), pair, strict=True))) for pair in ids.T
    )
    groups = tuple(group.astype(np.int64) for group in groups)
    unit = torch.from_numpy(index.reshape(pair.shape[1:]).astype(np.int32))
    empty = torch.tensor([len(group) == 0 for group in groups])
    return Strand(a.layer, torch.where(empty[unit.long()], -1, unit).expand(a.unit.shape), groups=groups)


def _members(strand: Strand, ids: np.ndarray) -> np.ndarray:
    """The units behind some of a strand's indices."""
    found = np.unique(ids[ids >= 0])
    if strand.groups is not None and len(found):
        found = np.unique(np.concatenate([strand.groups[one] for one in found]))
    return found.astype(np.int64)


def links(
    strand: Strand,  # In the value that meets the weight
    axis: int,  # Along which the weight cuts it into slices
) -> Links:
    """The units that each slice of the value along `axis` holds.

    Parameters
    ----------
    strand : Strand
        In the value that meets the weight
    axis : int
        Along which the weight cuts it into slices

    Returns
    -------
    Links
    """
    axis %= strand.unit.ndim
    flat = merge(strand, [d for d in range(strand.unit.ndim) if d != axis])
    index = flat.unit.flatten().numpy()
    scale = None if flat.scale is None else flat.scale.flatten()
    if flat.groups is None:
        slices = np.flatnonzero(index >= 0)
        pairs = np.stack([slices, index[slices]])
    else:
        members = [flat.groups[one] if one >= 0 else np.zeros(0, np.int64) for one in index]
        slices = np.repeat(np.arange(len(index)), [len(one) for one in members])
        pairs = np.stack([slices, np.concatenate(members)])
    return Links(pairs.astype(np.int64), None if scale is None else scale[torch.from_numpy(slices)].clone())


def overlaps(
    mixed: Strand,  # Of any shape
    other: Strand,  # Of the same shape
) -> bool:
    """True if `mixed` brings a unit to a place where `other` has it already, less mixed; both of one shape.

    Parameters
    ----------
    mixed : Strand
        Of any shape
    other : Strand
        Of the same shape

    Returns
    -------
    bool
    """
    if mixed.groups is None or mixed.layer != other.layer:
        return False
    here, there = (part.flatten().numpy() for part in _thin_together(mixed.unit, other.unit))
    pairs = np.unique(np.stack([here, there])[:, (here >= 0) & (there >= 0)], axis=1)
    for group, one in pairs.T:
        members = np.array([one]) if other.groups is None else other.groups[one]
        if len(members) < len(mixed.groups[group]) and np.isin(members, mixed.groups[group]).any():
            return True
    return False


def _thin_together(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dims = [d for d in range(a.ndim) if a.stride(d) == 0 and b.stride(d) == 0]
    return tuple(narrow(part, dims) for part in (a, b))
