"""Similarities of units beside loops that take one gradient at a time, as published code does."""

import torch
from harness import Race, measure
from torch.nn import functional as F

from specialize_nb.base.data import batches
from specialize_nb.graphs.similarity import measure_similarity
from specialize_nb.network.units import trace
from specialize_nb.training.models import mlp

N_EXAMPLES, BATCH = 1000, 200
SIZES = (784, 256, 256, 10)
NAME = "MLP 784-256-256-10, 1,000 examples"


def scene():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(N_EXAMPLES, 784, generator=generator), torch.randint(0, 10, (N_EXAMPLES,), generator=generator)
    model = mlp(SIZES)
    return model, batches((x, y), batch_size=BATCH), trace(model, x)


def gradients(outputs: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """(n, n_numbers, n_outputs), by one call for each output."""
    found = by.new_zeros(*by.shape, outputs.shape[1])
    for i in range(outputs.shape[1]):
        found[:, :, i] = torch.autograd.grad(outputs[:, i].sum(), by, retain_graph=True)[0]
    return found


def tangents(part: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """(n, n_units, n_outputs), by one call for each unit, forwards."""
    found = []
    for i in range(hidden.shape[1]):
        direction = torch.zeros_like(hidden)
        direction[:, i] = 1
        found.append(torch.func.jvp(part, (hidden.detach(),), (direction,))[1])
    return torch.stack(found, 1)


def input_jacobian(model, x, y, hidden, part) -> torch.Tensor:
    slopes = gradients(hidden, x)
    return torch.einsum("npi,npj->ij", slopes, slopes)


def output_jacobian(model, x, y, hidden, part) -> torch.Tensor:
    slopes = gradients(part(hidden), hidden)
    return torch.einsum("nio,njo->ij", slopes, slopes)


def output_jacobian_by_unit(model, x, y, hidden, part) -> torch.Tensor:
    with torch.no_grad():
        slopes = tangents(part, hidden)
    return torch.einsum("nio,njo->ij", slopes, slopes)


def loss_hessian(model, x, y, hidden, part) -> torch.Tensor:
    loss = F.cross_entropy(part(hidden), y, reduction="sum")
    slope = torch.autograd.grad(loss, hidden, create_graph=True)[0].sum(0)
    rows = [torch.autograd.grad(one, hidden, retain_graph=True)[0].sum(0) for one in slope]
    return torch.stack(rows)


def race(name: str, loop) -> Race:
    model, data, network = scene()

    def ours() -> dict:
        return measure_similarity(model, data, network, measure=name).mean

    def peer() -> dict:
        found = {layer: torch.zeros(256, 256) for layer in network.hidden}
        for x, y in data:
            x = x.clone().requires_grad_()
            for i, layer in ((3, "1"), (5, "3")):
                found[layer] += loop(model, x, y, model[:i](x), model[i:])
        return {layer: one.numpy() / N_EXAMPLES for layer, one in found.items()}

    def same(mine: dict, theirs: dict) -> str:
        worst = max(abs(mine[layer] - theirs[layer]).max() / abs(theirs[layer]).max() for layer in mine)
        return f"largest difference of an entry {worst:.0e} of the largest entry"

    return Race(ours, peer, same)


@measure(f"unit similarity, input Jacobian, {NAME}", peer="one gradient call a unit", rounds=3)
def inputs() -> Race:
    return race("input_jacobian", input_jacobian)


@measure(f"unit similarity, output Jacobian, {NAME}", peer="one forward gradient call a unit", rounds=3)
def outputs_by_unit() -> Race:
    return race("output_jacobian", output_jacobian_by_unit)


@measure(f"unit similarity, output Jacobian, {NAME}, by output", peer="one gradient call an output", rounds=5)
def outputs() -> Race:
    return race("output_jacobian", output_jacobian)


@measure(f"unit similarity, loss Hessian, {NAME}", peer="one second-gradient call a unit", rounds=3)
def hessian() -> Race:
    return race("loss_hessian", loss_hessian)
