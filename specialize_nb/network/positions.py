"""Which positions have a target that counts? Padding is left out; labels that are the tokens themselves are shifted.

A plain module, not a notebook: mechanism without a story. A language model learns to say the next token; its data come
with targets that are shifted already, or, as Hugging Face has it, with labels that are the tokens again, which the
model's own loss shifts. `aimed` makes the first of the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specialize_nb.base.data import Batches
from specialize_nb.base.devices import to_model
from specialize_nb.base.targets import IGNORED
from specialize_nb.network.inputs import Padding, named_inputs, padding_of, which
from specialize_nb.network.outputs import ScoresNode
from specialize_nb.network.units import Network

__all__ = ["aimed"]


def aimed(
    model: nn.Module,  # In eval mode
    network: Network,  # Traced from it
    data: Batches,  # Checked data whose task is 'dense'
    scores: ScoresNode,  # Where the scores of positions are
) -> Batches:
    """The data with a target at the positions that count, and with none at the others.

    Padded positions get none. Targets that equal the tokens wherever they count are shifted by one, if the model
    cannot see what is to come: it then says the next token.

    Parameters
    ----------
    model : nn.Module
        In eval mode
    network : Network
        Traced from it
    data : Batches
        Checked data whose task is 'dense'
    scores : ScoresNode
        Where the scores of positions are

    Returns
    -------
    Batches

    Raises: `ValueError` if no position of an example counts.
    """
    padding = padding_of(model, network, data)
    tokens = _tokens_of(model, data)
    shift = tokens is not None and _are_tokens(model, data, tokens) and _is_causal(model, network, data, tokens, scores)
    if padding is None and not shift:
        return data
    source = _Aimed(data, padding, shift)
    labels = np.concatenate([y.cpu().numpy() for _, y in source])
    if (none := (labels == IGNORED).reshape(len(labels), -1).all(1)).any():
        told = f"no position of {which(none)} has a target that counts, padding and the last position left out"
        raise ValueError(f"{told}: leave these examples out, or give longer sequences")
    notes = [] if not shift else [_SHIFTED.format(tokens)]
    if (left := int((data.labels != IGNORED).sum() - (labels != IGNORED).sum()) - len(labels) * shift) > 0:
        notes.append(f"{left:,} targets at padded positions do not count.")
    return replace(data, source=source, labels=labels, notes=(*data.notes, *notes), sums={})


_SHIFTED = "The targets are the tokens of {!r} themselves, so they were shifted: each position's is the next token."


@dataclass(frozen=True)
class _Aimed:
    """Batches whose targets are at the positions that count."""

    source: Batches
    padding: Padding | None
    shift: bool

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return ((x, self._aimed(x, y)) for x, y in self.source)

    def _aimed(self, x: Any, y: Tensor) -> Tensor:
        counts = {} if self.padding is None else self.padding.counts(x)
        counted = counts.get(y.shape[1]) if y.ndim == 2 else None
        y = _without(y, counted)
        if self.shift:
            y = torch.cat([y[:, 1:], y.new_full((len(y), 1), IGNORED)], 1)
        return _without(y, counted)


def _without(y: Tensor, counted: Tensor | None) -> Tensor:
    return y if counted is None else y.masked_fill(~counted.to(y.device), IGNORED)


def _tokens_of(model: nn.Module, data: Batches) -> str | None:
    """The input that holds a token for each target."""
    shape = data.labels.shape[1:]
    given = named_inputs(model, data.example)
    whole = [name for name, one in given.items() if not (one.is_floating_point() or one.is_complex())]
    found = [name for name in whole if tuple(given[name].shape[1:]) == shape and given[name].dtype != torch.bool]
    found = [name for name in found if not any(part in name.lower() for part in ("mask", "type", "position"))]
    return found[0] if len(found) == 1 and len(shape) == 1 and shape[0] > 1 else None


def _are_tokens(model: nn.Module, data: Batches, name: str) -> bool:
    """Are the targets the tokens, wherever they count?"""
    for x, y in data:
        if ((y != named_inputs(model, x)[name].to(y.device)) & (y != IGNORED)).any():
            return False
    return True


@torch.no_grad()
def _is_causal(model: nn.Module, network: Network, data: Batches, name: str, scores: ScoresNode) -> bool:
    """Is what a model says at a position left as it is by the tokens that follow?"""
    x, y = next(iter(data))
    tokens = named_inputs(model, x)[name]
    last = (y != IGNORED).int().cumsum(1).argmax(1)  # the last position that counts
    changed = tokens.clone()
    rows = torch.arange(len(y))
    changed[rows, last] = tokens.flatten().max() + tokens.flatten().min() - tokens[rows, last]
    if not bool((changed != tokens).any()) or not bool((last > 0).any()):
        return False
    program = network.program
    run = program.extract(program.inputs, [scores.node])
    said = [run(*program.arguments(to_model(one, model)))[0] for one in (x, _with(x, tokens, changed))]
    before, after = (scores.dense.rows(program.examples_first(scores.node, one).flatten(1)) for one in said)
    earlier = (torch.arange(y.shape[1]) < last[:, None]).to(before.device)
    moved = (before - after).abs().amax(-1)
    return float(moved[earlier].max()) <= 1e-4 * float(before.abs().nan_to_num(0, 0, 0).max())


def _with(x: Any, old: Tensor, new: Tensor) -> Any:
    """Inputs with one of them replaced."""
    if x is old:
        return new
    if isinstance(x, Mapping):
        return {name: new if one is old else one for name, one in x.items()}
    return type(x)(new if one is old else one for one in x)
