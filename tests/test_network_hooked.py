"""Models that torch.export refuses: run as they are, cut by hooks."""

import threading
import time
from collections import UserDict, namedtuple
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F

from specialize_nb.clusters.partition import Partition
from specialize_nb.dev.testing import unchanged
from specialize_nb.graphs.activations import activation_graph
from specialize_nb.lesions.importance import importance
from specialize_nb.lesions.lesion import lesion_table
from specialize_nb.network.answers import record, scores_node
from specialize_nb.network.hooked import HookedProgram, hooked_layers
from specialize_nb.network.program import Layout, export_program
from specialize_nb.network.units import Layer, Network, trace
from specialize_nb.responses.coherence import coherence
from specialize_nb.responses.examples import top_images
from specialize_nb.responses.pictures import visualize

N = 24


class Plain(nn.Module):
    """Convolution, batch norm, activation in place, and a module that is used twice; export can do it too."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.mix, self.act, self.drop = nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5)
        self.head, self.soft = nn.Linear(4, 3), nn.LogSoftmax(1)

    def forward(self, x):
        h = self.relu(self.bn(self.conv(x))).mean((2, 3))
        h = self.act(self.drop(self.mix(h)))
        h = self.act(self.mix(h))
        return {"hidden": h, "logits": self.soft(self.head(h))}


class Branching(Plain):
    """Its way depends on its data."""

    def forward(self, x):
        h = self.relu(self.bn(self.conv(x))).mean((2, 3))
        if h.sum() > 0:
            h = self.mix(h)
        return self.head(h)


class Counting(nn.Module):
    """Takes the size of the batch as a number, and values out of tensors."""

    def __init__(self, pinned=0):
        super().__init__()
        self.first, self.act, self.head, self.pinned = nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3), pinned

    def forward(self, x):
        if self.pinned and len(x) != self.pinned:
            raise RuntimeError(f"a batch of {self.pinned}, please")
        h = self.act(self.first(x))
        h = torch.stack([h[i] for i in range(len(x))])
        return self.head(h * (1 + max(0.0, h.max().item()) * 0))


class Folded(nn.Module):
    """Tokens first, windows around and within the batch, attention, and a recurrence, at the end of which it looks."""

    def __init__(self):
        super().__init__()
        self.embed, self.around, self.within = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.attention, self.lstm = nn.MultiheadAttention(6, 2), nn.LSTM(6, 4, bidirectional=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        h = self.embed(ids)
        h = self.around(h.unflatten(1, (2, 2)).transpose(0, 1).flatten(0, 1)).unflatten(0, (2, -1))
        h = self.within(h.transpose(0, 1).flatten(0, 1)).unflatten(0, (-1, 2)).flatten(1, 2)
        h = h.transpose(0, 1)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        _, (last, _) = self.lstm(h)
        return self.head(torch.cat([*last], 1))


def build(kind, *args):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = kind(*args).eval().double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def images(n=N):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(n) % 3


def rows(n=N):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(n) % 3


def tokens(n=N):
    return torch.randint(9, (n, 4), generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3


def hooked(model, x):
    """A network of what hooks see."""
    program, layers = hooked_layers(model, (x[:2],))
    layers = tuple(Layer(**layer._asdict()) for layer in layers)
    fields = dict(wires=(), unknown=(), held={}, refused="it was not asked")
    return Network(model=type(model).__name__, layers=layers, program=program, **fields)


def some_groups(n_units, n=5):
    return np.random.default_rng(0).random((n, n_units)) < 0.4


@torch.no_grad()
def naive(model, module, groups, data, call=1):
    """Losses by a hook on call number `call` of `module`, a whole pass for each lesion; units along axis 1."""
    x, y = data
    losses = []
    for group in groups:
        calls = []

        def silence(mod, inputs, output, group=group, calls=calls):
            calls.append(mod)
            if len(calls) == call:
                output = output.clone()
                output.movedim(1, -1)[..., torch.as_tensor(group)] = 0
            return output

        handle = module.register_forward_hook(silence)
        scores = model(x)
        handle.remove()
        losses.append(F.cross_entropy(scores, y, reduction="none"))
    return torch.stack(losses)


def test_as_the_exported_program():
    model, data = build(Plain), images()
    with unchanged(model):
        ours, theirs = hooked(model, data[0]), trace(model, data[0])
        assert scores_node(ours) == ("output logits", 3)
        names = [layer.name for layer in ours.layers]
        assert names == ["conv", "mix", "mix#2", "head"] == [layer.name for layer in theirs.layers[1:]]
        for layer in ours.layers:
            other = theirs.layer(layer.name)
            for part in ("kind", "op", "unit", "n_units", "unit_dim", "shape"):
                assert getattr(layer, part) == getattr(other, part), (layer, other)
            if layer.kind == "output":
                continue
            for at in ("site", "pre"):
                found, known = (one.activations(data[0], [layer.name], at=at) for one in (ours, theirs))
                assert_allclose(found[layer.name].detach(), known[layer.name].detach(), rtol=1e-9, strict=True)
            groups = some_groups(layer.n_units)
            for ablation in ("zero", "mean"):
                tables = [
                    lesion_table(model, data, one, layer.name, groups, ablation=ablation) for one in (ours, theirs)
                ]
                assert_allclose(tables[0].measures["loss"], tables[1].measures["loss"], rtol=1e-6, strict=True)
                assert_allclose(tables[0].intact["loss"], tables[1].intact["loss"], rtol=1e-9, strict=True)
            assert np.ptp(tables[0].measures["loss"], axis=0).max() > 1e-3


def test_sites():
    calls = {layer.name: (layer.pre, layer.site) for layer in hooked(build(Plain), images()[0]).layers}
    assert calls["conv"] == ("bn", "relu") and calls["mix"] == ("drop", "act")
    assert calls["mix#2"] == ("mix#2", "act#2") and calls["head"] == ("head", "head")


class Shared(nn.Module):
    """A second reader of what the first layer puts out."""

    def __init__(self, reader):
        super().__init__()
        self.one, self.norm, self.act = nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU()
        self.other, self.head, self.reader = nn.Linear(6, 6), nn.Linear(6, 3), reader

    def forward(self, x):
        h = self.one(x)
        if self.reader == "in place":
            h += x
        found = self.head(self.act(self.norm(h) if self.reader == "norm" else h))
        if self.reader == "module":
            return found + self.other(h)[:, :3]
        if self.reader == "function":
            return found + h[:, :3]
        return {"logits": found, "h": h} if self.reader == "output" else found + float(h.shape[1]) * len(h)


def test_sites_end_where_another_looks():
    for reader in ("in place", "module", "function", "output", "", "norm"):
        network = hooked(build(Shared, reader), rows()[0])
        layer = network.layer("one")
        expected = {"": ("one", "act"), "norm": ("norm", "act")}.get(reader, ("one", "one"))
        assert (layer.pre, layer.site, layer.kind) == (*expected, "hidden"), reader
        assert network.layers[-1].kind == "output", reader  # though a function may come after it


def test_branches():
    model, data = build(Branching), images()
    with pytest.raises(ValueError, match="could not trace"):
        export_program(model, (data[0],))
    network = hooked(model, data[0])
    groups, taken = some_groups(4, 8), []
    with unchanged(model), torch.no_grad():
        handle = model.mix.register_forward_hook(lambda *_: taken.append(True))
        table = lesion_table(model, data, network, "conv", groups, n_jobs=2)
        handle.remove()
        slow = naive(model, model.relu, groups, data)
    assert_allclose(table.measures["loss"], slow, rtol=1e-9, strict=True)
    assert not network.program.any_batch and len(taken) > 8
    silent = lesion_table(model, data, network, "conv", np.ones((1, 4), dtype=bool))
    assert_allclose(
        silent.measures["loss"], naive(model, model.relu, np.ones((1, 4), dtype=bool), data), rtol=1e-9, strict=True
    )


def test_a_call_that_does_not_come():
    model, (x, y) = build(Branching), images()
    network = hooked(model, x)
    with (
        unchanged(model),
        pytest.raises(ValueError, match="'mix' did not come in this pass: Branching takes another way"),
    ):
        with torch.no_grad():
            model.bn.bias.sub_(100)
        try:
            network.activations(x, ["mix"])
        finally:
            with torch.no_grad():
                model.bn.bias.copy_(build(Branching).bn.bias)


def test_counting_and_pinned():
    for pinned in (0, N):
        model, data = build(Counting, pinned), rows()
        program, layers = hooked_layers(model, (data[0],))
        assert program.layouts["act"] == Layout(0) and [layer.kind for layer in layers] == ["hidden", "output"]
        network = Network(
            model="Counting",
            layers=tuple(Layer(**layer._asdict()) for layer in layers),
            wires=(),
            unknown=(),
            held={},
            program=program,
            refused="it counts",
        )
        groups = some_groups(8)
        with unchanged(model):
            table = lesion_table(model, data, network, "first", groups)
        assert_allclose(table.measures["loss"], naive(model, model.act, groups, data), rtol=1e-9, strict=True)
    with pytest.raises(ValueError, match="fails on the example: a batch of 7, please"):
        hooked_layers(build(Counting, 7), (data[0],))


def test_layouts():
    model, (x, y) = build(Folded), tokens()
    network = hooked(model, x)
    layouts = {layer.name: network.program.layouts[layer.site] for layer in network.layers}
    assert (
        layouts["embed"] == Layout(0) and layouts["around"] == Layout(0, 2, 1) and layouts["within"] == Layout(0, 1, 2)
    )
    assert layouts["attention"] == layouts["lstm"] == Layout(1)
    for layer in network.layers[:-1]:
        value = network.activations(x, [layer.name])[layer.name]
        assert value.shape == (N, *layer.shape) and value.shape[layer.unit_dim] == layer.n_units
        alone = torch.cat([network.activations(x[i : i + 1], [layer.name])[layer.name] for i in range(N)])
        assert_allclose(value.detach(), alone.detach(), rtol=1e-6, atol=1e-9, strict=True)
        back = network.program.examples_back(layer.site, network.program.examples_first(layer.site, value))
        assert back.shape == value.shape
        whole = lesion_table(model, (x, y), network, layer.name, np.eye(layer.n_units, dtype=bool))
        parts = lesion_table(model, list(zip(x.split(5), y.split(5), strict=True)), network, layer.name, whole.groups)
        assert_allclose(whole.measures["loss"], parts.measures["loss"], rtol=1e-6, strict=True)
        assert (np.abs(whole.measures["loss"] - whole.intact["loss"]).max(1) > 1e-6).all(), layer.name


def test_last_states_end_as_the_sequence():
    for kind, batch_first, both in [(nn.LSTM, True, True), (nn.GRU, False, False), (nn.RNN, True, False)]:
        model = build(partial(kind, 3, 4, 2, batch_first=batch_first, bidirectional=both))
        program = HookedProgram(model, (torch.randn(2, 5, 3).double(),))
        x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)).double()
        out, state = model(x)
        site, first = next(iter(program.calls)), program.outputs
        same = program.extract((site, *program.inputs), first)(out, x)
        for one, other in zip(same, [out, *(state if kind is nn.LSTM else [state])], strict=True):
            assert_allclose(one.detach(), other.detach(), rtol=1e-6, strict=True)
        none = program.extract((site, *program.inputs), first)(torch.zeros_like(out), x)
        assert not none[1][-1 - both :].any() and none[1][0].any()


def test_several_inputs_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.left, self.head = nn.Embedding(9, 5), nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, ids, extra=None, *, scale=1.0):
            h = self.words(ids).mean(1) + (0 if extra is None else self.left(extra["x"]))
            return (self.head(h) * scale, {"h": h, "none": None})

    model, (ids, y), (x, _) = build(Two), tokens(), rows()
    program, layers = hooked_layers(model, (ids[:2],), {"extra": {"x": x[:2]}, "scale": 2.0})
    assert program.inputs == ("input ids", "input extra") and program.labels == ("0", "1.h")
    assert [layer.name for layer in layers] == ["words", "left", "head"]
    assert [layer.unit for layer in layers] == ["dimension", "neuron", "neuron"]
    scores, h = program.extract(program.inputs, program.outputs)(ids, x)
    assert_allclose(scores.detach(), model(ids, {"x": x}, scale=2.0)[0].detach(), rtol=1e-6, strict=True)
    assert program.shape("output 1.h") == (5,) and program.value("output 0").device.type == "meta"
    with pytest.raises(ValueError, match="also need the program's input 'input extra'"):
        program.extract(("words", "input ids"), ["output 0"])
    with pytest.raises(KeyError, match="no call 'wrds'"):
        program.extract(program.inputs, ["wrds"])


class Plainly:
    """An output of no known class."""

    def __init__(self, logits):
        self.logits, self.told = logits, "words"


@dataclass
class Dated:
    logits: torch.Tensor
    more: list


Paired = namedtuple("Paired", "logits more")


def test_outputs_of_any_class():
    class Odd(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.body, self.head, self.wrap = nn.Linear(6, 4), nn.Linear(4, 3), wrap

        def forward(self, x):
            return self.wrap(self.head(self.body(x)))

    data, groups = rows(), some_groups(4)
    wraps = [Plainly, lambda h: Dated(h, [h * 2]), lambda h: Paired(h, (h * 2,)), lambda h: UserDict(logits=h)]
    losses = []
    for wrap in wraps:
        network = hooked(build(Odd, wrap), data[0])
        assert network.program.labels in (("logits",), ("logits", "more.0")) and network.layers[-1].kind == "output"
        losses.append(lesion_table(network.program.model, data, network, "body", groups).measures["loss"])
        assert_allclose(losses[-1], losses[0], rtol=1e-6, strict=True)


def test_recorded_values_are_kept():
    """What comes later in place does not reach back, neither what was read nor what was put in."""
    model, (x, _) = build(Plain), images()
    program = hooked(model, x).program
    value, out = program.extract(program.inputs, ["bn", "output logits"])(x)
    assert (value < 0).any()
    given = value.clone()
    again = program.extract(("bn", *program.inputs), ["output logits"])(given, x)[0]
    assert_allclose(again.detach(), out.detach(), rtol=1e-6, strict=True)
    assert torch.equal(given, value)


def test_everything_else_works_on_it():
    model, data = build(Branching).float(), [one.float() if one.is_floating_point() else one for one in images()]
    network = hooked(model, data[0])
    partition = Partition.from_labels({"conv": [0, 0, 1, 1]})
    with unchanged(model):
        hurt = importance(model, data, partition, n_controls=19, network=network)
        agree = coherence(model, data, partition, n_controls=19, n_visual=5, steps=4, network=network)
        graph = activation_graph(model, data, network)
        asked = visualize(model, data, [("conv", [0, 1])], steps=16, network=network)
        real = top_images(model, data, [("conv", [0, 1])], n=3, network=network)
        kept = record(model, data, network, layers=["conv"], at="pre")
    assert len(hurt.to_frame()) and len(agree.to_frame()) and graph.layers[0] == "conv"
    assert asked.course[0, -1] > asked.course[0, 0] and real.index.shape == (1, 3)
    assert_allclose(kept["conv"], model.bn(model.conv(data[0])).mean((2, 3)).detach(), rtol=1e-5, strict=True)


def test_model_as_it_was_found():
    model, (x, _) = build(Branching), images()
    model.mix.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    with unchanged(model):
        program, _ = hooked_layers(model, (x[:2],))
        with pytest.raises(RuntimeError):
            program.extract(program.inputs, ["conv"])(x[:, :, :1])
        with pytest.raises(ValueError, match="fails on the example"):
            hooked_layers(model, (x[:, :, :1],))


class Slow(Plain):
    """Takes long enough for other threads to come in."""

    def forward(self, x):
        time.sleep(0.002)
        out = super().forward(x)
        time.sleep(0.002)
        return out


def test_one_pass_at_a_time():
    model, (x, _) = build(Slow), images()
    program = hooked(model, x).program
    read = program.extract(program.inputs, ["mix", "output logits"])
    expected = [read(x[i : i + 1]) for i in range(8)]
    found = [None] * 8

    def work(i):
        for _ in range(5):
            found[i] = read(x[i : i + 1])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        assert_allclose(one[0].detach(), other[0].detach(), rtol=1e-6, strict=True)
        assert_allclose(one[1].detach(), other[1].detach(), rtol=1e-6, strict=True)


def test_without_units():
    with pytest.raises(ValueError, match="no module that owns a matrix"):
        hooked_layers(nn.ReLU().eval(), (torch.zeros(2, 3),))
    alone = hooked_layers(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),))[1]
    assert [(layer.name, layer.kind) for layer in alone] == [("linear", "output")]


def test_transformer():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 8)
            self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2)
            self.head = nn.Linear(8, 3)

        def forward(self, ids):
            return self.head(self.body(self.embed(ids)).mean(1))

    model, data = build(Encoder), tokens()
    ours, theirs = hooked(model, data[0]), trace(model, data[0])
    for name in ("embed", "body.layers.0.linear2", "body.layers.1.linear2"):
        groups = some_groups(8)
        tables = [lesion_table(model, data, one, name, groups) for one in (ours, theirs)]
        assert_allclose(tables[0].measures["loss"], tables[1].measures["loss"], rtol=1e-6, strict=True)
