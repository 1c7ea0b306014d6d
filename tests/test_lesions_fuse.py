"""A fused program says what the program says: beside the program itself, in float64, on all that can go wrong."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from specialize_nb.dev.zoo import random_network
from specialize_nb.lesions.fuse import aligned_linear, fuse, peak
from specialize_nb.network.units import trace

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Model(nn.Module):
    """Modules by name, and what to do with them."""

    def __init__(self, steps, **modules):
        super().__init__()
        self.steps = steps
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.head(self.steps(self, x).flatten(2).mean(2))


def conv(n=3, out=3, **options):
    return nn.Conv2d(n, out, 3, padding=1, **options)


def built(steps, out=3, **kinds):
    """A `Model` in eval mode and float64, its vectors and statistics random."""
    rng = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules = {name: make() for name, make in kinds.items()}
        model = Model(steps, **modules, head=nn.Linear(out, 5)).double().eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        if value.ndim == 1:
            draw = torch.randn(value.shape, generator=rng, dtype=torch.float64)
            value.copy_(draw.abs() + 0.5 if "var" in name else draw)
    return model


def batch_norm(n=3, **options):
    return nn.BatchNorm2d(n, **options)


def fused(network, **options):
    return fuse(network.program, [layer.site for layer in network.layers], **options)


def calls(program, word):
    """How many operations have this in their name?"""
    return sum(word in str(node.target) for node in program.root.graph.nodes if node.op == "call_function")


def agrees(program, other, x, rtol=1e-10):
    """Do two programs put out the same, and leave their inputs as they are?"""
    given = program.arguments(x)
    before = [one.clone() for one in given]
    for mine, theirs in zip(*(one.extract(one.inputs, one.outputs)(*given) for one in (program, other)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol * float(theirs.abs().max()))
    assert all(torch.equal(one, was) for one, was in zip(given, before, strict=True))


parametrized = nn.utils.parametrizations
# What is computed, of which modules, and how many batch norms are left.
CASES = {
    "convolution and norm": (lambda s, x: F.relu(s.n(s.c(x))), dict(c=conv, n=batch_norm), 0),
    "no affine part": (lambda s, x: s.n(s.c(x)), dict(c=conv, n=lambda: batch_norm(affine=False)), 0),
    "no bias, own epsilon": (
        lambda s, x: s.n(s.c(x)),
        dict(c=lambda: conv(bias=False), n=lambda: batch_norm(eps=0.3)),
        0,
    ),
    "grouped, dilated, strided": (
        lambda s, x: s.n(s.c(x)),
        dict(c=lambda: nn.Conv2d(3, 3, 2, stride=2, dilation=2, groups=3), n=batch_norm),
        0,
    ),
    "padding by name": (lambda s, x: s.n(s.c(x)), dict(c=lambda: nn.Conv2d(3, 3, 3, padding="same"), n=batch_norm), 0),
    "transposed": (lambda s, x: s.n(s.c(x)), dict(c=lambda: nn.ConvTranspose2d(3, 3, 2, groups=3), n=batch_norm), 1),
    "one dimension": (
        lambda s, x: s.n(s.c(x.flatten(2))),
        dict(c=lambda: nn.Conv1d(3, 3, 3), n=lambda: nn.BatchNorm1d(3)),
        0,
    ),
    "three dimensions": (
        lambda s, x: s.n(s.c(x[..., None])),
        dict(c=lambda: nn.Conv3d(3, 3, (2, 2, 1)), n=lambda: nn.BatchNorm3d(3)),
        0,
    ),
    "dense": (
        lambda s, x: s.n(s.c(x[:, 0, 0]))[..., None],
        dict(c=lambda: nn.Linear(8, 3), n=lambda: nn.BatchNorm1d(3)),
        0,
    ),
    "dense, on rows": (
        lambda s, x: s.n(s.c(x.flatten(2))),
        dict(c=lambda: nn.Linear(64, 3), n=lambda: nn.BatchNorm1d(3)),
        1,
    ),
    "after an activation": (lambda s, x: s.n(F.relu(s.c(x))), dict(c=conv, n=batch_norm), 1),
    "read by others too": (lambda s, x: (lambda y: s.n(y) * y)(s.c(x)), dict(c=conv, n=batch_norm), 1),
    "two norms of one": (
        lambda s, x: (lambda y: s.n(y) * s.m(y))(s.c(x)),
        dict(c=conv, n=batch_norm, m=batch_norm),
        2,
    ),
    "one after the other": (lambda s, x: s.m(s.n(s.c(x))), dict(c=conv, n=batch_norm, m=batch_norm), 1),
    "both used twice": (lambda s, x: s.n(s.c(F.relu(s.n(s.c(x))))), dict(c=conv, n=batch_norm), 0),
    "a norm used twice, by the operation's name": (
        lambda s, x: s.batch_norm(F.relu(s.batch_norm(s.c(x)))),
        dict(c=conv, batch_norm=batch_norm),
        1,
    ),
    "weights made of others": (
        lambda s, x: s.n(s.c(x)),
        dict(c=lambda: parametrized.weight_norm(conv()), n=batch_norm),
        0,
    ),
    "in place": (
        lambda s, x: F.relu_(s.d(F.relu_(s.n(s.c(x))))).mul_(2).add_(1),
        dict(c=conv, d=conv, n=batch_norm),
        0,
    ),
    "the input itself": (lambda s, x: F.relu(x) + s.c(torch.exp(x)), dict(c=conv), 0),
    "a view of what is read again": (
        lambda s, x: (lambda y: F.relu(torch.einsum("bchw->bcwh", y)) + s.d(y))(torch.tanh(s.c(x))),
        dict(c=conv, d=conv),
        0,
    ),
    "named like a method": (
        lambda s, x: s.c(x) + torch.arange(8).to(torch.float64) + torch.zeros(8).double(),
        dict(c=conv),
        0,
    ),
    "a number with itself": (lambda s, x: (lambda y: F.relu(y * y) + y)(s.c(x)), dict(c=conv), 0),
    "smaller than what it is added to": (
        lambda s, x: (lambda y: y.mean((2, 3), keepdim=True) + F.relu(y))(s.c(x)),
        dict(c=conv),
        0,
    ),
    "another type": (lambda s, x: (s.c(x).float() * 2).double() + (s.d(x) > 0), dict(c=conv, d=conv), 0),
    "halves": (lambda s, x: torch.cat([F.relu(one) for one in s.c(x).chunk(3, 1)], 1), dict(c=conv), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_it_says_the_same(name):
    steps, kinds, left = CASES[name]
    network = trace(built(steps, **kinds), X)
    program = fused(network)
    agrees(program, network.program, X)
    assert calls(program, "batch_norm") == left


@pytest.mark.parametrize("seed", [0, 2, 5, 12])
def test_random_networks(seed):
    _, model, x = random_network(seed)
    network = trace(model, x)
    agrees(fused(network), network.program, x)


def test_what_stays():
    network = trace(built(lambda s, x: F.relu(s.n(s.c(x))), c=conv, n=batch_norm), X)
    whole = fuse(network.program, ["conv2d"])
    agrees(whole, network.program, X)
    assert "conv2d" in whole.nodes and calls(whole, "batch_norm") == 1
    assert {"batch_norm", "relu"} <= set(fused(network).nodes) and "conv2d" not in fused(network).nodes


def test_fixed_values_are_computed_once():
    model = built(lambda s, x: s.c(x) * torch.sigmoid(s.gain.exp()), c=lambda: parametrized.weight_norm(conv()))
    model.gain = nn.Parameter(torch.randn(3, 1, 1, dtype=torch.float64), requires_grad=False)
    network = trace(model, X)
    program = fused(network)
    agrees(program, network.program, X)
    assert [calls(network.program, word) for word in ("weight_norm", "exp")] == [1, 1]
    assert [calls(program, word) for word in ("weight_norm", "exp", "sigmoid")] == [0, 0, 0]


def test_memory_is_the_models():
    model = built(lambda s, x: s.d(F.relu(s.n(s.c(x)))), c=conv, n=batch_norm, d=conv)
    places = {value.data_ptr(): name for name, value in model.state_dict().items()}
    buffers = [value.data_ptr() for _, value in fused(trace(model, X)).root.named_buffers()]
    assert {"d.weight", "d.bias", "head.weight", "head.bias"} <= {places.get(one) for one in buffers}
    part = fused(trace(model, X)).extract(("relu",), ("linear",))
    assert {value.data_ptr() for value in part.buffers()} <= set(places)


def test_memory_is_used_again():
    model = built(lambda s, x: (lambda y: s.d(F.relu(y)) + F.gelu(y))(F.relu(s.c(x))), c=conv, d=conv)
    network = trace(model, X)
    part = fused(network).extract(network.program.inputs, network.program.outputs)
    names = [str(node.target) for node in part.graph.nodes if node.op == "call_function"]
    assert sum(".relu_." in one for one in names) == 1 and sum(".add_." in one for one in names) == 1
    assert sum(".gelu_." in one for one in names) == 0


def test_channels_first_where_they_are_many():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        few, many = nn.Conv2d(3, 255, 3, stride=2, padding=1), nn.Conv2d(255, 256, 3, padding=1)
        late = nn.Conv2d(256, 3, 1)
    model = nn.Sequential(few, nn.ReLU(), many, nn.ReLU(), late, nn.Flatten(), nn.Linear(48, 5)).double().eval()
    model.requires_grad_(False)
    network = trace(model, X)
    program = fused(network)
    agrees(program, network.program, X)
    assert calls(program, "contiguous") == 1
    value = program.extract(program.inputs, ["relu"])(X)[0].contiguous(memory_format=torch.channels_last)
    out = program.extract(["relu"], ["conv2d_1"])(value)[0]
    assert out.is_contiguous()
    assert not network.program.extract(["relu"], ["conv2d_1"])(value)[0].is_contiguous()


def test_other_types():
    model = built(lambda s, x: F.relu(s.n(s.c(x))) + s.gain, c=conv, n=batch_norm).float()
    model.gain, x = nn.Parameter(torch.randn(3, 1, 1), requires_grad=False), X.float()
    network = trace(model, x)
    program = fused(network, dtype=torch.bfloat16)
    types = {name: value.dtype for name, value in program.root.named_buffers()}
    assert {name for name, one in types.items() if one == torch.bfloat16} == {
        f"fixed_{name}" for name in ("batch_norm_weight", "batch_norm_bias", "head_weight", "head_bias")
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = program.extract(program.inputs, program.outputs)(x)[0]
    torch.testing.assert_close(out.float(), model(x), rtol=0.05, atol=0.05)
    with pytest.raises(RuntimeError):
        program.extract(program.inputs, program.outputs)(x)


def test_statistics_of_the_batch():
    layers = (
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 3),
    )
    model, x = nn.Sequential(*layers).eval(), torch.rand(4, 1, 8, 8)
    network = trace(model, x)
    assert not network.unknown
    program = fuse(network.program, [])  # nothing to fold: the statistics are another batch's in every batch
    torch.testing.assert_close(program.extract(program.inputs, program.outputs)(x)[0], model(x))


def test_peak():
    network = trace(built(lambda s, x: s.d(F.relu(s.c(x))), c=lambda: conv(3, 7), d=lambda: conv(7, 3)), X)
    program = fused(network)
    assert peak(program, program.inputs, program.outputs) == 7 * 64
    assert peak(program, ["conv2d_1"], program.outputs) == 3 * 64


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (2, 1, 3, 7)])
def test_aligned_products_are_those_of_linear(shape, bias):
    rng = torch.Generator().manual_seed(0)
    x, weight, shift = (torch.randn(one, generator=rng) for one in (shape, (4099, 7), (4099,)))
    found = aligned_linear(x, weight, shift if bias else None)
    torch.testing.assert_close(found, F.linear(x, weight, shift if bias else None), rtol=1e-6, atol=1e-6)
    assert found.stride(-2) % 16 == 0 and found.stride(-1) == 1


def test_products_in_other_types_are_plain():
    x, weight = torch.ones(2, 3, dtype=torch.float64), torch.ones(4099, 3, dtype=torch.float64)
    assert aligned_linear(x, weight).is_contiguous()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert aligned_linear(x.float(), weight.float()).dtype == torch.bfloat16


class Words(nn.Module):
    """Tokens to scores of `n` words."""

    def __init__(self, n):
        super().__init__()
        self.embed, self.head = nn.Embedding(n, 8), nn.Linear(8, n, bias=False)

    def forward(self, ids):
        return self.head(self.embed(ids).relu())


@pytest.mark.parametrize(("n", "aligned"), [(4096, False), (4099, True), (99, False)])
def test_only_parts_that_put_out_an_odd_vocabulary_are_aligned(n, aligned):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Words(n).eval().requires_grad_(False)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    network = trace(model, ids)
    program = fused(network)
    part = program.extract(program.inputs, [program.outputs[0]])
    assert any(node.target is aligned_linear for node in part.graph.nodes) == aligned
    torch.testing.assert_close(part(ids)[0], model(ids), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 1, ceil_mode=True)])
def test_maps_are_pooled_with_channels_last(pool):
    """Ten times as fast on a CPU; what is pooled may be read by others too, and written over by none."""
    model = built(
        lambda s, x: (lambda y: s.p(y) * F.relu(y).mean())(s.d(F.relu(s.c(x)))), c=conv, d=conv, p=lambda: pool
    )
    network = trace(model, X)
    program, laid = fused(network), []
    agrees(program, network.program, X)
    part = program.extract(network.program.inputs, network.program.outputs)
    for node in part.graph.nodes:
        if "pool" in node.name and node.op == "call_function":
            source = node.args[0]
            laid.append(source.op == "call_function" and source.kwargs.get("memory_format"))
    assert laid == [torch.channels_last]
