"""Pictures of groups of units beside Lucent's own loop, one picture after the other, and beside a bare loop."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from harness import Race, measure
from lucent.optvis.objectives import wrap_objective
from lucent.optvis.param import image
from lucent.optvis.render import render_vis
from torch import Tensor, nn
from torchvision.models import vgg11

from specialize_nb.base.devices import leading
from specialize_nb.network.answers import unit_scales
from specialize_nb.network.subject import Subject
from specialize_nb.responses.pictures import visualize
from specialize_nb.training.models import cnn

RENDER = "lucent's render_vis on a deep copy, a picture at a time"
FLOOR = "the floor: a bare loop over one batch, up to the layer"


class Scene(NamedTuple):
    """Groups of one layer, and what its units answer to: the mean over places of what `module` puts out."""

    subject: Subject
    module: str  # Whose output the answers are
    layer: str  # What the package calls it
    groups: list[np.ndarray]
    scales: np.ndarray
    steps: int

    @property
    def weights(self) -> Tensor:
        """(n_groups, n_units): a group's response is the mean of its units' answers over their scales."""
        rows = np.zeros((len(self.groups), len(self.scales)), np.float32)
        for row, group in zip(rows, self.groups, strict=True):
            row[group] = 1 / self.scales[group] / len(group)
        return torch.tensor(rows, device=leading(self.subject.model).device)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.subject.data.example.shape[1:])


def scene(model: nn.Module, shape: tuple[int, ...], layer: str, module: str, n: int, steps: int) -> Scene:
    """Random groups of four live units."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.rand(16, *shape)
    subject = Subject.of(model.eval().requires_grad_(False), x)
    scales = unit_scales(subject, layers=[layer])[layer]
    live, rng = np.flatnonzero(scales > 0), np.random.default_rng(0)
    groups = [np.sort(rng.choice(live, 4, replace=False)) for _ in range(n)]
    return Scene(subject, module, layer, groups, scales, steps)


def ours(given: Scene) -> np.ndarray:
    pairs = [(given.layer, group) for group in given.groups]
    options = dict(steps=given.steps, scales={given.layer: given.scales})
    return visualize(given.subject, None, pairs, **options).images


@contextlib.contextmanager
def seeded(start: Tensor) -> Iterator[Callable[[int], tuple[list[Tensor], Callable[[], Tensor]]]]:
    """Lucent's picture by frequencies, of so many images, from a start that is given."""
    channels, height, width = start.shape[0], start.shape[1], start.shape[2]

    def picture(n: int) -> tuple[list[Tensor], Callable[[], Tensor]]:
        params, paint = image(width, height, batch=n, fft=True, channels=None if channels == 3 else channels)
        with torch.no_grad():
            noise = torch.randn(params[0].shape[1:], generator=torch.Generator().manual_seed(0))
            params[0].copy_(0.01 * noise)
        return params, paint

    with torch.random.fork_rng():
        yield picture


def rendered(given: Scene) -> np.ndarray:
    """One picture after the other; the size of the data, no transforms, nothing normalised."""
    model, name = copy.deepcopy(given.subject.model), given.module.replace(".", "_")
    size, found = given.shape[1:], []
    with seeded(given.subject.data.example[0]) as picture:
        for row in given.weights:

            @wrap_objective()
            def response(row: Tensor = row):
                return lambda hooked: -(hooked(name).flatten(2).mean(2)[0] * row).sum()

            with contextlib.redirect_stdout(io.StringIO()):
                options = dict(transforms=[], preprocess=False, fixed_image_size=size, show_image=False, progress=False)
                made = render_vis(model, response(), lambda: picture(1), thresholds=(given.steps,), **options)
            found.append(made[-1])
    return np.concatenate(found)


def bare(given: Scene) -> None:
    """What no loop can do without: paint, run to the layer, and back, a step of Adam for all pictures at once."""
    weights, parts = given.weights, list(until(given.subject.model, given.module))
    with seeded(given.subject.data.example[0]) as picture:
        params, paint = picture(len(weights))
        adam = torch.optim.Adam(params, lr=0.05)
        for _ in range(given.steps):
            value = paint()
            for part in parts:
                value = part(value)
            adam.zero_grad()
            (-(value.flatten(2).mean(2) * weights).sum()).backward()
            adam.step()


def until(model: nn.Module, last: str) -> Iterator[nn.Module]:
    """The modules of a chain up to one of them."""
    for name, part in model.named_children():
        if last.startswith(f"{name}."):
            yield from until(part, last.removeprefix(f"{name}."))
            return
        yield part
        if name == last:
            return


def reached(given: Scene, images: np.ndarray) -> np.ndarray:
    """The response of each group to its picture."""
    value = torch.tensor(images, dtype=torch.float32, device=given.weights.device)
    value = value if value.shape[1:] == given.shape else value.movedim(3, 1)
    with torch.inference_mode():
        for part in until(given.subject.model, given.module):
            value = part(value)
    return (value.flatten(2).mean(2) * given.weights).sum(1).cpu().numpy()


def against_render(given: Scene) -> Race:
    def same(mine: np.ndarray, theirs: np.ndarray) -> str:
        ratio = reached(given, mine) / reached(given, theirs)
        return f"response to ours over theirs {np.median(ratio):.4f} ({ratio.min():.4f} to {ratio.max():.4f})"

    return Race(lambda: ours(given), lambda: rendered(given), same)


def against_floor(given: Scene) -> Race:
    return Race(lambda: ours(given), lambda: bare(given), lambda *_: "no answers")


def reference() -> Scene:
    model = cnn(size=28)
    last = [name for name, part in model.named_children() if isinstance(part, nn.ReLU)][2]
    layer = [name for name, part in model.named_children() if isinstance(part, nn.Conv2d)][2]
    return scene(model, (1, 28, 28), layer, last, n=32, steps=64)


def deep() -> Scene:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = vgg11()
    return scene(model, (3, 112, 112), "features.8", "features.9", n=16, steps=8)


@measure("pictures, reference CNN, third convolution, 32 groups, 64 steps", peer=RENDER, rounds=3)
def cnn_render() -> Race:
    return against_render(reference())


@measure("pictures, reference CNN, third convolution, 32 groups, 64 steps, bare", peer=FLOOR, rounds=3)
def cnn_floor() -> Race:
    return against_floor(reference())


@measure("pictures, VGG-11 at 112 pixels, fourth convolution, 16 groups, 8 steps", peer=RENDER, rounds=2)
def vgg_render() -> Race:
    return against_render(deep())


@measure("pictures, VGG-11 at 112 pixels, fourth convolution, 16 groups, 8 steps, bare", peer=FLOOR, rounds=2)
def vgg_floor() -> Race:
    return against_floor(deep())
