"""Do `audit` and `plan_audit` with their defaults work on every classifier of torchvision, untrained?

    python bench/torchvision_models.py                 # all of them; goes on where it was broken off
    python bench/torchvision_models.py resnet18 vgg11  # these alone, anew
    python bench/torchvision_models.py --quick         # of those not known yet no clusters by activations, no audit
    python bench/torchvision_models.py --brief         # and no clusters within layers, and no time of lesions
    python bench/torchvision_models.py --table         # what is known so far

Each model is traced, partitioned and prepared on 8 small images in a process of its own, which ends at a limit of
time and memory; of each family the smallest is audited as a whole, with few controls and one short picture, all else as
it is by default; with `--quick` and `--brief` models are traced, cut by weights and prepared. A row a model goes to
bench/torchvision_models.csv: layers, units, seconds of one processor for each stage, and notes or the error.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TABLE = HERE / "torchvision_models.csv"
COLUMNS = ["model", "parameters", "pixels", "layers", "units", "trace_s", "partition_s", "prepare_s", "lesions"]
COLUMNS += ["audit_s", "sub_clusters", "memory_gb", "notes", "error"]

PIXELS = {"vit": 224, "maxvit": 224, "inception": 96}  # Of models that need more than 64
FEW: dict[str, Any] = dict(alpha=0.5, n_controls=3, steps=2, n_boot=5, n_exhibits=1)
MOST_GB = 20.0


def family(name: str) -> str:
    """Which models are of one kind, by their names?"""
    return re.match(r"wide_resnet|regnet_[xy]|efficientnet_v2|swin_v2|[a-z]+", name)[0]


def all_models() -> list[tuple[str, int, bool]]:
    """Name, parameters, and whether it is the smallest of its family; those first, and smaller ones before larger."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    size = {one: torchvision.models.get_model_weights(one).DEFAULT.meta["num_params"] for one in names}
    names.sort(key=lambda one: (size[one], one))
    first = {family(one): one for one in reversed(names)}
    found = [(one, size[one], first[family(one)] == one) for one in names]
    return sorted(found, key=lambda one: not one[2])


@contextmanager
def stage(row: dict[str, Any], name: str) -> Iterator[None]:
    start = time.process_time()  # of one thread: the machine may be busy with something else
    yield
    row[name] = round(time.process_time() - start, 1)
    print(json.dumps(row), flush=True)  # the last line that is whole is what the parent keeps


def examined(name: str, whole: bool, quick: bool, brief: bool) -> None:
    """One model, in a process of its own. Prints what is known after each stage."""
    import torch
    import torchvision

    from specialize_nb.audits.audit import audit
    from specialize_nb.audits.kinds import KINDS, Cutting, Scope
    from specialize_nb.lesions.importance import LesionOptions, prepare_importance
    from specialize_nb.lesions.plan import price
    from specialize_nb.network.subject import Subject
    from specialize_nb.network.units import trace
    from specialize_nb.responses.coherence import CoherenceOptions, prepare_coherence

    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    pixels = next((size for start, size in PIXELS.items() if name.startswith(start)), 64)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    data = torch.randn(8, 3, pixels, pixels), torch.arange(8)
    row: dict[str, Any] = {"pixels": pixels}
    with stage(row, "trace_s"):
        network = trace(model, data[0][:2])
    hidden = [layer for layer in network.layers if layer.kind == "hidden"]
    row |= {"layers": len(hidden), "units": sum(layer.n_units for layer in hidden)}
    scopes: tuple[Scope, ...] = ("global",) if brief else ("global", "local")
    left = ["Clusters by activations were not tried."] * quick + ["Nor those within layers."] * brief
    row["notes"] = " ".join([*network.notes, *(f"unknown: {one.op}" for one in network.unknown), *left])
    subject, partitions = Subject.of(model, data, network=network, split=True), {}
    with stage(row, "partition_s"):
        for kind in (KINDS["weights"], *([] if quick else [KINDS["activations"]])):
            if why := kind.missing(subject, None):
                row["notes"] = f"{row['notes']} No graph of {kind.label}: {why}.".strip()
                continue
            cut = kind.cut(kind.build(subject, None), subject, Cutting(k=8, scopes=scopes))
            partitions |= {(kind.name, scope): partition for scope, partition in cut.items()}
    with stage(row, "prepare_s"):
        trial = prepare_importance(subject, list(partitions.values()), LesionOptions())
        for (kind, _), partition in partitions.items():
            prepare_coherence(subject, partition, CoherenceOptions(outcomes=KINDS[kind].coherence))
        if not brief:
            row["lesions"] = sum(one.n_lesions for one in price(trial, probe_seconds=0.5))
    if whole:
        with stage(row, "audit_s"):
            found = audit(model, data, network=network, **FEW)
            row["sub_clusters"], row["notes"] = len(found.verdicts()), " ".join(found.notes)


def used(pid: int) -> tuple[float, float]:
    """Gigabytes that a process holds, and seconds that it has computed."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    except (OSError, IndexError):
        return 0.0, 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30, ticks / os.sysconf("SC_CLK_TCK")


def asked(name: str, kind: list[str], most_s: float) -> dict[str, Any]:
    """The row of one model, from a process that is watched."""
    words = [sys.executable, __file__, "--one", name, *kind]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, ended = 0.0, ""
    while child.poll() is None and not ended:
        time.sleep(0.2)
        held, took = used(child.pid)
        peak = max(peak, held)
        ended = f"more than {MOST_GB:g} GB" * (peak > MOST_GB) or f"more than {most_s:g} s" * (took > most_s)
    if ended:
        child.kill()
    out, err = child.communicate()
    rows = [line for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    row = json.loads(rows[-1]) if rows else {}
    error = f"stopped: {ended}" if ended else " ".join(err.strip().splitlines()[-1:]) if child.returncode else ""
    return row | {"memory_gb": round(peak, 1), "error": error}


def known() -> dict[str, dict[str, Any]]:
    if not TABLE.is_file():
        return {}
    with TABLE.open(newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def keep(rows: dict[str, dict[str, Any]]) -> None:
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: row.get(name, "") for name in COLUMNS} for row in rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="names; none: all that are not known yet")
    parser.add_argument("--seconds", type=float, default=600, help="of computing, limit of one model (default: 600)")
    parser.add_argument("--prepare", action="store_true", help="no whole audits")
    parser.add_argument("--quick", action="store_true", help="no clusters by activations, no audits")
    parser.add_argument("--brief", action="store_true", help="nor clusters within layers, nor the time of lesions")
    parser.add_argument("--table", action="store_true", help="print what is known")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        examined(options.one, options.whole, options.quick or options.brief, options.brief)
        return
    rows = known()
    for name, n_parameters, smallest in all_models() if not options.table else ():
        if name not in options.models if options.models else name in rows:
            continue
        whole = smallest and not (options.prepare or options.quick or options.brief)
        kind = ["--whole"] * whole + ["--quick"] * options.quick + ["--brief"] * options.brief
        row = asked(name, kind, options.seconds)
        rows = known() | {name: {"model": name, "parameters": n_parameters} | row}
        keep(rows)
        print(", ".join(f"{key} {value}" for key, value in rows[name].items() if value != ""), flush=True)
    if options.table:
        shown = [*COLUMNS[:-2], "error"]
        for row in ({name: name for name in COLUMNS}, *rows.values()):
            print("  ".join(f"{str(row[name])[:40]:>12}" for name in shown))


if __name__ == "__main__":
    main()
