"""Local generators: random numbers that leave the global state alone.

A plain module, not a notebook: mechanism without a story.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seeded"]


@contextmanager
def seeded(
    seed: int,  # Where the generators start
    device: torch.device | None = None,  # A GPU whose generator is meant too
) -> Iterator[None]:
    """PyTorch's generators, of the CPU and of `device`, start at `seed` inside the block and are put back after it.

    Parameters
    ----------
    seed : int
        Where the generators start
    device : torch.device | None, default None
        A GPU whose generator is meant too

    Returns
    -------
    Iterator[None]
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
