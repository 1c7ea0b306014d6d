"""Everything on a GPU, in one command of at most six minutes: the CPU's answers, then speed, then a whole audit.

    python bench/gpu.py                       # into bench/gpu.json
    python bench/gpu.py --out FILE --seconds 900
    python bench/gpu.py --only pictures       # sections with these words in their names
    python bench/gpu.py --tiny                # the same code on the CPU, small: a test, which says nothing of a GPU

Sections run one after another in a process of their own. After each of them the JSON is written anew, as a whole or not
at all. A section that fails, or takes too long, is told there with its error, and the next one starts; if it takes the
process with it, or breaks the GPU for the process, the others go on in a new one. What does not fit in the time
is listed as left out. The exit code is 0 if all sections that ran agree, 1 if one does not or failed, 2 without CUDA.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gpu_agreement  # noqa: F401 - registers its sections
import gpu_throughput  # noqa: F401 - and these
import torch
from gpu_frame import MB, SECTIONS, LeftOut, Section, Setting
from harness import machine

HERE = Path(__file__).resolve().parent
GRACE_S = 15.0  # After the time is over, until the process is ended
BROKEN = 3  # Exit code of a process whose GPU answers no more
PACKAGES = ("specialize_nb", "torch", "torchvision", "transformers", "torch-lucent", "numpy", "scipy", "POT")
TOLD_TINY = (
    "Tiny: the CPU in float32 is compared with itself in float64, and all races are on the CPU. It shows that the code "
    "runs and that the tolerances are not too narrow; the agreement is trivial, and says nothing of a GPU."
)


class OutOfTime(BaseException):
    """Not an `Exception`, which parts of an audit catch to tell of it and go on."""


def write(path: Path, told: dict[str, Any]) -> None:
    """As a whole or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_text(json.dumps(plain(told), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def plain(one: Any) -> Any:
    """Numbers that JSON knows: those that are none become words."""
    if isinstance(one, dict):
        return {str(key): plain(value) for key, value in one.items()}
    if isinstance(one, list | tuple):
        return [plain(value) for value in one]
    if hasattr(one, "item"):
        return plain(one.item())
    return str(one) if isinstance(one, float) and not math.isfinite(one) else one


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """The block is broken off after so long, between two steps of Python; again and again if that is caught."""

    def stop(*_: Any) -> None:
        raise OutOfTime(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 2.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def result(one: Section, setting: Setting) -> dict[str, Any]:
    """What a section says, or its error; with its seconds, and its peak of memory on a GPU."""
    on_gpu, told = setting.device.type == "cuda", {"part": one.part}
    start = time.perf_counter()
    try:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(setting.device)
        with stopped_after(min(one.most_s, setting.left_s)), warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            told |= one.run(setting._replace(ends=min(setting.ends, time.monotonic() + one.most_s)))
            setting.waited()
        told["warnings"] = sorted({f"{each.category.__name__}: {str(each.message)[:300]}" for each in seen})
    except (Exception, OutOfTime) as error:
        told["error"] = f"{type(error).__name__}: {error}"
        told["traceback"] = traceback.format_exc().splitlines()[-12:]
        if isinstance(error, LeftOut):
            told = {"left_out": str(error)}
    told["seconds"] = time.perf_counter() - start
    told["memory_peak_mb"] = max([*peaks(told), *last_peak(setting)], default=None)
    return told


def peaks(told: Any) -> Iterator[float]:
    """Of the parts that were timed, each of which counts anew."""
    if isinstance(told, list):
        for one in told:
            yield from peaks(one)
    for key, one in told.items() if isinstance(told, dict) else ():
        if key.endswith("_peak_mb"):
            yield one
        yield from peaks(one)


def last_peak(setting: Setting) -> Iterator[float]:
    """Of what came after them, or of the whole section; none on the CPU, where nobody counts."""
    with contextlib.suppress(Exception):
        if setting.device.type == "cuda":
            yield torch.cuda.max_memory_allocated(setting.device) / MB


def answers(device: torch.device) -> bool:
    """Does the device still compute? After some errors it does not, as long as the process lives."""
    try:
        return float(torch.ones(2, device=device).sum()) == 2.0
    except Exception:
        return False


def work(path: Path, names: list[str], tiny: bool, ends: float) -> int:
    """Run sections and keep what each says. The exit code tells whether the device still answers."""
    told, device = read(path), torch.device("cpu" if tiny else "cuda")
    if not tiny:
        told["device"] |= about(device)
    for name in names:
        one, left = SECTIONS[name], ends - time.monotonic()
        if left < (0.5 if tiny else one.least_s):
            told["left_out"][name] = f"{max(left, 0):.0f} s were left, of {one.least_s:g} that it needs to begin"
            write(path, told)
            continue
        told["running"] = name
        write(path, told)
        found = result(one, Setting(device, tiny, ends))
        told["running"] = None
        if "left_out" in found:
            told["left_out"][name] = found["left_out"]
        else:
            told["sections"][name] = found
        write(path, told)
        print(line(name, found), flush=True)
        gc.collect()
        if device.type == "cuda":
            if "error" in found and not answers(device):
                return BROKEN
            torch.cuda.empty_cache()
    return 0


def line(name: str, found: dict[str, Any]) -> str:
    """A section in a line of the terminal."""
    said = {key: found[key] for key in ("share_of_floor", "times_as_fast_as_hooks", "audit_s") if key in found}
    if "checks" in found:
        said["agrees"] = found["within"]
    if "left_out" in found:
        said["left out"] = found["left_out"]
    words = [f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in said.items()]
    return f"{name}: {found.get('error') or ', '.join(words) or 'done'} ({found['seconds']:.1f} s)"


def about(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return dict(
        name=torch.cuda.get_device_name(device),
        memory_mb=properties.total_memory / MB,
        compute_capability=f"{properties.major}.{properties.minor}",
        cudnn=torch.backends.cudnn.version(),
    )


def supervised(path: Path, names: list[str], tiny: bool, ends: float) -> None:
    """Run the sections in a process, and what is left after one that died in another."""
    while names:
        child = multiprocessing.get_context("fork").Process(target=ended, args=(path, names, tiny, ends))
        child.start()
        child.join(max(ends - time.monotonic(), 0) + GRACE_S)
        late = child.is_alive()
        if late:
            child.kill()
            child.join()
        told = read(path)
        if (name := told["running"]) is not None:
            why = "it went on after the time was over" if late else f"its process ended with code {child.exitcode}"
            told["sections"][name] = {"part": SECTIONS[name].part, "error": f"{why}; no more is known"}
        names = [name for name in names if name not in {*told["sections"], *told["left_out"]}]
        if late or not (told["running"] or child.exitcode == BROKEN):
            told["left_out"] |= dict.fromkeys(names, "the process that was to run it ended before")
            names = []
        told["running"] = None
        write(path, told)


def ended(path: Path, names: list[str], tiny: bool, ends: float) -> None:
    sys.exit(work(path, names, tiny, ends))


def begun(tiny: bool, seconds: float) -> dict[str, Any]:
    """What the numbers depend on."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return dict(
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tiny=tiny,
        note=TOLD_TINY if tiny else "Agreement without TF32, throughput with what PyTorch does by default.",
        device=dict(type="cpu" if tiny else "cuda", cuda=torch.version.cuda),
        tf32=dict(convolutions=torch.backends.cudnn.allow_tf32, products=torch.backends.cuda.matmul.allow_tf32),
        machine=machine(),
        versions=versions,
        seconds_allowed=seconds,
        sections={},
        left_out={},
        running=None,
    )


def has_cuda() -> bool:
    """Asked in a process of its own: a process that has looked cannot be forked and then use the GPU."""
    asked = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(not torch.cuda.is_available()))
    asked.start()
    asked.join()
    return asked.exitcode == 0


def main(words: list[str]) -> int:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "gpu.json", help="JSON to be written (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=360, help="for everything (default: %(default)s)")
    parser.add_argument("--only", default="", help="words that the names of the sections have to have")
    parser.add_argument("--tiny", action="store_true", help="the same code on the CPU, small, as a test")
    options = parser.parse_args(words)
    names = [name for name in SECTIONS if all(word in name for word in options.only.split())]
    if not names:
        print(f"no section has {options.only!r} in its name; there are: {', '.join(SECTIONS)}", file=sys.stderr)
        return 1
    if not options.tiny and not has_cuda():
        told = f"torch {torch.__version__} finds no CUDA device here, and this measures one"
        print(f"{told}: run it where there is a GPU, or with --tiny to try the code on the CPU", file=sys.stderr)
        return 2
    write(options.out, begun(options.tiny, options.seconds))
    supervised(options.out, names, options.tiny, start + options.seconds)
    told = read(options.out) | {"seconds_taken": time.monotonic() - start}
    failed = [name for name, one in told["sections"].items() if "error" in one or not one.get("within", True)]
    write(options.out, told | {"failed": failed})
    print(f"{len(told['sections'])} sections, failed: {failed}, left out: {[*told['left_out']]}; {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
