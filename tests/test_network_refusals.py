"""What is said of a model that torch.export refuses: the cause, the line, and the remedy, which is tried."""

import logging
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from specialize_nb.lesions.lesion import lesion_table
from specialize_nb.network.units import trace


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("rows", torch.ones(8, 6))

    def forward(self, x):
        return self.last(self.first(x).relu())


class ByLength(Plain):
    def forward(self, x):
        return self.last(self.first(x).relu() / len(x))


class ByShape(Plain):
    def forward(self, x):
        return self.last(self.first(x).relu() / x.shape[0])


class Loop(Plain):
    def forward(self, x):
        hidden = self.first(x).relu()
        return torch.stack([self.last(hidden[i]) for i in range(len(hidden))])


class Rows(Plain):
    def forward(self, x):
        rows = []
        for row in self.first(x).relu():
            rows.append(self.last(row))
        return torch.stack(rows)


class Whole(Plain):
    def forward(self, x):
        rows = []
        for row in x:
            rows.append(self.last(self.first(row).relu()))
        return torch.stack(rows)


class Buffer(Plain):
    def forward(self, x):
        return self.last(self.first(x).relu() + self.rows)


class Forgotten(Plain):
    def __init__(self, **options):
        super().__init__()
        self.recurrent = nn.LSTM(4, 4, **options)

    def forward(self, x):
        return self.last(self.first(self.recurrent(x)[0].mean(1)))


class FirstState(Plain):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(4, 4, batch_first=True)
        self.register_buffer("start", torch.zeros(1, 8, 4))

    def forward(self, x):
        return self.last(self.first(self.recurrent(x, self.start)[0].mean(1)))


class Numpy(Plain):
    def forward(self, x):
        return self.last(torch.from_numpy(self.first(x).relu().detach().numpy()))


class Branch(Plain):
    def forward(self, x):
        return self.last(self.first(x).relu() if x.sum() > 0 else self.first(x))


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def refused(model, x=X):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        network = trace(model.eval(), x)
    assert {str(one.message) for one in said if one.category is RuntimeWarning} == set(network.notes)
    assert network.refused and not network.wires
    return network.notes[0]


def test_the_cause_of_a_fixed_batch_size_is_named():
    told = refused(ByLength())
    assert "ByLength fixes the batch size at 8 in `return self.last(self.first(x).relu() / len(x))`" in told
    assert "`len(x)` is a plain number" in told and "To lift it: write `x.shape[0]` for `len(x)`." in told
    for model in (Loop(), Rows()):
        told = refused(model)
        assert "a loop over examples is written out" in told and "operations on the whole batch" in told
    assert "in `return torch.stack([self.last(hidden[i]) for i in range(len(hidden))])`" in refused(Loop())
    assert "in `for row in self.first(x).relu():`" in refused(Rows())
    told = refused(Buffer())
    assert "in `return self.last(self.first(x).relu() + self.rows)`: compute shapes" in told
    assert "let nothing in it have as many rows as a batch" in told


def test_remedies_lift_what_they_are_given_for():
    for model in (ByShape(), Plain()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(trace(model.eval(), X).wires) == 2


def test_a_recurrent_module_that_runs_along_the_examples():
    x = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(0))
    told = refused(Forgotten(), x)
    assert "`nn.LSTM` runs along the examples" in told and "To lift it: give `batch_first=True`" in told
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trace(Forgotten(batch_first=True).eval(), x).wires
    told = refused(FirstState(), x)
    assert "runs along" not in told and "let nothing in it have as many rows as a batch" in told


def test_other_causes():
    told = refused(Numpy())
    assert "Data-dependent" not in told and "with operations of torch what it does in NumPy" in told
    told = refused(Branch())
    assert "Data-dependent Python control flow is the usual cause" in told and "`torch.where` for a Python `if`" in told
    with pytest.raises(
        ValueError,
        match=r"no units of Whole are known: each of 'first', 'last', 'first#2' and more .* a loop over examples",
    ):
        trace(Whole().eval(), X)


def test_what_torch_logs_is_as_before():
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = (log.level, log.propagate, list(log.handlers), logging.root.manager.disable)
    refused(ByLength())
    assert (log.level, log.propagate, list(log.handlers), logging.root.manager.disable) == before


class Graph(nn.Module):
    """One step of messages along edges, as in libraries for graphs."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x, edges):
        hidden = self.first(x).relu()
        return self.last(hidden.index_add(0, edges[1], hidden[edges[0]]))


class Closed(nn.Module):
    def __init__(self, model, edges):
        super().__init__()
        self.model = model
        self.register_buffer("edges", edges)

    def forward(self, x):
        return self.model(x, self.edges)


def test_one_graph_whose_nodes_are_the_examples():
    generator = torch.Generator().manual_seed(0)
    model, nodes = Graph().requires_grad_(False), torch.randn(30, 4, generator=generator)
    edges, y = torch.randint(30, (2, 80), generator=generator), torch.arange(30) % 3
    with pytest.raises(ValueError, match=r"\(30, 4\), \(2, 80\).*in a module around the model, as a buffer"):
        trace(model.eval(), (nodes, edges))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = lesion_table(Closed(model, edges).eval(), [(nodes, y)], None, "model.first", np.eye(6, dtype=bool))
    assert any("depends on the rest of its batch" in note for note in table.notes)
    for unit in range(6):
        hidden = model.first(nodes).relu()
        hidden[:, unit] = 0
        scores = model.last(hidden.index_add(0, edges[1], hidden[edges[0]]))
        loss = F.cross_entropy(scores, y, reduction="none").numpy()
        np.testing.assert_allclose(table.measures["loss"][unit], loss, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"out of bounds.*data as a list of them, \[\(x, y\)\]"):
        lesion_table(Closed(model, edges).eval(), [(nodes[:9], y[:9])], None, "model.first", np.eye(6, dtype=bool))


class Stepwise(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        state = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_cells_called_step_by_step_say_that_units_are_gates(kind):
    model, x = Stepwise(getattr(nn, f"{kind}Cell")).eval(), torch.zeros(5, 3, 4)
    with pytest.warns(RuntimeWarning, match=f"Units of 'cell'.*not its states.*give the whole sequence to `nn.{kind}`"):
        network = trace(model, x)
    assert network.layer("cell.weight_ih").n_units == {"LSTM": 24, "GRU": 18, "RNN": 6}[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trace(model, x, recurrent="gate").notes == ()  # asked for


class Looking(Plain):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(4, 4, batch_first=True)

    def forward(self, x):
        states = self.recurrent(x if x.sum() > 0 else -x)[0]
        return self.last(self.first(states[:, -1]))


def test_recurrent_modules_read_through_hooks_say_what_a_lesion_changes():
    model, x = Looking().eval().requires_grad_(False), torch.ones(6, 5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = trace(model, x)
        table = lesion_table(model, (x, torch.arange(6) % 3), network, "recurrent", np.eye(4, dtype=bool))
    said = [note for note in table.notes if "Lesions in recurrent layer 'recurrent'" in note]
    assert len(said) == 1 and "not what its own next steps read" in said[0]
    for unit in range(4):
        states = model.recurrent(x)[0] * (torch.arange(4) != unit)
        loss = F.cross_entropy(model.last(model.first(states[:, -1])), torch.arange(6) % 3, reduction="none")
        np.testing.assert_allclose(table.measures["loss"][unit], loss.numpy(), rtol=1e-5)
