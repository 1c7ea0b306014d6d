"""Unit indices under operations that move, mix and scale numbers: small cases counted by hand."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from specialize_nb.network.strands import Strand, along, compact, links, merge, overlaps, scaled, spread, unite


def strand(*ids, layer=0, **options):
    return Strand(layer, torch.tensor(ids, dtype=torch.int32), **options)


def members(found):
    """The units at every place, in order."""
    return [[] if i < 0 else found.groups[i].tolist() for i in found.unit.flatten().tolist()]


def test_merging_equal_units_keeps_them():
    found = merge(strand([0, 0], [1, 1], [-1, -1]), [1])
    assert found.groups is None and found.unit.tolist() == [[0], [1], [-1]]


def test_merging_different_units_unites_them():
    found = merge(strand([0, 1], [1, -1], [-1, -1]), [1])
    assert members(found) == [[0, 1], [1], []] and found.unit.shape == (3, 1)
    assert members(merge(found, [0])) == [[0, 1]]


def test_merging_takes_the_mean_factor():
    found = merge(strand([0, 0], [1, 1], scale=torch.tensor([[1.0, 3.0], [2.0, 2.0]])), [1])
    assert_allclose(found.scale, torch.tensor([[2.0], [2.0]]), rtol=1e-6, strict=True)


def test_links_pair_slices_with_units():
    found = links(strand([[0, 0], [2, 2], [-1, -1]]), 1)
    assert found.pairs.tolist() == [[0, 1], [0, 2]] and found.scale is None
    mixed = links(strand([[0, 1], [2, 2], [-1, -1]], scale=torch.full((1, 3, 2), 0.5)), 1)
    assert mixed.pairs.tolist() == [[0, 0, 1], [0, 1, 2]]
    assert_allclose(mixed.scale, torch.tensor([0.5, 0.5, 0.5]), rtol=1e-6, strict=True)


def test_factors_multiply_in_absolute_value():
    found = scaled(scaled(strand([0, 1]), torch.tensor([-2.0, 3.0])), torch.tensor(0.5))
    assert_allclose(found.scale, torch.tensor([[1.0, 1.5]]), rtol=1e-6, strict=True)


@pytest.mark.parametrize(
    "mixed, other, expected",
    [
        (([0, 1], [0, 1]), ([0, 1], [0, 1]), True),  # a mean of two units meets them again
        (([0, 1], [0, 1]), ([2, 3], [2, 3]), False),  # queries meet values of the same weight
        (([0, 1], [0, 1]), ([-1, -1], [-1, -1]), False),
    ],
)
def test_a_statistic_is_what_meets_its_own_units(mixed, other, expected):
    statistic = spread(merge(strand(*mixed), [1]), (2, 2))
    assert overlaps(statistic, strand(*other)) is expected
    assert overlaps(statistic, strand(*other, layer=1)) is False
    assert overlaps(strand(*other), statistic) is False


def test_two_ways_of_one_mixture_are_one():
    whole, half = merge(strand([0, 1], [2, 3]), [1]), merge(strand([0, 4], [-1, -1]), [1])
    assert overlaps(whole, half) is False  # neither is less mixed
    (found,) = unite([whole, half])
    assert members(found) == [[0, 1, 4], [2, 3]]
    assert len(unite([whole, strand([0], [1])])) == 2
    assert len(unite([whole, merge(strand([0, 1], [2, 3], layer=1), [1])])) == 2


def test_the_axis_that_counts():
    flat = Strand(0, along(torch.arange(3, dtype=torch.int32), (1, 3, 4), 1))
    assert (flat.layout_axis, flat.counting_axis) == (1, 1)
    shifted = flat.with_(torch.where(flat.unit == 0, -1, flat.unit - 1))  # as after padding a channel
    assert (shifted.layout_axis, shifted.counting_axis) == (None, 1)
    first_only = flat.unit.clone()
    first_only[..., 1:] = -1  # as a class token beside tokens that hold none of these units
    assert (flat.with_(first_only).layout_axis, flat.with_(first_only).counting_axis) == (None, 1)
    both = strand([[0, 1], [2, 3]])
    assert (both.layout_axis, both.counting_axis) == (None, None)


def test_compact_takes_no_memory_where_slices_are_equal():
    value = along(torch.arange(64), (1, 64, 32, 4), 1).contiguous()
    found = compact(value)
    assert torch.equal(found, value) and found.untyped_storage().nbytes() == 64 * 8
    mixed = value + torch.arange(4)
    assert torch.equal(compact(mixed), mixed)


def test_unit_indices_stay_whole_numbers():
    assert merge(strand([0, 1]), [1]).unit.dtype == torch.int32
    assert links(strand([0, 1]), 1).pairs.dtype == np.int64
