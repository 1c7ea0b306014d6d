"""The traced program: pure, cut anywhere, and joined again."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from specialize_nb.program import export_program
from specialize_nb.testing import unchanged


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
    assert program.attribute(weight).data_ptr() == model.first.weight.data_ptr()


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


def test_a_fixed_batch_size_is_refused():
    class Fixed(nn.Module):
        def forward(self, x):
            return F.relu(x).view(5, 2, 2)

    with pytest.raises(ValueError, match="Fixed fixes the batch size at 5"):
        export_program(Fixed(), (inputs(5),))
