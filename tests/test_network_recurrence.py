"""The hidden state of recurrent modules as units: beside a loop written by hand that silences units after every step."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from specialize_nb.graphs.activations import activation_graph
from specialize_nb.graphs.similarity import measure_similarity
from specialize_nb.graphs.weights import weight_graph
from specialize_nb.lesions.lesion import lesion_table
from specialize_nb.network.perturbation import check_wiring
from specialize_nb.network.units import trace

X = torch.randn(9, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(9) % 3
GROUPS = np.array([[1, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=bool)
KINDS = [
    (nn.LSTM, {}),
    (nn.GRU, {}),
    (nn.RNN, {}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    (nn.GRU, {"num_layers": 2, "bias": False}),
    (nn.LSTM, {"proj_size": 4, "bidirectional": True, "bias": False}),
    (nn.GRU, {"batch_first": False, "bidirectional": True}),
]


class Reader(nn.Module):
    """A recurrent module, and scores from its last step, its mean step, or the last state that it hands on."""

    def __init__(self, kind, reads, options):
        super().__init__()
        self.recurrent, self.reads = kind(5, 6, **{"batch_first": True} | options), reads
        width = options.get("proj_size") or 6
        self.head = nn.Linear(width * (1 if reads == "state" else 1 + self.recurrent.bidirectional), 3)

    def forward(self, x):
        states, last = self.recurrent(x if self.recurrent.batch_first else x.transpose(0, 1))
        states = states if self.recurrent.batch_first else states.transpose(0, 1)
        return self.scores(states, last[0] if isinstance(last, tuple) else last)

    def scores(self, states, last):
        return self.head({"last": states[:, -1], "mean": states.mean(1), "state": last[-1]}[self.reads])


def build(kind, reads, options):
    model, generator = Reader(kind, reads, options).double().eval(), torch.Generator().manual_seed(3)
    for value in model.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) / 2)
    return model.requires_grad_(False)


def step(module, at, back, hidden, cell, projection):
    if isinstance(module, nn.LSTM):
        into, keep, new, out = (at + back).chunk(4, 1)
        cell = keep.sigmoid() * cell + into.sigmoid() * new.tanh()
        hidden = out.sigmoid() * cell.tanh()
        return (hidden if projection is None else hidden @ projection.T), cell
    if isinstance(module, nn.GRU):
        (reset, keep, new), (reset_back, keep_back, new_back) = at.chunk(3, 1), back.chunk(3, 1)
        keep, new = (keep + keep_back).sigmoid(), (new + (reset + reset_back).sigmoid() * new_back).tanh()
        return (1 - keep) * new + keep * hidden, cell
    return (at + back).tanh(), cell


def by_hand(model, x, silent):
    """Scores when the units of some layers, by their ending such as 'l0_reverse', are zero after every step."""
    module, lasts = model.recurrent, []
    for layer in range(module.num_layers):
        parts = []
        for end in [f"l{layer}", f"l{layer}_reverse"][: 1 + module.bidirectional]:
            get = lambda name, end=end: getattr(module, f"{name}_{end}", None)  # noqa: E731
            biases = [get(name) if module.bias else 0 for name in ("bias_ih", "bias_hh")]
            hidden = x.new_zeros(len(x), module.proj_size or module.hidden_size)
            cell, found, order = x.new_zeros(len(x), module.hidden_size), {}, list(range(x.shape[1]))
            for place in order[::-1] if "reverse" in end else order:
                at, back = x[:, place] @ get("weight_ih").T + biases[0], hidden @ get("weight_hh").T + biases[1]
                hidden, cell = step(module, at, back, hidden, cell, get("weight_hr"))
                if end in silent:
                    hidden = torch.where(silent[end], 0.0, hidden)
                found[place] = hidden
            parts.append(torch.stack([found[place] for place in order], 1))
            lasts.append(hidden)
        x = torch.cat(parts, -1)
    return model.scores(x, torch.stack(lasts))


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("reads", ["last", "mean", "state"])
def test_the_next_step_reads_what_was_silenced(kind, options, reads):
    model = build(kind, reads, options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        network = trace(model, X)
    assert network.notes == () and network.unknown == ()
    torch.testing.assert_close(by_hand(model, X, {}), model(X), rtol=1e-12, atol=1e-12)
    for name in network.hidden:
        layer, end = network.layer(name), name.partition(".")[2] or "l0"
        groups = GROUPS[:, : layer.n_units]
        found = lesion_table(model, (X, Y), network, name, groups)
        expected = [F.cross_entropy(by_hand(model, X, {end: torch.tensor(one)}), Y, reduction="none") for one in groups]
        np.testing.assert_allclose(found.measures["loss"], torch.stack(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_one_layer_for_each_layer_and_direction(kind, options):
    "Its activations are what the module puts out, examples first; its wires are there, and nothing passes past them."
    model = build(kind, "mean", options)
    network, module = trace(model, X), model.recurrent
    ends = [f".l{i}{end}" for i in range(module.num_layers) for end in ["", "_reverse"][: 1 + module.bidirectional]]
    assert network.hidden == tuple(f"recurrent{end if len(ends) > 1 else ''}" for end in ends)
    last = list(network.activations(X, network.hidden[-1 - module.bidirectional :]).values())
    states = module(X if module.batch_first else X.transpose(0, 1))[0]
    torch.testing.assert_close(torch.cat(last, -1), states if module.batch_first else states.transpose(0, 1))
    assert check_wiring(network, X)[["missing", "idle"]].sum().tolist() == [0, 0]
    assert activation_graph(model, (X, Y), network).sizes == tuple(
        network.layer(name).n_units for name in network.hidden
    )


def test_the_number_of_steps_makes_no_layers():
    networks = [trace(build(nn.LSTM, "last", {}), X.repeat(1, times, 1)) for times in (1, 6)]
    assert len({len(network.layers) for network in networks}) == 1
    assert len({len(network.program.nodes) for network in networks}) == 1
    gates = trace(build(nn.LSTM, "last", {}), X[:, :2], recurrent="gate")
    assert len(gates.layers) == 4 and gates.layers[1].n_units == 24


@pytest.mark.parametrize(("kind", "n_gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_weights_are_added_up_over_gates(kind, n_gates):
    "Between two units of the layer the weights of both ways count; none joins a unit to itself."
    model = build(kind, "last", {})
    graph, module = weight_graph(trace(model, X)), model.recurrent
    into = module.weight_ih_l0.abs().view(n_gates, 6, 5).sum(0).T
    own = module.weight_hh_l0.abs().view(n_gates, 6, 6).sum(0)
    torch.testing.assert_close(torch.as_tensor(graph.blocks["input", "recurrent"]), into)
    torch.testing.assert_close(torch.as_tensor(graph.blocks["recurrent", "recurrent"]), (own + own.T).fill_diagonal_(0))
    roots = weight_graph(trace(model, X), norm="l2").blocks["input", "recurrent"]
    squares = module.weight_ih_l0.square().view(n_gates, 6, 5).sum(0).T
    torch.testing.assert_close(torch.as_tensor(roots), squares.sqrt())


def test_an_encoder_feeds_a_decoder_through_its_first_state():
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.GRU(5, 6, batch_first=True), nn.GRU(5, 6, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, x, y):
            return self.head(self.decoder(y, self.encoder(x)[1])[0])

    network = trace(Translator().double().eval(), (X, X[:, :3]))
    assert ("encoder", "decoder") in {(wire.source, wire.target) for wire in network.wires}
    assert check_wiring(network, (X, X[:, :3]))[["missing", "idle"]].sum().tolist() == [0, 0]


def test_what_reads_the_cell_is_told():
    model = build(nn.LSTM, "state", {})
    model.forward = lambda x: model.head(model.recurrent(x)[1][1][-1])
    with pytest.warns(
        RuntimeWarning, match=r"lstm \(its last cell\) could not be followed: no edges from \['recurrent'\]"
    ):
        trace(model, X)


def test_of_rectified_states_it_is_told_how_a_lesion_is_seen():
    with pytest.warns(RuntimeWarning, match="silent throughout an example"):
        network = trace(build(nn.RNN, "last", {"nonlinearity": "relu"}), X)
    assert "rnn_relu" in [layer.op for layer in network.layers]


@pytest.mark.parametrize("measure", ["output_jacobian", "input_jacobian", "loss_hessian"])
def test_derivatives_pass_through_the_recurrence(measure):
    "Of a state moved at one step, as the loop by hand has it."
    model = build(nn.GRU, "last", {})
    found = measure_similarity(model, (X, Y), measure=measure, layers=["recurrent"]).mean["recurrent"]
    if measure == "output_jacobian":
        expected = torch.zeros(6, 6, dtype=torch.float64)
        for place in range(7):
            slopes = torch.autograd.functional.jacobian(
                lambda move, place=place: _moved(model, place, move).sum(0), torch.zeros(9, 6, dtype=torch.float64)
            )
            expected += torch.einsum("cni,cnj->ij", slopes, slopes) / 9 / 7
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-9, atol=1e-12)
    assert (np.diag(found) > 0).all()


def _moved(model, place, move):
    """Scores when `move` is added to the state after one step."""
    module, hidden = model.recurrent, X.new_zeros(9, 6)
    for i in range(7):
        at = X[:, i] @ module.weight_ih_l0.T + module.bias_ih_l0
        hidden, _ = step(module, at, hidden @ module.weight_hh_l0.T + module.bias_hh_l0, hidden, None, None)
        hidden = hidden + move if i == place else hidden
    return model.head(hidden)


def test_lesions_can_be_measured_by_several_processes():
    model = build(nn.LSTM, "mean", {"bidirectional": True})
    network = trace(model, X)
    layer = network.layer("recurrent.l0")
    kept = network.program.boundary(layer.site, network.program.outputs)
    part = pickle.loads(pickle.dumps(network.program.extract(kept, network.program.outputs)))
    values = list(network.program.extract(network.program.inputs, kept)(X))
    torch.testing.assert_close(part(*values)[0], model(X))
    values[0] = values[0] * torch.tensor([0.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    silent = {"l0": torch.tensor(GROUPS[0])}
    torch.testing.assert_close(part(*values)[0], by_hand(model, X, silent))
