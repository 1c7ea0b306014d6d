"""Local generators: the same numbers inside the block, nothing changed outside."""

import pytest
import torch

from specialize_nb.base.seeds import seeded


def test_the_same_numbers_inside_and_nothing_changed_outside():
    state = torch.get_rng_state()
    draws = []
    for seed in (3, 3, 4):
        with seeded(seed):
            draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws[0], torch.rand(4, generator=torch.Generator().manual_seed(3)))


def test_an_error_inside_puts_the_generator_back_too():
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        with seeded(0, torch.device("cpu")):
            torch.rand(1)
            1 / 0
    assert torch.equal(torch.get_rng_state(), state)
