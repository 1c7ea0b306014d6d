"""A cut program says what the whole one says with a lesion in it: beside the whole, node by node, in float64."""

import pickle

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from numpy.testing import assert_allclose
from torch import fx, nn
from torch.nn import functional as F

from specialize_nb.dev.zoo import random_network
from specialize_nb.lesions.cut import Cut, ablate
from specialize_nb.lesions.fuse import fuse
from specialize_nb.network.units import trace

X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FILL = 0.3


class Whole(fx.Interpreter):
    """Runs every node of a program, on one batch, and lesions some on the way."""

    def __init__(self, network, groups):
        super().__init__(network.program.root)
        layers = [network.layer(name) for name in groups]
        self.program, self.values = network.program, {}
        self.lesions = {layer.site: (layer.unit_dim, groups[layer.name]) for layer in layers}

    def run_node(self, node):
        value = super().run_node(node)
        if node.name in self.lesions:
            dim, group = self.lesions[node.name]
            rows = self.program.examples_first(node.name, value).clone()
            rows.movedim(dim, -1)[..., group] = FILL
            value = self.program.examples_back(node.name, rows)
        self.values[node.name] = value
        return value


def fused(network, **options):
    return fuse(network.program, [layer.site for layer in network.layers], **options)


def some_groups(network, layers, n=3, seed=0):
    """Random units of each layer, and what they put out instead."""
    rng, program = np.random.default_rng(seed), network.program
    masks = {name: torch.as_tensor(rng.random((n, network.layer(name).n_units)) < 0.4) for name in layers}
    axes = {name: len(network.layer(name).shape) + 1 for name in layers}
    return masks, {name: torch.full([1] * axes[name], FILL, dtype=torch.float64) for name in layers}


@torch.inference_mode()
def agrees(network, x, layers, program=None, node=None):
    """Are the scores under some lesions those of the whole program, and the kept values as they were?"""
    node = node or network.program.outputs[0]
    cut = Cut(network, program or fused(network), layers, node)
    masks, fills = some_groups(network, layers)
    given = cut.arguments(x)
    kept = cut.keep(given)
    before = [one.clone() if isinstance(one, torch.Tensor) else one for one in (*given, *kept)]
    scores = cut.scores(kept, masks, fills)
    for i, mine in enumerate(scores):
        whole = Whole(network, {name: table[i] for name, table in masks.items()})
        whole.run(*given)
        theirs = whole.values[node]
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10 * float(theirs.abs().max()))
    for one, was in zip((*given, *kept), before, strict=True):
        assert torch.equal(one, was) if isinstance(one, torch.Tensor) else one == was
    assert torch.equal(cut.scores(kept, masks, fills), scores)
    again = cut.scores(kept, {name: torch.cat([table[:1]] * 2) for name, table in masks.items()}, fills)
    assert_allclose(again[0], scores[0], rtol=1e-10, atol=1e-10 * float(scores.abs().max()), strict=True)
    return cut


def leads_on(network, name, node=None):
    return (node or network.program.outputs[0]) in network.program.dependents(network.layer(name).site)


@pytest.mark.parametrize("seed", [3, 5])
def test_random_networks(seed):
    _, model, x = random_network(seed)
    network = trace(model, x, **({"attention": "head", "residual": "stream"} if seed % 2 else {}))
    program = fused(network)
    names = [layer.name for layer in network.layers if leads_on(network, layer.name)]
    rng = np.random.default_rng(seed)
    pairs = [sorted(rng.choice(len(names), 2, replace=False)) for _ in range(4)]
    for layers in [*((name,) for name in names), *((names[a], names[b]) for a, b in pairs), tuple(names)]:
        agrees(network, x, layers, program)


def batch_norm(n):
    norm = nn.BatchNorm2d(n)
    norm.running_mean.copy_(torch.arange(n) / 4 - 0.5)
    norm.running_var.copy_(torch.arange(n) / 4 + 0.5)
    return norm


class Net(nn.Module):
    """A residual step, two branches, operations in place, and scores that are a sum."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3, padding=1), batch_norm(6), nn.Conv2d(6, 6, 3, padding=1)
        self.deep, self.side = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 4, 1)
        self.one, self.two = nn.Linear(6, 5), nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu_(self.norm(self.first(x)))
        y = self.second(x).add_(x)
        y = self.deep(F.relu(y)).mul_(torch.sigmoid(x)) + y
        return self.one(y.mean((2, 3))) + self.two(F.gelu(self.side(x)).amax((2, 3)))


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().double().eval().requires_grad_(False)


def test_every_layer_and_pair():
    network = trace(net(), X)
    program = fused(network)
    names = [layer.name for layer in network.layers if layer.kind != "input"]
    for layers in [*((name,) for name in names), *((a, b) for i, a in enumerate(names) for b in names[:i])]:
        layers = tuple(name for name in names if name in layers)
        agrees(network, X, layers, program)
        agrees(network, X, layers, network.program)
    assert len(names) > 5


def test_the_scores_themselves():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)).double().eval().requires_grad_(False)
    network = trace(model, X[:, :, 0, 0])
    masks, fills = some_groups(network, ["0", "2"])
    assert masks["2"].any()
    for layers in (("2",), ("0", "2")):
        cut = agrees(network, X[:, :, 0, 0], layers)
    scores = cut.scores(cut.keep((X[:, :, 0, 0],)), masks, fills)
    assert_allclose(scores[masks["2"][:, None].expand_as(scores)].unique(), [FILL], rtol=1e-6, strict=True)


def test_examples_anywhere():
    class Tokens(nn.Module):
        def __init__(self, fold):
            super().__init__()
            self.fold, self.up, self.down, self.head = fold, nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, x):
            n = x.shape[0]
            x = x.flatten(2).transpose(1, 2)  # (n, 64, 3)
            x = x.unflatten(1, (4, 16)).flatten(0, 1) if self.fold else x.transpose(0, 1)
            x = F.gelu(self.up(x))
            x = x + torch.tanh(self.down(x))
            return self.head(x.unflatten(0, (n, 4)).mean((1, 2)) if self.fold else x.mean(0))

    for fold in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = trace(Tokens(fold).double().eval().requires_grad_(False), X)
        for layers in (("up",), ("down",), ("up", "down"), ("up", "down", "head")):
            agrees(network, X, layers)


def test_one_reader():
    network = trace(net(), X, residual="stream")
    program, node = fused(network), network.program.outputs[0]
    masks, fills = some_groups(network, ["first"])
    cut = Cut(network, program, ["first"], node, "side")
    kept = cut.keep((X,))
    for scores, group in zip(cut.scores(kept, masks, fills), masks["first"], strict=True):
        model = net()
        model.side.bias += FILL * model.side.weight[:, group].sum((1, 2, 3))
        model.side.weight[:, group] = 0
        assert_allclose(scores, model(X), rtol=1e-10, strict=True)
    with pytest.raises(ValueError, match="does not read"):
        Cut(network, program, ["first"], node, "deep")


def test_sent_away():
    network = trace(net(), X)
    program, node = fused(network), network.program.outputs[0]
    for layers in (("second",), ("first", "deep", "one")):
        cut, (masks, fills) = Cut(network, program, layers, node), some_groups(network, layers)
        wanted = cut.scores(cut.keep((X,)), masks, fills)
        again = pickle.loads(pickle.dumps(cut))
        assert torch.equal(again.scores(again.keep((X,)), masks, fills), wanted)
    there = Parallel(n_jobs=2)(delayed(_scores)(cut, masks, fills) for _ in range(2))
    assert all(np.array_equal(one, wanted.numpy()) for one in there)


def _scores(cut, masks, fills):
    return cut.scores(cut.keep((X,)), masks, fills).numpy()


def test_half_the_bits():
    class Root(nn.Module):
        """A norm that computes in float32 whatever comes, between dense layers."""

        def __init__(self):
            super().__init__()
            self.up, self.down, self.head = nn.Linear(192, 32), nn.Linear(32, 32), nn.Linear(32, 5)

        def forward(self, x):
            h = self.up(x.flatten(1))
            wide = h.to(torch.float32)
            h = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(h.dtype)
            h = h + F.silu(self.down(h))
            return self.head(h.float()).float()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, x = trace(Root().eval().requires_grad_(False), X.float()), X.float()
    half, whole = fused(network, dtype=torch.bfloat16), fused(network)
    for layers in (("up",), ("down",), ("up", "down")):
        masks, fills = some_groups(network, layers)
        cuts = [Cut(network, one, layers, network.program.outputs[0]) for one in (half, whole)]
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            mine = cuts[0].scores(cuts[0].keep((x,)), masks, fills)
        theirs = cuts[1].scores(cuts[1].keep((x,)), masks, fills)
        assert not torch.equal(mine.float(), theirs)
        torch.testing.assert_close(mine.float(), theirs, rtol=0.05, atol=0.05)


def test_convnet_models():
    models = pytest.importorskip("torchvision.models")
    x = X[:2].repeat(1, 1, 4, 4)
    makers = [
        lambda: models.ShuffleNetV2([1, 1, 1], [8, 8, 16, 16, 32], num_classes=5),
        lambda: models.DenseNet(8, (2, 2), 8, num_classes=5),
    ]
    rng = np.random.default_rng(0)
    for make in makers:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make().double().eval().requires_grad_(False)
            for name, value in model.state_dict().items():
                if "running" in name:
                    value.uniform_(0.5, 1.5)
        network = trace(model, x)
        names = [layer.name for layer in network.layers if layer.kind == "hidden"]
        one, two = sorted(rng.choice(len(names), 2, replace=False))
        for layers in [(names[one],), (names[one], names[two])]:
            agrees(network, x, layers)


def test_language_model():
    hf = pytest.importorskip("transformers")
    config = hf.GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=8, vocab_size=30, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.GPT2LMHeadModel(config).double().eval().requires_grad_(False)
    x = {"input_ids": torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])}
    network = trace(model, x, attention="head", residual="stream")
    names = [layer.name for layer in network.layers if leads_on(network, layer.name)]
    program = fused(network)
    for layers in [*((name,) for name in names[1::5]), (names[2], names[-1])]:
        agrees(network, x, layers, program)


def test_ablate():
    value = torch.arange(6.0).view(2, 3)
    mask = torch.tensor([[True, False, False], [False, True, True]])
    out = ablate(value, mask, torch.tensor([[7.0], [8.0]]), 1, stacked=False)
    assert_allclose(out, torch.tensor([[7.0, 1, 2], [8, 4, 5], [0, 7, 7], [3, 8, 8]]), rtol=1e-6, strict=True)
    again = ablate(out, mask.flip(0), torch.full((1, 1), -1.0), 1, stacked=True)
    assert_allclose(again[::2], torch.tensor([[7.0, -1, -1], [-1, 7, 7]]), rtol=1e-6, strict=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_ablate_keeps_every_other_bit(dtype, layout):
    """What is not a number, infinite or minus zero stays as it is where it is kept, and goes where it is not."""
    value = torch.randn(4, 6, 3, 2, generator=torch.Generator().manual_seed(0)).mul(9).to(dtype)
    if dtype.is_floating_point:
        value.view(-1)[::5], value.view(-1)[1::7], value.view(-1)[2::11] = torch.nan, -torch.inf, -0.0
    value = value.contiguous(memory_format=layout)
    mask = torch.rand(2, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0] = True
    for fill in (None, torch.zeros(1, 6, 1, 1), value[[1, 0, 3, 2]].flip(1)):
        put = torch.zeros(()) if fill is None else fill
        wanted = torch.where(mask.view(2, 1, 6, 1, 1), put.to(dtype), value).flatten(0, 1)
        got = ablate(value, mask, fill, 1, stacked=False)
        assert got.dtype == dtype and torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got.nan_to_num(), wanted.nan_to_num())
        if dtype.is_floating_point:
            assert torch.equal(got.signbit() & ~got.isnan(), wanted.signbit() & ~wanted.isnan())
