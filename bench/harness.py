"""Times the package beside its peers: `make bench`, or `python bench/harness.py WORD` for those whose name has it.

A measure lives in a file bench/measure_*.py, as a function that sets the scene once and returns what is to be timed:

    @measure("what is done, and how large", peer="who does the same, or the floor no one can beat")
    def anything():
        ...
        return Race(ours=..., peer=..., same=lambda mine, theirs: "a few words on how far the two answers agree")

The two take turns in one process, so that both meet the same machine. Medians go to bench/results.md, that of the
ratios of each round too.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn")


class Race(NamedTuple):
    """Two callables without arguments that do the same, and how to compare what they return."""

    ours: Callable[[], Any]
    peer: Callable[[], Any]
    same: Callable[[Any, Any], str]


@dataclass
class Measure:
    name: str
    peer: str
    rounds: int
    prepare: Callable[[], Race]
    ours_s: list[float] = field(default_factory=list)
    peer_s: list[float] = field(default_factory=list)
    agreement: str = ""

    def run(self) -> None:
        """One round to warm up and compare answers, then `rounds` that count, the first to go changing each time."""
        race = self.prepare()
        self.agreement = race.same(race.ours(), race.peer())
        sides = [(race.ours, self.ours_s), (race.peer, self.peer_s)]
        for _ in range(self.rounds):
            for call, seconds in sides:
                start = perf_counter()
                call()
                seconds.append(perf_counter() - start)
            sides.reverse()

    def row(self) -> str:
        ratio = median(peer / ours for peer, ours in zip(self.peer_s, self.ours_s, strict=True))
        times = f"{spread(self.ours_s)} | {spread(self.peer_s)}"
        return f"| {self.name} | {times} | {ratio:.3g} | {self.peer} | {self.agreement} | {self.rounds} |"


MEASURES: list[Measure] = []


def measure(name: str, *, peer: str, rounds: int = 5) -> Callable[[Callable[[], Race]], Callable[[], Race]]:
    """Register a function that returns a `Race`."""

    def register(prepare: Callable[[], Race]) -> Callable[[], Race]:
        MEASURES.append(Measure(name, peer, rounds, prepare))
        return prepare

    return register


def spread(seconds: list[float]) -> str:
    return f"{median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})"


def machine() -> str:
    """What the numbers depend on."""
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        model = next((line.split(": ")[1] for line in info.read_text().splitlines() if "model name" in line), model)
    threads = os.environ.get("OMP_NUM_THREADS", "as many as there are cores")
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    system = f"{platform.system()}, Python {platform.python_version()}"
    cores = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    return f"{model}, {cores}, BLAS threads a process: {threads}; {system}, {packages}; {date.today()}."


def table(measures: list[Measure]) -> str:
    head = [
        "| measure | ours, s | peer, s | peer / ours | peer or floor | answers | rounds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *(one.row() for one in measures)])


def keep(section: str) -> None:
    """Write one section of results.md, from its heading on; the others stay."""
    path, heading = HERE / "results.md", section.partition("\n")[0]
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    parts = [part for part in re.split(r"^(?=##? )", text, flags=re.MULTILINE) if part]
    if heading not in (known := [part.partition("\n")[0] for part in parts]):
        parts, known = [*parts, ""], [*known, heading]
    parts[known.index(heading)] = section
    path.write_text("\n".join(part.rstrip() + "\n" for part in parts), encoding="utf-8")


def load() -> None:
    """Import every measure_*.py beside this file, which registers its measures."""
    sys.modules["harness"] = sys.modules[__name__]
    for path in sorted(HERE.glob("measure_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def main(words: list[str]) -> int:
    load()
    chosen = [one for one in MEASURES if all(word in one.name for word in words)]
    if not chosen:
        print(f"no measure has {' '.join(words)!r} in its name; there are: {[one.name for one in MEASURES]}")
        return 1
    for i, one in enumerate(chosen, 1):
        print(f"{i} of {len(chosen)}: {one.name}", file=sys.stderr, flush=True)
        one.run()
    text = f"{table(chosen)}\n\nMedian seconds of all rounds (least to most), taken in turn. {machine()}"
    print(text)
    if not words:
        keep(f"# Measured by `make bench`\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
