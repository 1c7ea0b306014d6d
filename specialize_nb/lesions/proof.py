"""Does a stack of lesions say what each lesion says alone? Tried on the user's own batch, before anything is measured.

A plain module, not a notebook: mechanism without a story. Lesions are stacked along the batch, so whatever a model
computes from places in the batch, or across its examples, would go wrong without a word. The lesion notebook shows
what is done then: one lesion a call, on whole batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from specialize_nb.base.numbers import same_numbers
from specialize_nb.lesions.cut import Cut

__all__ = ["stack_holds"]


def stack_holds(
    cut: Cut,  # Where to lesion
    tensors: Sequence[Tensor],  # Inputs of a few examples
    fills: Mapping[str, Tensor | None],  # Layer -> what silenced units put out instead, for these examples; None: zeros
    *,
    seed: int = 0,  # Draws the units
) -> bool:
    """Do three lesions in one call say what each says alone: half of the units, none, and all?

    Parameters
    ----------
    cut : Cut
        Where to lesion
    tensors : Sequence[Tensor]
        Inputs of a few examples
    fills : Mapping[str, Tensor | None]
        Layer -> what silenced units put out instead, for these examples; None: zeros
    seed : int, default 0
        Draws the units

    Returns
    -------
    bool
    """
    masks = {name: _three(layer.n_units, seed, tensors[0].device) for name, layer in cut.layers.items()}
    kept = cut.keep(tensors)
    try:
        together = cut.scores(kept, masks, fills)
    except Exception:  # a program cut at the wrong place may fail in many ways
        return False
    alone = [cut.scores(kept, {name: mask[i : i + 1] for name, mask in masks.items()}, fills)[0] for i in range(3)]
    return same_numbers(together, torch.stack(alone))


def _three(n_units: int, seed: int, device: Any) -> Tensor:
    """(3, n_units) bool: half of the units, none, and all."""
    order = torch.randperm(n_units, generator=torch.Generator().manual_seed(seed))
    half = order < max(1, n_units // 2)
    return torch.stack([half, torch.zeros_like(half), torch.ones_like(half)]).to(device)
