"""Small networks of every layout that people build, alone and in random compositions, to test the wiring on.

A plain module, not a notebook: building material for the perturbation notebook, which says what it proves. Every
network is small enough to change each of its units in turn, in float64 so that nothing hides behind rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ACROSS", "LOST", "MAP_BLOCKS", "TOKEN_BLOCKS", "Between", "Specimen", "random_network"]


class Residual(nn.Module):
    """A block added to its input, or to a projection of it.

    Parameters
    ----------
    body : nn.Module
    short : nn.Module | None, default None
    act : nn.Module | None, default None
    """

    def __init__(self, body: nn.Module, short: nn.Module | None = None, act: nn.Module | None = None):
        super().__init__()
        self.body, self.short, self.act = body, short or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.short(x))


class Padded(nn.Module):
    """Half the pixels and twice the channels; the shortcut takes every other pixel and pads channels with zeros.

    Parameters
    ----------
    width : int
    """

    def __init__(self, width: int):
        super().__init__()
        self.body, self.pad = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), (width // 2, width - width // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *self.pad)))


class Branches(nn.Module):
    """Two convolutions and the input itself, side by side.

    Parameters
    ----------
    width : int
    """

    def __init__(self, width: int):
        super().__init__()
        self.left, self.right = nn.Conv2d(width, 3, 1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(self.left(x)), x, torch.tanh(self.right(x))], 1)


class Shuffled(nn.Module):
    """A convolution in two groups, an activation in place, and a shuffle of channels.

    Parameters
    ----------
    width : int
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, padding=1, groups=2 if width % 2 == 0 else 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv(x))
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class Squeeze(nn.Module):
    """A gate for every channel, computed from the means of all (squeeze and excitation).

    Parameters
    ----------
    width : int
    """

    def __init__(self, width: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, 3), nn.Linear(3, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Twice(nn.Module):
    """One module used two times.

    Parameters
    ----------
    width : int
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(F.gelu(self.conv(x)))) + x


class Functional(nn.Module):
    """Parameters of its own, given to functions.

    Parameters
    ----------
    width : int
    """

    def __init__(self, width: int):
        super().__init__()
        self.kernel, self.gain = nn.Parameter(torch.zeros(4, width, 3, 3)), nn.Parameter(torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(F.conv2d(x, self.kernel, padding=1)) * self.gain


class Gated(nn.Module):
    """One half of the channels gates the other (GLU).

    Parameters
    ----------
    width : int
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.conv(x), 1)


class ChannelsLast(nn.Module):
    """A depthwise convolution, then dense layers at every pixel with channels last, as in ConvNeXt.

    Parameters
    ----------
    width : int
    """

    def __init__(self, width: int):
        super().__init__()
        self.depth, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.wide, self.back = nn.Linear(width, 6), nn.Linear(6, width)
        self.gain = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.gain * self.back(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)


class RootNorm(nn.Module):
    """Normalisation by the root of the mean square, written out as language models do.

    Parameters
    ----------
    width : int
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Attention(nn.Module):
    """Attention behind a norm: projections fused or apart, the product fused or written out.

    Parameters
    ----------
    width : int
    norm : Callable[[int], nn.Module]
    fused : bool
    written : bool
    """

    def __init__(self, width: int, norm: Callable[[int], nn.Module], fused: bool, written: bool):
        super().__init__()
        self.norm, self.fused, self.written, self.out = norm(width), fused, written, nn.Linear(width, width)
        self.qkv = nn.Linear(width, 3 * width) if fused else nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y, (b, t, d) = self.norm(x), x.shape
        parts = self.qkv(y).chunk(3, -1) if self.fused else [one(y) for one in self.qkv]
        q, k, v = (part.view(b, t, 2, d // 2).transpose(1, 2) for part in parts)
        if self.written:
            y = (q @ k.transpose(-2, -1) / (d // 2) ** 0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(b, t, d))


class Multihead(nn.Module):
    """PyTorch's own attention module, examples or tokens first.

    Parameters
    ----------
    width : int
    examples_first : bool
    """

    def __init__(self, width: int, examples_first: bool):
        super().__init__()
        self.norm, self.first = nn.LayerNorm(width), examples_first
        self.mix = nn.MultiheadAttention(width, 2, batch_first=examples_first)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.first else x.transpose(0, 1)
        y = self.mix(y, y, y, need_weights=not self.first)[0]
        return self.norm(x + (y if self.first else y.transpose(0, 1)))


class Swish(nn.Module):
    """A gated MLP behind a root norm.

    Parameters
    ----------
    width : int
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.gate, self.up = RootNorm(width), nn.Linear(width, 6), nn.Linear(width, 6)
        self.down = nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Mixer(nn.Module):
    """Dense layers across tokens.

    Parameters
    ----------
    n_tokens : int
    """

    def __init__(self, n_tokens: int):
        super().__init__()
        self.wide, self.back = nn.Linear(n_tokens, 3), nn.Linear(3, n_tokens)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.gelu(self.wide(x.transpose(1, 2)))).transpose(1, 2)


class Product(nn.Module):
    """Products with parameters instead of linear modules.

    Parameters
    ----------
    width : int
    """

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.zeros(width, 5)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btk,dk->btd", torch.relu(x @ self.first), self.second)


class Recurrent(nn.Module):
    """A recurrent cell along the first tokens.

    Parameters
    ----------
    width : int
    cell : type[nn.RNNCellBase]
    n_steps : int, default 3
    """

    def __init__(self, width: int, cell: type[nn.RNNCellBase], n_steps: int = 3):
        super().__init__()
        self.cell, self.n_steps = cell(width, width), n_steps

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for step in x.unbind(1)[: self.n_steps]:
            state = self.cell(step, state)
            out.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(out, 1)


def _conv(width: int, out: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(width, out, 3, padding=1, **options)


def _projected(width: int) -> nn.Module:
    short = nn.Sequential(nn.Conv2d(width, 6, 1, stride=2), nn.BatchNorm2d(6))
    return Residual(nn.Sequential(_conv(width, 6, stride=2), nn.BatchNorm2d(6)), short, nn.ReLU())


class Between(nn.Module):
    """A dense layer of six units with an activation, a function of what they put out, and a dense layer on that.

    Parameters
    ----------
    function : Callable[[Tensor], Tensor]
    seed : int, default 0
    """

    def __init__(self, function: Callable[[Tensor], Tensor], seed: int = 0):
        super().__init__()
        self.first, self.function, self.last = nn.Linear(4, 6), function, nn.Linear(6, 3)
        _draw_weights(self, np.random.default_rng(seed))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(torch.relu(self.first(x))))


_RING = torch.tensor([[0, 1, 2], [1, 2, 0]])  # an edge of a graph a column: from, and to

# Functions (examples, units) -> (examples, units) in which examples meet: units keep apart, or all of them mix.
ACROSS: dict[str, Callable[[Tensor], Tensor]] = {
    "backwards": lambda h: h.flip(0),
    "rolled": lambda h: h - h.roll(1, 0),
    "centred": lambda h: h - h.mean(0),
    "largest": lambda h: h / (1 + h.amax(0)),
    "softmax": lambda h: h.softmax(0),
    "running sum": lambda h: h.cumsum(0),
    "normalised": lambda h: F.normalize(h, dim=0),
    "attention": lambda h: (h @ h.T).softmax(-1) @ h,
    "written product": lambda h: torch.einsum("bi,ci->bc", h, h).tanh() @ h,
    "lower half": lambda h: (h @ h.T).tril() @ h,
    "the first": lambda h: h - h[0],
    "everyone's own": lambda h: h[torch.arange(h.shape[0])],
    "ordered by sum": lambda h: h[torch.arange(h.shape[0]).flip(0)],
    "twice as many": lambda h: torch.cat([h, h.flip(1)]).view(2, -1, 6).sum(0),
    "dropout": lambda h: F.dropout(h, 0.4),
    "noise": lambda h: h + torch.randn_like(h),
}
# Functions that units cannot be followed through; the operation that is told.
LOST: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "messages": ("index_add", lambda h: h.index_add(0, _RING[1], h[_RING[0]])),
    "scattered": ("scatter_add", lambda h: torch.zeros_like(h).scatter_add(0, _RING[1][:, None].expand(-1, 6), h[:3])),
    "gathered": ("gather", lambda h: h.gather(0, torch.zeros(h.shape[0], 6, dtype=torch.int64))),
    "the second": ("select", lambda h: h + h[1]),
    "differences": ("slice", lambda h: h + (h[1:] - h[:-1]).square().sum(0)),
    "columns in rows": ("reshape", lambda h: h.T.reshape(-1, 6)),
    "sorted": ("sort", lambda h: h.sort(0)[0]),
    "in their order": ("argsort", lambda h: h[h.sum(1).argsort()]),
    "largest two": ("topk", lambda h: h + h.topk(2, 0)[0].sum(0)),
    "number of values": ("_unique2", lambda h: h + h.round().unique().sum()),
    "counted": ("bincount", lambda h: h * torch.bincount((h[:, 0] > 0).long(), minlength=2)[0]),
    "those above": ("nonzero", lambda h: h.index_add(0, (h[:, 0] > 0).nonzero().flatten(), h[h[:, 0] > 0])),
    "masked": ("masked_select", lambda h: h + torch.masked_select(h, h > 0).mean()),
    "distances": ("cdist", lambda h: torch.cdist(h, h).softmax(-1) @ h),
    "Fourier transform": ("fft_rfft", lambda h: torch.fft.irfft(torch.fft.rfft(h), n=6)),
    "coin": ("bernoulli", lambda h: torch.bernoulli(h.sigmoid())),
}


# Blocks on maps (batch, channels, height, width), made from the channels they get.
MAP_BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "plain": lambda c: nn.Sequential(_conv(c, 4), nn.ReLU(inplace=True)),
    "batch norm": lambda c: nn.Sequential(_conv(c, 4), nn.BatchNorm2d(4), nn.ReLU()),
    "late batch norm": lambda c: nn.Sequential(_conv(c, 4), nn.GELU(), nn.BatchNorm2d(4)),
    "group norm": lambda c: nn.Sequential(_conv(c, 4), nn.GroupNorm(2, 4), nn.SiLU()),
    "instance norm": lambda c: nn.Sequential(_conv(c, 4), nn.InstanceNorm2d(4, affine=True), nn.ELU()),
    "weight norm": lambda c: nn.Sequential(nn.utils.parametrizations.weight_norm(_conv(c, 4)), nn.Mish()),
    "residual": lambda c: Residual(nn.Sequential(_conv(c, c), nn.BatchNorm2d(c)), act=nn.ReLU()),
    "projected residual": _projected,
    "padded residual": Padded,
    "concatenation": Branches,
    "channel shuffle": Shuffled,
    "depthwise": lambda c: nn.Sequential(_conv(c, 2 * c, groups=c), nn.Hardswish(), nn.Conv2d(2 * c, 4, 1)),
    "transposed": lambda c: nn.Sequential(nn.ConvTranspose2d(c, 4, 2, stride=2), nn.ReLU6(), nn.AvgPool2d(2)),
    "grouped transposed": lambda c: nn.Sequential(
        nn.Conv2d(c, 4, 1), nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.MaxPool2d(2)
    ),
    "squeeze and excitation": Squeeze,
    "module used twice": Twice,
    "functional": Functional,
    "gated": Gated,
    "channels last": ChannelsLast,
    "pooling": lambda c: nn.Sequential(nn.MaxPool2d(2, stride=1), nn.Dropout(0.5)),
    "resized": lambda c: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.AvgPool2d(2)),
}

# Blocks on tokens (batch, tokens, width), made from the width and the number of tokens they get.
TOKEN_BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {
    "attention": lambda d, t: Attention(d, nn.LayerNorm, fused=False, written=False),
    "attention, one projection": lambda d, t: Attention(d, RootNorm, fused=True, written=False),
    "written attention": lambda d, t: Attention(d, nn.RMSNorm, fused=False, written=True),
    "written attention, one projection": lambda d, t: Attention(d, nn.LayerNorm, fused=True, written=True),
    "multi-head module": lambda d, t: Multihead(d, examples_first=True),
    "multi-head module, tokens first": lambda d, t: Multihead(d, examples_first=False),
    "encoder layer": lambda d, t: nn.TransformerEncoderLayer(d, 2, 6, batch_first=True, norm_first=True),
    "MLP": lambda d, t: Residual(nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 7), nn.GELU(), nn.Linear(7, d))),
    "gated MLP": lambda d, t: Swish(d),
    "token mixing": lambda d, t: Mixer(t),
    "matrix product": lambda d, t: Product(d),
    "GRU cell": lambda d, t: Recurrent(d, nn.GRUCell),
    "LSTM cell": lambda d, t: Recurrent(d, nn.LSTMCell),
    "RNN cell": lambda d, t: Recurrent(d, nn.RNNCell),
}


class Vision(nn.Module):
    """Blocks on maps, then blocks on their patches as tokens, then scores; puts out a mapping.

    Parameters
    ----------
    maps : list[str]
    tokens : list[str]
    head : str
    """

    def __init__(self, maps: list[str], tokens: list[str], head: str):
        super().__init__()
        blocks, shape = [_conv(2, 4)], torch.zeros(2, 4, 8, 8)
        for kind in maps:
            blocks.append(MAP_BLOCKS[kind](shape.shape[1]))
            shape = blocks[-1](shape)
        self.maps, self.patch = nn.Sequential(*blocks), nn.Conv2d(shape.shape[1], 4, 2, stride=2)
        shape = self.patch(shape).flatten(2).transpose(1, 2)
        shape = torch.cat([shape[:, :1], shape], 1)
        self.place, self.first = nn.Parameter(torch.zeros(shape.shape[1:])), nn.Parameter(torch.zeros(1, 1, 4))
        self.tokens, self.head_kind = nn.Sequential(), head
        for kind in tokens:
            self.tokens.append(TOKEN_BLOCKS[kind](*shape.shape[:0:-1]))
            shape = self.tokens[-1](shape)
        self.head = nn.Linear(4 * shape.shape[1] if head == "flat" else 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.patch(self.maps(x)).flatten(2).transpose(1, 2)
        x = self.tokens(torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.place)
        pooled = {"flat": lambda: x.flatten(1), "mean": lambda: x.mean(1), "first": lambda: x[:, 0]}[self.head_kind]()
        return {"logits": self.head(pooled), "last": x}


class Language(nn.Module):
    """Words and numbers, two inputs by name; blocks on tokens; the head shares its weight with the words.

    Parameters
    ----------
    tokens : list[str]
    """

    def __init__(self, tokens: list[str]):
        super().__init__()
        self.words, self.places, self.other = nn.Embedding(9, 4), nn.Embedding(5, 4), nn.Linear(6, 4)
        self.blocks, shape = nn.Sequential(), torch.zeros(2, 5, 4)
        for kind in tokens:
            self.blocks.append(TOKEN_BLOCKS[kind](*shape.shape[:0:-1]))
            shape = self.blocks[-1](shape)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x = self.blocks(x + torch.tanh(self.other(numbers))[:, None])
        return self.head(x), x


def _draw_weights(model: nn.Module, rng: np.random.Generator) -> nn.Module:
    """Random weights in float64 that neither vanish nor saturate, and batch norms with statistics of their own."""
    model = model.double().eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            fan_in = value[0].numel() if value.ndim > 1 else 1
            draw = torch.from_numpy(rng.standard_normal(tuple(value.shape))) / fan_in**0.5
            value.copy_(draw.abs() + 0.5 if "var" in name else draw)
    return model


class Specimen(NamedTuple):
    """A network drawn at random, and inputs for it.

    Attributes
    ----------
    kinds : tuple[str, ...]
        Names of its blocks
    model : nn.Module
        In eval mode, float64
    x : Any
        Three examples
    """

    kinds: tuple[str, ...]  # Names of its blocks
    model: nn.Module  # In eval mode, float64
    x: Any  # Three examples


def random_network(
    seed: int,  # Draws blocks, weights and inputs
) -> Specimen:
    """A network of up to five blocks from `MAP_BLOCKS` and `TOKEN_BLOCKS`; every fourth takes words.

    Parameters
    ----------
    seed : int
        Draws blocks, weights and inputs

    Returns
    -------
    Specimen
    """
    rng = np.random.default_rng(seed)
    tokens = [str(kind) for kind in rng.choice(list(TOKEN_BLOCKS), rng.integers(1, 4))]
    with torch.random.fork_rng(devices=[]):
        if seed % 4 == 3:
            words = torch.from_numpy(rng.integers(0, 9, (3, 5)))
            x = {"ids": words, "numbers": torch.from_numpy(rng.standard_normal((3, 6)))}
            return Specimen(tuple(tokens), _draw_weights(Language(tokens), rng), x)
        maps = [str(kind) for kind in rng.choice(list(MAP_BLOCKS), rng.integers(1, 4))]
        tokens = tokens[: rng.integers(0, 3)]
        model = Vision(maps, tokens, str(rng.choice(["flat", "mean", "first"])))
    x = torch.from_numpy(rng.standard_normal((3, 2, 8, 8)))
    return Specimen((*maps, *tokens), _draw_weights(model, rng), x)
