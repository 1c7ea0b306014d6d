"""What the sections of `bench/gpu.py` share: how one is registered, where it computes, and how answers are compared.

A section is a function that gets a `Setting` and returns what goes into the JSON:

    @section("pictures", part="agreement", most_s=40)
    def pictures(setting): ...
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

Part = Literal["agreement", "throughput"]
MB = 2**20


class LeftOut(Exception):
    """A section cannot be run here; the message says why."""


class Setting(NamedTuple):
    """Where and how large."""

    device: torch.device
    tiny: bool  # Small sizes, and the CPU in float64 in the place of a GPU
    ends: float  # `time.monotonic` at which the section has to be done

    @property
    def left_s(self) -> float:
        return self.ends - time.monotonic()

    def moved(self, model: nn.Module) -> nn.Module:
        """A copy of the model where it is compared with the CPU."""
        there = copy.deepcopy(model).to(self.device)
        return there.double() if self.tiny else there

    def size(self, large: Any, tiny: Any) -> Any:
        return tiny if self.tiny else large

    def waited(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextlib.contextmanager
    def timed(self, into: dict[str, Any], name: str) -> Iterator[None]:
        """Seconds until the device is done, and the most memory that it held meanwhile."""
        self.waited()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        yield
        self.waited()
        into[f"{name}_s"] = time.perf_counter() - start
        if self.device.type == "cuda":
            into[f"{name}_peak_mb"] = torch.cuda.max_memory_allocated(self.device) / MB


class Section(NamedTuple):
    name: str
    part: Part
    most_s: float  # It is stopped after so long
    least_s: float  # It is not begun with less left
    run: Callable[[Setting], dict[str, Any]]


SECTIONS: dict[str, Section] = {}


def section(name: str, *, part: Part, most_s: float, least_s: float = 5) -> Callable:
    """Register a function that returns what the JSON says under this name."""

    def register(run: Callable[[Setting], dict[str, Any]]) -> Callable[[Setting], dict[str, Any]]:
        SECTIONS[name] = Section(name, part, most_s, least_s, run)
        return run

    return register


def near(what: str, here: Any, there: Any, *, most: float, relative: bool = False) -> dict[str, Any]:
    """How far apart are the answers of two devices? What is no number has to be none in both."""
    a, b = (np.asarray(one, dtype=np.float64).ravel() for one in (here, there))
    if a.shape != b.shape or not a.size:
        return dict(what=what, within=False, found=f"{a.size} numbers here, {b.size} there", tolerance=most)
    known = np.isfinite(a)
    alike = bool((known == np.isfinite(b)).all()) and bool(np.array_equal(a[~known], b[~known], equal_nan=True))
    both = known & np.isfinite(b)
    apart = float(np.abs(a[both] - b[both]).max(initial=0.0))
    size = float(np.abs(a[both]).max(initial=0.0))
    apart = apart / size if relative and size > 0 else apart
    told = dict(what=what, difference=apart, tolerance=most, relative=relative, n=int(a.size))
    return told | dict(same_gaps=alike, within=alike and apart <= most)


def checks(*found: dict[str, Any]) -> dict[str, Any]:
    return dict(checks=list(found), within=all(one["within"] for one in found))


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Inside the block a GPU rounds convolutions and products as the CPU does: no TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model with weights drawn on the CPU, in eval mode and without gradients; the generator is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval().requires_grad_(False)


def images(n: int, shape: tuple[int, ...], classes: int = 10, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images with random labels."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=made), torch.randint(classes, (n,), generator=made)
