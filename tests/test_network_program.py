"""The traced program: pure, cut anywhere, and joined again."""

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from specialize_nb.dev.testing import unchanged
from specialize_nb.network.program import export_program


class Inplace(nn.Module):
    """Changes a value in place and then reads it by its old name; `view` changes a view of it."""

    def __init__(self, view=False):
        super().__init__()
        self.first, self.second, self.view = nn.Linear(4, 4), nn.Linear(4, 2), view

    def forward(self, x):
        x = self.first(x)
        before = x.sum(1, keepdim=True)
        (x[:, :2] if self.view else x).relu_()
        return self.second(x) + before


class Reshaped(nn.Module):
    """Needs the batch size as a number after the first layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(3, 2)
        self.register_buffer("offset", torch.arange(6.0))

    def forward(self, x):
        y = torch.relu(self.first(x)) + self.offset * 2
        skip = x.sum(1)
        return self.second(y.view(x.shape[0] * 2, 3)).view(x.shape[0], 2, 2).sum(1) + skip[:, None]


def inputs(n=5):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0))


def build(kind, *args):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind(*args).eval().requires_grad_(False)


def whole(program, x):
    return program.extract(program.inputs, program.outputs)(x)[0]


@pytest.mark.parametrize("view", [False, True])
def test_in_place_operations_become_pure(view):
    model, x = build(Inplace, view), inputs()
    with unchanged(model):
        program = export_program(model, (x,))
    targets = [n.target for n in program.nodes.values() if n.op == "call_function"]
    assert not any(getattr(getattr(t, "_schema", None), "is_mutable", False) for t in targets)
    torch.testing.assert_close(whole(program, x), model(x))
    relu = next(name for name, node in program.nodes.items() if "relu" in str(node.target))
    program.extract(program.inputs, [relu, *program.outputs])(x)  # a second look must not change the first
    torch.testing.assert_close(whole(program, x), model(x))


def test_any_batch_size_and_no_copies_of_the_weights():
    model = build(Reshaped)
    program = export_program(model, (inputs(1),))
    for n in (1, 2, 7):
        torch.testing.assert_close(whole(program, inputs(n)), model(inputs(n)))
    weight = next(name for name in program.nodes if program.nodes[name].target == "first.weight")
    assert program.constant(weight).data_ptr() == model.first.weight.data_ptr()


def test_cut_and_join():
    model, x = build(Reshaped), inputs()
    program = export_program(model, (x,))
    site = next(name for name, node in program.nodes.items() if "relu" in str(node.target))
    kept = program.boundary(site, program.outputs)
    assert kept[0] == site and "first" not in str(kept)
    values = program.extract(program.inputs, kept)(x)
    joined = program.extract(kept, program.outputs)(*values)[0]
    torch.testing.assert_close(joined, model(x))
    changed = program.extract(kept, program.outputs)(torch.zeros_like(values[0]), *values[1:])[0]
    expected = model.second(2 * model.offset.view(2, 3)).sum(0) + x.sum(1)[:, None]
    torch.testing.assert_close(changed, expected)


def test_stacked_batches_repeat_what_counts_the_batch():
    model, x = build(Reshaped), inputs()
    program = export_program(model, (x,))
    site = next(name for name, node in program.nodes.items() if "relu" in str(node.target))
    kept = program.boundary(site, program.outputs)
    values = program.extract(program.inputs, kept)(x)
    stacked = [program.repeat(name, value, 3) for name, value in zip(kept, values, strict=True)]
    assert any(isinstance(value, int) for value in stacked)
    out = program.extract(kept, program.outputs)(*stacked)[0]
    torch.testing.assert_close(out, model(x).repeat(3, 1))


def test_a_part_says_which_input_it_lacks():
    program = export_program(build(Reshaped), (inputs(),))
    with pytest.raises(ValueError, match="also need the program's input 'x'"):
        program.extract([], program.outputs)


class Named(nn.Module):
    """Inputs by name, one of them optional, and outputs in a mapping."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x, *more, scale=None):
        y = self.linear(x) + sum(one.mean(1, keepdim=True) for one in more)
        return {"scores": y if scale is None else y * scale, "parts": (y.sum(1), x)}


def test_inputs_by_place_and_by_name():
    model, x, scale = build(Named), inputs(), torch.rand(5, 1)
    by_name = export_program(model, (), {"x": x, "scale": scale})
    assert by_name.labels == ("scores", "parts.0", "parts.1")
    values = by_name.extract(by_name.inputs, by_name.outputs)(*by_name.arguments({"scale": scale, "x": x, "y": 3}))
    torch.testing.assert_close(values[0], model(x, scale=scale)["scores"])
    with pytest.raises(KeyError, match=r"inputs \['scale'\] are missing"):
        by_name.arguments({"x": x})
    several = export_program(model, (x, x + 1, x + 2))
    found = several.extract(several.inputs, several.outputs)(*several.arguments((x, x + 1, x + 2)))
    torch.testing.assert_close(found[0], model(x, x + 1, x + 2)["scores"])


class Folded(nn.Module):
    """Examples along the first axis, the second, and folded into it both ways."""

    def forward(self, x):  # (batch, 6, 4)
        second = x.transpose(0, 1) * 2  # (6, batch, 4)
        major = second.transpose(0, 1).reshape(x.shape[0] * 3, 2, 4) + 1
        minor = second.reshape(6 * x.shape[0], 4).relu()
        part = minor.unsqueeze(1).chunk(2, -1)[1][:, 0]
        return second, major, minor, x.sum(0), minor.view(6, x.shape[0], 4), part, second


def test_examples_come_first_wherever_they_lie():
    x = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0))
    program = export_program(Folded(), (x,))
    values = program.extract(program.inputs, program.outputs)(x)
    layouts = [tuple(program.layouts[name]) for name in program.outputs]
    assert layouts == [(1, 1, 1), (0, 1, 3), (0, 6, 1), (None, 1, 1), (1, 1, 1), (0, 6, 1), (1, 1, 1)]
    positive = (x * 2).relu()
    expected = [x * 2, (x * 2).reshape(5, 3, 2, 4) + 1, positive, x.sum(0), positive, positive[..., 2:], x * 2]
    for name, value, first in zip(program.outputs, values, expected, strict=True):
        torch.testing.assert_close(program.examples_first(name, value), first)
        torch.testing.assert_close(program.examples_back(name, program.examples_first(name, value)), value)
    assert [program.shape(name) for name in program.outputs[:3]] == [(6, 4), (3, 2, 4), (6, 4)]
    assert [program.axis_first(program.outputs[i], values[i].ndim - 1) for i in range(3)] == [2, 3, 2]
    assert program.axis_first(program.outputs[0], 0) == 1
    twice = program.extract(program.inputs, program.outputs)(x.repeat(2, 1, 1))
    for i in range(3):
        torch.testing.assert_close(program.repeat(program.outputs[i], values[i], 2), twice[i])


class Pair(NamedTuple):
    logits: torch.Tensor
    again: torch.Tensor


def test_outputs_keep_their_names():
    class Fields(nn.Module):
        def forward(self, x):
            y = x * 2
            return Pair(y, y), None, {"z": [x + 1]}

    program = export_program(Fields(), (inputs(),))
    assert program.labels == ("0.logits", "0.again", "2.z.0") and program.outputs[0] == program.outputs[1]


def test_recurrent_modules_become_plain_steps():
    model = nn.GRU(4, 3, num_layers=2, bidirectional=True, batch_first=True).eval().requires_grad_(False)
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    with unchanged(model):
        program = export_program(model, (x,), recurrent="gate")
    assert not any("gru" in str(node.target) for node in program.nodes.values())
    torch.testing.assert_close(program.extract(program.inputs, program.outputs)(x)[0], model(x)[0])


class Frozen(nn.Module):
    """Parts under settings of their own, which export wraps."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        with torch.enable_grad():
            table = torch.outer(torch.arange(4.0), torch.arange(4.0)).cos()
        with torch.autocast("cpu", enabled=False):
            y = self.linear(x) @ table
        return y.relu()


def test_wrapped_parts_are_opened():
    model, x = build(Frozen), inputs()
    program = export_program(model, (x,))
    assert not any("wrap" in str(node.target) for node in program.nodes.values())
    torch.testing.assert_close(whole(program, x), model(x))
    table = next(name for name, node in program.nodes.items() if "cos" in str(node.target))
    assert program.is_fixed(table) and program.constant(table).shape == (4, 4)
    assert not program.is_fixed(program.outputs[0])


def test_caches_are_off_while_tracing_and_on_again():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.config = nn.Linear(4, 2), type("Config", (), {"use_cache": True})()

        def forward(self, x):
            return {"y": self.linear(x), "cache": object()} if self.config.use_cache else {"y": self.linear(x)}

    model = Caching().eval()
    assert export_program(model, (inputs(),)).labels == ("y",)
    assert model.config.use_cache is True


def test_a_fixed_batch_size_is_refused():
    class Fixed(nn.Module):
        def forward(self, x):
            return F.relu(x).view(5, 2, 2)

    with pytest.raises(ValueError, match="Fixed fixes the batch size at 5"):
        export_program(Fixed(), (inputs(5),))
