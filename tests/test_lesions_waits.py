"""No lesion waits for the host: what a sweep asks back from the device does not grow with the number of lesions.

Without a GPU nothing moves, but the calls that would make one wait can be counted: numbers read one by one, tensors
made of lists or sent elsewhere, and shapes that depend on values (`nonzero`, indices that are masks).
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from specialize_nb.lesions.damage import damage_run
from specialize_nb.lesions.outcomes import find_outcomes
from specialize_nb.training.models import cnn

READ, MADE = ("_local_scalar_dense", "is_nonzero", "equal"), ("lift_fresh", "_to_copy", "lift_fresh_copy")
SHAPED = ("nonzero", "masked_select", "unique_dim", "_unique2")
METHODS = ("cpu", "numpy", "tolist", "item", "__array__")


class Waits(TorchDispatchMode):
    """Counts what a GPU would have to be waited for."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.found = {}
        for name in METHODS:
            monkeypatch.setattr(torch.Tensor, name, self.counted(name, getattr(torch.Tensor, name)))

    def count(self, name):
        self.found[name] = self.found.get(name, 0) + 1

    def counted(self, name, method):
        def call(*args, **kwargs):
            self.count(name)
            return method(*args, **kwargs)

        return call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        moved = name == "_to_copy" and (kwargs or {}).get("device") is None  # another type only: it stays where it is
        if name in (*READ, *SHAPED, *MADE) and not moved:
            self.count(name)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            if any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]):
                self.count(f"{name} by a mask")
        return func(*args, **(kwargs or {}))


def waits(monkeypatch, run, n_lesions, n_units):
    table = np.zeros((n_lesions, n_units), bool)
    pairs = [(i, j) for i in range(n_units) for j in range(i)]
    for row, pair in zip(table, pairs, strict=False):
        row[list(pair)] = True
    with monkeypatch.context() as patch, Waits(patch) as seen:
        (found,) = run.work.damage([({run.layer: table}, False)])
    assert all(len(one) == n_lesions for one in found.values())
    return seen.found


class Run:
    """A network, of which one layer is lesioned."""

    def __init__(self, model, data, layer, **options):
        self.layer, self.work = layer, damage_run(model, data, None, [layer], n_boot=0, **options).work


def images(n=8):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(outputs=10):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, outputs))
    return model.eval().requires_grad_(False)


def classes(ablation):
    outcomes = ["cross_entropy", "accuracy", "margin", "selectivity"]
    return Run(network(), (images(), torch.arange(8)), "1", outcomes=outcomes, ablation=ablation)


def convolutions(ablation):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cnn(size=8)
    layer = [name for name, one in model.named_modules() if isinstance(one, nn.Conv2d)][1]
    return Run(model, (images(), torch.arange(8)), layer, outcomes=["cross_entropy", "kl"], ablation=ablation)


def labels(ablation):
    y = (torch.arange(80).reshape(8, 10) % 3 == 0).float()
    return Run(network(), (images(), y), "1", task="labels", ablation=ablation)


def numbers(ablation):
    y = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    y[:, 1] = 2.0  # does not vary, so it is left out
    outcomes = ["squared_error", "absolute_error", "change"]
    return Run(network(3), (images(), y), "1", outcomes=outcomes, ablation=ablation)


def positions(ablation):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.up, self.down = nn.Embedding(12, 16), nn.Linear(16, 24), nn.Linear(24, 12)

        def forward(self, ids):
            return self.down(self.up(self.embed(ids)).relu())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tokens().eval().requires_grad_(False)
    ids = torch.randint(12, (8, 6), generator=torch.Generator().manual_seed(1))
    y = ids.roll(-1, 1)
    y[:, -1] = -100
    return Run(model, (ids, y), "up", outcomes=["cross_entropy", "accuracy"], ablation=ablation)


@pytest.mark.parametrize("ablation", ["zero", "resample"])
@pytest.mark.parametrize("made", [classes, convolutions, labels, numbers, positions])
def test_lesions_of_a_sweep_do_not_wait(monkeypatch, made, ablation):
    run = made(ablation)
    width = next(iter(run.work.engine.cuts.values())).layers[run.layer].n_units
    waits(monkeypatch, run, 1, width)  # what is made once is made
    few, many = (waits(monkeypatch, run, n, width) for n in (2, 60))
    assert few == many
    assert few.get("cpu", 0) >= 1  # the counting counts
    assert not any("mask" in name for name in few)


def test_targets_that_do_not_vary_are_left_out_also_where_gradients_are_taken():
    made = torch.Generator().manual_seed(0)
    y, scores, intact = (torch.randn(*shape, generator=made) for shape in ((5, 4), (3, 5, 4), (5, 4)))
    y[:, 1] = 2.0
    (outcome,) = find_outcomes(["squared_error"], n_scores=4, task="numbers", targets=y.double().numpy())
    spread, kept = y[:, [0, 2, 3]].double().std(0, correction=0), [0, 2, 3]
    before, after = (((one.double() - y.double())[..., kept] / spread).square().mean(-1) for one in (intact, scores))
    with torch.inference_mode():
        found = outcome.measure(scores, intact, y)
    torch.testing.assert_close(found, after - before)
    scores.requires_grad_()
    outcome.measure(scores, intact, y).sum().backward()  # what was kept for the sweep does for gradients too
    assert scores.grad[..., 1].eq(0).all() and scores.grad[..., kept].ne(0).all()
