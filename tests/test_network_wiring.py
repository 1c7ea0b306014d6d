"""Layouts one at a time: what their wires say, and that the real forward pass agrees."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from specialize_nb.graphs.weights import weight_graph
from specialize_nb.network import wiring
from specialize_nb.network.perturbation import check_wiring
from specialize_nb.network.units import trace


class Call(nn.Module):
    """Some modules and a function of them and the input."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *x):
        return self.function(self, *x)


def build(function, seed=0, **modules):
    generator = torch.Generator().manual_seed(seed)
    model = Call(function, **modules).double().eval().requires_grad_(False)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return model


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def true_network(model, x, **options):
    network = trace(model, x, **options)
    found = check_wiring(network, x)
    assert found[["missing", "idle"]].sum().sum() == 0, found[found["missing"] + found["idle"] > 0]
    assert not network.unknown
    return network


def wire(network, source, target):
    (found,) = [one for one in network.wires if (one.source, one.target) == (source, target)]
    return found


MAPS, VECTORS = normal(3, 2, 6, 6), normal(3, 4)
LAYOUTS = {
    "conv1d": (lambda m, x: m.b(torch.relu(m.a(x.flatten(2)))), {"a": nn.Conv1d(2, 4, 3), "b": nn.Conv1d(4, 3, 1)}),
    "conv3d": (lambda m, x: m.a(x[:, :, None]), {"a": nn.Conv3d(2, 4, (1, 3, 3))}),
    "transposed": (lambda m, x: m.b(m.a(x)), {"a": nn.Conv2d(2, 4, 1), "b": nn.ConvTranspose2d(4, 6, 2, groups=2)}),
    "depthwise": (lambda m, x: m.b(m.a(x)), {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv2d(4, 8, 3, groups=4)}),
    "flip and roll": (
        lambda m, x: m.b(m.a(x).flip(1).roll(1, 1)),
        {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv2d(4, 4, 1, groups=2)},
    ),
    "reflected": (
        lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1), mode="reflect")),
        {"a": nn.Conv2d(2, 3, 1), "b": nn.Conv2d(3, 2, 3)},
    ),
    "pixel shuffle": (lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)), {"a": nn.Conv2d(2, 8, 1), "b": nn.Conv2d(2, 2, 1)}),
    "slice written": (
        lambda m, x: m.b(torch.cat([torch.tanh(m.a(x))[:, :2], m.a(x)[:, 2:]], 1)),
        {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv2d(4, 2, 1)},
    ),
    "picked by index": (
        lambda m, x: m.b(m.a(x)[:, torch.tensor([3, 1, 1])]),
        {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv2d(3, 3, 1, groups=3)},
    ),
    "mean over channels": (
        lambda m, x: m.b(m.a(x).mean(1, keepdim=True)),
        {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv2d(1, 2, 1)},
    ),
    "standardised by hand": (
        lambda m, x: m.b((m.a(x) - m.a(x).mean(1, keepdim=True)) / m.a(x).std(1, keepdim=True)),
        {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv2d(4, 2, 1)},
    ),
    "unit length": (lambda m, x: m.b(F.normalize(m.a(x), dim=1)), {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv2d(4, 2, 1)}),
    "spatial attention": (
        lambda m, x: m.c(m.a(x) * torch.sigmoid(m.b(m.a(x).amax(1, keepdim=True)))),
        {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv2d(1, 1, 3, padding=1), "c": nn.Conv2d(4, 2, 1)},
    ),
    "channels weighed along themselves": (
        lambda m, x: m.c(m.a(x) * torch.sigmoid(m.b(m.a(x).mean((2, 3))[:, None]))[:, 0, :, None, None]),
        {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv1d(1, 1, 3, padding=1), "c": nn.Conv2d(4, 2, 1)},
    ),
    "softmax over units": (lambda m, x: m.b(m.a(x).softmax(1)), {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv2d(4, 2, 1)}),
    "bilinear product": (
        lambda m, x: m.c(m.a(x).flatten(2) @ m.b(x).flatten(2).transpose(1, 2)),
        {"a": nn.Conv2d(2, 3, 1), "b": nn.Conv2d(2, 4, 1), "c": nn.Linear(4, 2)},
    ),
    "einsum of values": (
        lambda m, x: m.c(torch.einsum("bchw,bdhw->bcd", m.a(x), m.b(x))),
        {"a": nn.Conv2d(2, 3, 1), "b": nn.Conv2d(2, 4, 1), "c": nn.Linear(4, 2)},
    ),
    "parameter from the left": (
        lambda m, x: m.b(torch.matmul(m.a.weight, x.flatten(2)).relu().transpose(1, 2)),
        {"a": nn.Linear(2, 5, bias=False), "b": nn.Linear(5, 2)},
    ),
    "chosen by comparison": (
        lambda m, x: m.c(torch.where(m.a(x) > m.b(x).abs(), m.a(x), torch.zeros_like(m.a(x)))),
        {"a": nn.Conv2d(2, 3, 1), "b": nn.Conv2d(2, 3, 1), "c": nn.Conv2d(3, 3, 1, groups=3)},
    ),
    "ReLU as a product": (
        lambda m, x: m.b(m.a(x) * (m.a(x) > 0)),
        {"a": nn.Conv2d(2, 3, 1), "b": nn.Conv2d(3, 3, 1, groups=3)},
    ),
    "running sum": (lambda m, x: m.b(m.a(x).cumsum(1)), {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv2d(4, 2, 1)}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name):
    function, modules = LAYOUTS[name]
    network = true_network(build(function, **modules), MAPS)
    assert len(network.layers) >= 2 and network.wires


def test_each_channel_owns_its_block_of_a_transposed_convolution():
    network = true_network(
        build(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(2, 4, 1), b=nn.ConvTranspose2d(4, 6, 2, groups=2)), MAPS
    )
    found = wire(network, "a", "b")
    assert found.groups == 2 and found.weight.shape == (6, 2, 4) and found.kernel == (2, 2)
    touched = (found.matrix(found.weight) != 0).any(2)
    assert touched[:3, :2].all() and touched[3:, 2:].all() and int(touched.sum()) == 12
    for row, column in ((0, 0), (2, 1), (3, 0), (5, 1)):
        kernel = network.program.constant(next(n for n, v in network.program.nodes.items() if v.target == "b.weight"))
        assert torch.equal(found.weight[row, column], kernel[2 * (row // 3) + column, row % 3].flatten())


def test_a_site_is_never_a_comparison():
    def function(m, x):
        h = m.a(x)
        return m.b(h * (h > 0)) + (m.c(x) > 0)

    model = build(function, a=nn.Linear(4, 5), b=nn.Linear(5, 2), c=nn.Linear(4, 2))
    network = true_network(model, VECTORS)
    assert [network.layer(name).site for name in "abc"] == ["mul", "linear_1", "linear_2"]


@pytest.mark.parametrize(
    "name, function",
    [
        ("statistic", lambda h: (h - h.mean(1, keepdim=True)) * (h.var(1, keepdim=True) + 1e-5).rsqrt()),
        ("statistic", lambda h: F.normalize(h, dim=1)),
        ("softmax", lambda h: h.softmax(1)),
        ("group_norm", lambda h: F.group_norm(h, 2)),
        ("layer_norm", lambda h: F.layer_norm(h.movedim(1, -1), (4,)).movedim(-1, 1)),
        ("rms_norm", lambda h: F.rms_norm(h.movedim(1, -1), (4,)).movedim(-1, 1)),
    ],
)
def test_statistics_join_nobody_and_are_told(name, function):
    model = build(lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(2, 4, 1), b=nn.Conv2d(4, 4, 1, groups=4))
    network = true_network(model, MAPS)
    assert name in network.held
    assert wire(network, "a", "b").columns.tolist() == [[0, 1, 2, 3]] * 2


def test_a_pattern_made_of_what_it_weighs_is_held():
    def function(m, x):
        h = m.a(x).flatten(2).transpose(1, 2)
        return m.b(F.scaled_dot_product_attention(h, h, h).transpose(1, 2))

    model = build(function, a=nn.Conv2d(2, 4, 1), b=nn.Conv1d(4, 4, 1, groups=4))
    network = true_network(model, MAPS)
    assert list(network.held) == ["scaled_dot_product_attention"]
    assert wire(network, "a", "b").columns.tolist() == [[0, 1, 2, 3]] * 2


def test_turned_queries_are_not_taken_for_statistics():
    def function(m, x):
        q, k, v = (one(x).view(x.shape[0], -1, 2, 4).transpose(1, 2) for one in (m.q, m.k, m.v))
        turned = torch.cat([-q[..., 2:], q[..., :2]], -1)
        y = F.scaled_dot_product_attention(q * 0.3 + turned * 0.7, k, v)
        return m.out(y.transpose(1, 2).reshape(x.shape[0], -1, 8))

    parts = {name: nn.Linear(4, 8) for name in "qkv"}
    network = true_network(build(function, **parts, out=nn.Linear(8, 2)), normal(3, 5, 4))
    assert network.held == {} and len([one for one in network.wires if one.source == "q"]) == 1


def test_batch_norm_keeps_its_place_where_recurrent_cells_are_unrolled():
    def function(m, x):
        y = torch.relu(m.norm(m.a(x))).flatten(2)
        return m.b(m.cell(y[..., 0]))

    model = build(function, a=nn.Conv2d(2, 4, 1), norm=nn.BatchNorm2d(4), cell=nn.GRUCell(4, 3), b=nn.Linear(3, 2))
    model.norm.running_var.copy_(torch.rand(4) + 0.5)
    network = true_network(model, MAPS)
    assert network.layer("a").site == "relu" and (wire(network, "input", "a").scale_in != 1).all()


def test_constant_factors_reach_the_weights():
    gain = torch.tensor([1.0, -2.0, 0.0, 4.0], dtype=torch.float64)
    model = build(lambda m, x: m.b(torch.relu(m.a(x)) * m.gain / 2), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    model.register_buffer("gain", gain)
    found = wire(true_network(model, VECTORS), "a", "b")
    assert found.scale_out.tolist() == [0.5, 1.0, 0.0, 2.0]


def test_layer_norm_before_the_activation_scales_what_comes_in():
    model = build(
        lambda m, x: m.b(torch.relu(m.norm(m.a(x)))), a=nn.Linear(4, 5), norm=nn.LayerNorm(5), b=nn.Linear(5, 2)
    )
    network = true_network(model, VECTORS)
    assert network.layer("a").site == "relu" and network.layer("a").pre == "layer_norm"
    assert torch.equal(wire(network, "input", "a").scale_in, model.norm.weight.abs())
    assert list(network.held) == ["layer_norm"]


def test_the_site_is_behind_an_activation_that_comes_after_a_view():
    def function(m, x):
        b, t = x.shape[0], x.shape[1]
        hidden = torch.addmm(m.a.bias, x.reshape(b * t, 4), m.a.weight.T).view(b, t, 5)
        return m.b(F.gelu(hidden))

    model = build(function, a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    x = normal(3, 2, 4)
    network = true_network(model, x)
    layer = network.layer("a")
    assert (layer.site, layer.unit_dim, layer.shape) == ("gelu", 2, (2, 5))
    assert network.activations(x, ["a"])["a"].shape == (3, 2, 5)


def test_tokens_first_and_windows_come_back_examples_first():
    def function(m, x):
        first = m.a(x.transpose(0, 1))  # (tokens, batch, features)
        windows = first.transpose(0, 1).reshape(x.shape[0] * 3, 2, 5)  # three windows of two tokens
        return m.b(windows).reshape(x.shape[0], 6, 2)

    model = build(function, a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    x = normal(4, 6, 4)
    network = true_network(model, x)
    values = network.activations(x, ["a", "b"])
    assert torch.allclose(values["a"], model.a(x)) and network.layer("a").unit_dim == 2
    assert torch.allclose(values["b"].reshape(4, 6, 2), model.b(model.a(x))) and network.layer("b").unit_dim == 3
    assert network.layer("b").shape == (3, 2, 2)


def test_heads_own_the_rows_of_their_projections():
    def function(m, x):
        q, k, v = (part.view(x.shape[0], -1, 2, 3).transpose(1, 2) for part in m.qkv(x).chunk(3, -1))
        return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], -1, 6))

    model = build(function, qkv=nn.Linear(4, 18), out=nn.Linear(6, 2))
    network = true_network(model, normal(3, 5, 4), attention="head")
    head = next(layer for layer in network.layers if layer.op == "attention")
    assert [layer.name for layer in network.layers] == ["input", head.name, "out"]
    rows = {h: set() for h in range(2)}
    for one in [one for one in network.wires if one.target == head.name]:
        for row, unit in one.rows.T:
            rows[int(unit)].add(int(row))
    assert rows[0] == {0, 1, 2, 6, 7, 8, 12, 13, 14} and rows[1] == set(range(18)) - rows[0]
    assert wire(network, head.name, "out").columns[1].tolist() == [0, 0, 0, 1, 1, 1]


def test_keys_that_several_queries_share_feed_all_their_heads():
    def function(m, x):
        q = m.q(x).view(x.shape[0], -1, 4, 2).transpose(1, 2)
        k, v = (one(x).view(x.shape[0], -1, 2, 2).transpose(1, 2) for one in (m.k, m.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return m.out(y.transpose(1, 2).reshape(x.shape[0], -1, 8))

    model = build(function, q=nn.Linear(4, 8), k=nn.Linear(4, 4), v=nn.Linear(4, 4), out=nn.Linear(8, 2))
    for attention in ("feature", "head"):
        network = true_network(model, normal(3, 5, 4), attention=attention)
    head = next(layer.name for layer in network.layers if layer.op == "attention")
    keys = next(one for one in network.wires if one.target == head and one.parameter == "k.weight")
    assert sorted(map(tuple, keys.rows.T.tolist())) == [(r, h) for r in range(4) for h in ([0, 1] if r < 2 else [2, 3])]


def test_attention_between_two_sequences():
    model = build(lambda m, x, y: m.a(x, y, y)[0], a=nn.MultiheadAttention(4, 2, batch_first=True))
    x = (normal(3, 5, 4), normal(3, 2, 4, seed=1))
    network = true_network(model, x)
    assert [layer.name for layer in network.layers][2:] == ["a.in_proj", "a.in_proj#2", "a.out_proj"]
    sources = [[one.source for one in network.wires if one.target == name] for name in ("a.in_proj", "a.in_proj#2")]
    assert sources == [["input.x_0"], ["input.x_1"]]


def test_a_sum_of_unequal_shapes_is_a_layer_when_asked():
    def function(m, x):
        return m.c(torch.relu(m.a(x) + F.pad(m.b(x), (0, 0, 0, 0, 1, 1))))

    model = build(function, a=nn.Conv2d(2, 4, 1), b=nn.Conv2d(2, 2, 1), c=nn.Conv2d(4, 2, 1))
    network = true_network(model, MAPS, residual="stream")
    (total,) = [layer for layer in network.layers if layer.op == "sum"]
    assert (total.unit, total.n_units, total.site) == ("dimension", 4, "relu")
    assert wire(network, "b", total.name).columns.tolist() == [[1, 2], [0, 1]]
    assert {one.source for one in network.wires if one.target == "c"} == {total.name}


def test_recurrent_modules_unroll_step_by_step():
    model = build(lambda m, x: m.b(m.a(x)[0][:, -1]), a=nn.LSTM(4, 3, batch_first=True), b=nn.Linear(3, 2))
    network = true_network(model, normal(3, 3, 4), recurrent="gate")
    names = [layer.name for layer in network.layers]
    assert names == ["input", "a.weight_ih_l0", "a.weight_hh_l0", "a.weight_hh_l0#2", "b"]


def test_shared_weights_are_named_by_who_uses_them():
    model = build(
        lambda m, ids: m.head(m.words(ids).relu()), words=nn.Embedding(7, 4), head=nn.Linear(4, 7, bias=False)
    )
    model.head.weight = model.words.weight
    network = true_network(model, torch.arange(6).view(2, 3))
    assert [layer.name for layer in network.layers] == ["words", "head"]
    assert network.layer("words").op == "embedding" and network.layer("words").unit == "dimension"


def test_a_module_alone_has_a_name():
    assert [layer.name for layer in trace(nn.Conv2d(2, 3, 1).eval(), MAPS.float()).layers] == ["input", "conv2d"]


def test_what_a_choice_depends_on_is_not_followed_but_told():
    def function(m, x):
        value, place = m.a(x).topk(2, dim=1)
        return m.b(value)

    model = build(function, a=nn.Linear(4, 5), b=nn.Linear(2, 2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = trace(model, VECTORS)
    assert [one.layers for one in network.unknown] == [("a",)] and "topk" in network.unknown[0].op
    assert any("topk" in str(one.message) for one in caught)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.b(m.a(x)[torch.arange(x.shape[0]), m.a(x).argmax(1)][:, None]),
        lambda m, x: m.b(F.embedding(m.a(x).argmax(1), m.table)[:, None]),
        lambda m, x: m.b(torch.where(m.a(x) > 0, m.a(x), 0.0).topk(1, dim=1)[0]),
    ],
)
def test_places_chosen_by_units_are_told(function):
    model = build(function, a=nn.Linear(4, 5), b=nn.Linear(1, 2))
    model.register_buffer("table", torch.rand(5, dtype=torch.float64)[:, None])
    with pytest.warns(RuntimeWarning, match=r"no edges from \['a'"):
        assert trace(model, VECTORS).unknown


def test_weights_that_depend_on_the_input_are_told():
    def function(m, x):
        return F.linear(x, torch.outer(m.a(x).mean(0), m.a(x).mean(0)))

    with pytest.warns(RuntimeWarning, match="could not be followed"):
        network = trace(build(function, a=nn.Linear(4, 4)), VECTORS)
    assert network.unknown


def test_a_failure_while_one_operation_is_followed_cuts_off_there(monkeypatch):
    "Whatever goes wrong on the way: the operation, its node and the error are named, and all else is as it was."

    def fails(follower, node):
        raise ZeroDivisionError("of all things")

    model = build(lambda m, x: m.c(torch.tanh(m.b(m.a(x)))), a=nn.Linear(4, 5), b=nn.Linear(5, 3), c=nn.Linear(3, 2))
    whole = trace(model, VECTORS)
    monkeypatch.setitem(wiring._HANDLERS, "tanh", fails)
    with pytest.warns(RuntimeWarning, match=r"aten.tanh.default could not be followed \(node 'tanh'.*: of all things"):
        cut = trace(model, VECTORS)
    assert [one.layers for one in cut.unknown] == [("b",)] and "of all things" in cut.notes[0]
    assert [layer.name for layer in cut.layers] == [layer.name for layer in whole.layers]
    assert [(wire.source, wire.target) for wire in cut.wires] == [("input", "a"), ("a", "b")]
    assert cut.notes[0] in cut.verdict and not whole.notes


def test_a_failure_in_a_weighted_operation_leaves_no_half_layer(monkeypatch):
    def fails(follower, node):
        follower._new_layer(node, "half", "", "", 1)
        raise ZeroDivisionError

    monkeypatch.setitem(wiring._PRODUCERS, "matmul", fails)
    model = build(lambda m, x: m.b(m.a(x) @ torch.ones(5, 5, dtype=x.dtype)), a=nn.Linear(4, 5), b=nn.Linear(5, 3))
    with pytest.warns(RuntimeWarning, match="aten.matmul.default could not be followed"):
        network = trace(model, VECTORS)
    assert [layer.name for layer in network.layers] == ["input", "a", "b"] and len(network.wires) == 1


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda m, x: m.b(m.a(x)[x[:, 0] > 0]), "runs on rows that are chosen by their values"),
        (lambda m, x: m.b(m.a(x).mean(0, keepdim=True)), "mixes the examples of a batch into a fixed number of rows"),
        (lambda m, x: m.b(torch.cat([m.a(x), x[:1, :1].expand(1, 5)])), "does not have as many rows for every example"),
        (lambda m, x: m.b(m.a(x).to(torch.complex128)), "puts out complex numbers"),
    ],
)
def test_layers_without_a_number_for_each_example_are_left_out(function, told):
    model = build(function, a=nn.Linear(4, 5), b=nn.Linear(5, 3, dtype=torch.complex128 if "complex" in told else None))
    model.b = model.b if "complex" in told else model.b.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        network = trace(model, VECTORS)
    assert [layer.name for layer in network.layers] == ["input", "a"]
    assert f"Layer 'b' is left out: it {told}." in network.notes
    assert {wire.target for wire in network.wires} == {"a"}


def test_complex_weights_count_by_their_size():
    "Units whose numbers become real behind the weight are units like others; the imaginary part is not dropped."

    def function(m, x):
        return m.c((m.a(x).to(torch.complex128) @ m.kernel).abs())

    model = build(function, a=nn.Linear(4, 5), c=nn.Linear(3, 2))
    model.kernel = nn.Parameter(torch.randn(5, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = trace(model, VECTORS)
        found = check_wiring(network, VECTORS)
    wire = next(wire for wire in network.wires if wire.target == "kernel")
    torch.testing.assert_close(wire.weight[:, :, 0], model.kernel.detach().abs().T)
    assert found[["missing", "idle"]].sum().tolist() == [0, 0]
    expected = (model.a(VECTORS).to(torch.complex128) @ model.kernel).abs()
    torch.testing.assert_close(network.activations(VECTORS, ["kernel"], at="pre")["kernel"], expected)
    for norm in ("l1", "l2", "max"):
        block = weight_graph(network, norm=norm).blocks["a", "kernel"]
        torch.testing.assert_close(torch.as_tensor(block), model.kernel.detach().abs())


def test_einsums_are_followed_however_they_are_written():
    weight = nn.Linear(5, 5)
    ways = [
        lambda m, h: torch.einsum("...i,ji->...j", h, m.w.weight),
        lambda m, h: torch.einsum("bi,ji", h, m.w.weight),
        lambda m, h: torch.tensordot(h, m.w.weight, dims=([1], [1])),
        lambda m, h: torch.einsum("b i, j i -> b j", h, m.w.weight),
    ]
    wires = []
    for way in ways:
        model = build(lambda m, x, way=way: m.b(way(m, m.a(x)).relu()), a=nn.Linear(4, 5), w=weight, b=nn.Linear(5, 3))
        network = trace(model, VECTORS)
        found = check_wiring(network, VECTORS)
        assert network.unknown == () and found[["missing", "idle"]].sum().tolist() == [0, 0]
        wires.append([(wire.source, wire.target, wire.weight.tolist()) for wire in network.wires])
    assert all(one == wires[0] for one in wires) and len(wires[0]) == 3


class Adapted(nn.Module):
    def __init__(self, out, inside):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.ones(2, inside)), nn.Parameter(torch.ones(out, 2))

    def forward(self, weight):
        return weight + self.up @ self.down


class Kernel(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return x @ self.kernel + self.bias


@pytest.mark.parametrize(
    "change",
    [
        lambda m: prune.random_unstructured(m, "weight", 0.5),
        lambda m: prune.ln_structured(m, "weight", 0.5, n=2, dim=0),
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        lambda m: parametrize.register_parametrization(m, "weight", Adapted(8, 8)),
        lambda m: Kernel(),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_layer_is_called_as_its_module(change):
    "However its weight is computed, and whatever its parameters are called."
    layers = [nn.Linear(8, 8) for _ in range(11)]
    layers[1], layers[10] = change(layers[1]), change(layers[10])
    network = trace(nn.Sequential(*layers).eval(), torch.zeros(2, 8))
    assert [layer.name for layer in network.layers] == ["input", *map(str, range(11))]
    assert network.layer("10").n_units == 8
