"""A sweep over heads and neurons of a language model: beside a hook and a full pass a lesion, and bare suffix passes.

GPT-2's small configuration, its weights random and nothing downloaded: 12 blocks, 768 wide, 50,257 words; one sequence
of 128 tokens, one thread. Lesions are of two blocks, one before the middle and one behind it, so that what is left to
run is half of the blocks on average. Nearly a third of a full pass is the product with the vocabulary, which every
lesion needs. In numbers multiplied, bare suffix passes cost two thirds of full passes: a hook and a full pass cannot
take 2.5 times as long as they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from harness import Race, measure
from torch import Tensor, nn
from torch.nn import functional as F

from specialize_nb.base.data import Batches
from specialize_nb.base.text import next_token
from specialize_nb.lesions.damage import damage_run
from specialize_nb.lesions.dense import row_loss
from specialize_nb.lesions.lesion import LesionEngine, measure_lesions
from specialize_nb.network.units import trace

BLOCKS = (3, 8)  # of the 12, from 0
N_LESIONS = 24  # of each kind of unit in each block
SWEEP = "lesion sweep, GPT-2 small, heads and neurons of blocks 3 and 8, 24 lesions each, 128 tokens"


class Scene(NamedTuple):
    """A language model made ready, one sequence, and what is to be silenced."""

    model: nn.Module
    data: Batches
    engine: LesionEngine
    groups: dict[str, np.ndarray]  # Layer -> (n_lesions, n_units) bool, all of them different
    ready_s: float  # What it took to make the model ready, once


def scene() -> Scene:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(use_cache=False)).eval().requires_grad_(False)
    ids = torch.randint(model.config.vocab_size, (1, 128), generator=torch.Generator().manual_seed(1))
    start, network = perf_counter(), trace(model, ids, attention="head")
    groups = dict(one for block in BLOCKS for one in drawn(network, block))
    work = damage_run(model, next_token(ids), network, list(groups), n_boot=0).work
    return Scene(model, work.data, work.engine, groups, perf_counter() - start)


def drawn(network, block: int) -> Iterator[tuple[str, np.ndarray]]:
    """Random pairs of heads, and random groups of a hundredth of the neurons, all of them different."""
    rng = np.random.default_rng(block)
    pairs = np.array(list(combinations(range(12), 2)))
    yield f"transformer.h.{block}.attn", table_of(pairs[rng.permutation(len(pairs))[:N_LESIONS]], 12)
    n = network.layer(name := f"transformer.h.{block}.mlp.c_fc").n_units
    yield name, table_of(rng.permutation(n)[: 31 * N_LESIONS].reshape(N_LESIONS, 31), n)


def table_of(units: np.ndarray, n_units: int) -> np.ndarray:
    """(n_lesions, n_units) bool, from a row of units for each lesion."""
    table = np.zeros((len(units), n_units), dtype=bool)
    np.put_along_axis(table, units, True, axis=1)
    return table


def loss(scores: Tensor, intact: Tensor, y: Tensor) -> Tensor:
    """(g, 1) the mean loss over positions; the last has no next token."""
    rows = scores.unflatten(2, (y.shape[1], -1))[:, 0, :-1]
    return row_loss(rows, y[0, :-1]).mean(1, keepdim=True)


def sweep(given: Scene) -> np.ndarray:
    """(n_layers * n_lesions,) losses."""
    sets = given.groups.items()
    found = [measure_lesions(given.engine, given.data, [{name: table}], [loss])[0][0] for name, table in sets]
    return np.concatenate(found)[:, 0]


def hooked(given: Scene) -> np.ndarray:
    """The same, the way one writes it first: the input of the next product holds heads side by side, or neurons."""
    (x, y), losses = next(iter(given.data)), []
    for name, table in given.groups.items():
        reader, size = reads(given.model, name)
        for group in torch.as_tensor(table).repeat_interleave(size, 1):

            def silence(module, inputs, group=group):
                return inputs[0].masked_fill(group, 0.0)

            handle = reader.register_forward_pre_hook(silence)
            with torch.inference_mode():
                losses.append(float(F.cross_entropy(given.model(x).logits[0], y[0], ignore_index=-100)))
            handle.remove()
    return np.array(losses)


def reads(model: nn.Module, name: str) -> tuple[nn.Module, int]:
    """The product that reads a layer, and how many numbers it reads of each unit."""
    block = model.get_submodule(name.rsplit(".", 1 + name.endswith("c_fc"))[0])
    return (block.mlp.c_proj, 1) if name.endswith("c_fc") else (block.attn.c_proj, 64)


def far(mine: np.ndarray, theirs: np.ndarray) -> str:
    return f"largest difference of a loss {np.abs(mine - theirs).max():.1g} nats"


@measure(SWEEP, peer="one hook, one full pass a lesion", rounds=2)
def hooks() -> Race:
    given = scene()
    ready = f"made ready once in {given.ready_s:.0f} s"
    return Race(lambda: sweep(given), lambda: hooked(given), lambda *both: f"{far(*both)}; {ready}")


@measure(f"{SWEEP}, bare", peer="the floor: the layers behind the lesion by hand, stacked alike, no losses", rounds=2)
def floor() -> Race:
    given = scene()
    calls = [suffix(given, name, table) for name, table in given.groups.items()]
    first = next(iter(given.groups))
    check(given, first, calls[0]())

    @torch.inference_mode()
    def passes() -> None:
        for call in calls:
            call()

    return Race(lambda: sweep(given), passes, lambda mine, theirs: "the same scores to 1e-4")


def suffix(given: Scene, name: str, table: np.ndarray) -> Callable[[], Tensor]:
    """What runs the layers behind a lesion, from values that are kept."""
    model, (reader, size) = given.model, reads(given.model, name)
    place, kept = int(name.split(".")[2]), {}
    block = model.transformer.h[place]
    handles = [
        reader.register_forward_pre_hook(lambda mod, inputs: kept.update(units=inputs[0].clone())),
        block.ln_2.register_forward_pre_hook(lambda mod, inputs: kept.update(middle=inputs[0].clone())),
        block.register_forward_pre_hook(lambda mod, inputs: kept.update(start=inputs[0].clone())),
    ]
    with torch.inference_mode():
        model(next(iter(given.data))[0])
    for handle in handles:
        handle.remove()
    group = torch.as_tensor(table).repeat_interleave(size, 1).unsqueeze(1)

    @torch.inference_mode()
    def run() -> Tensor:
        units = kept["units"].masked_fill(group, 0.0)
        if name.endswith("attn"):
            middle = kept["start"] + reader(units)
            value = middle + block.mlp(block.ln_2(middle))
        else:
            value = kept["middle"] + reader(units)
        for later in model.transformer.h[place + 1 :]:
            value = later(value)
        return model.lm_head(model.transformer.ln_f(value))

    return run


def check(given: Scene, name: str, scores: Tensor) -> None:
    """Does the loop by hand say what the engine says?"""
    part = next(given.engine.parts(given.data, (name,)))
    own = given.engine.scores(part, {name: torch.as_tensor(given.groups[name])})
    torch.testing.assert_close(own.reshape(scores.shape), scores, rtol=1e-4, atol=1e-4)
