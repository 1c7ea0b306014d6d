"""Do tests that stop early find what 999 fixed controls find, and in how many passes? Writes stopping.csv next to this.

    python nbs/studies/stopping.py            # some minutes on one core

The same networks are audited with 999 controls for each sub-cluster, and with tests that stop when the pooled list is
clear, which is the default. Both draw the same controls, as they have one seed. There are networks trained on the
digits, networks with planted modules, and untrained ones, in which nothing was learned. A row of the table is one
audit. A network that is in the table is passed over when the program is run again.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from specialize_nb import Audit, Sequential, audit, digits, fit, mlp
from specialize_nb.dev.testing import planted_mlp
from specialize_nb.stats.tests import passes_level

TABLE = Path(__file__).resolve().with_name("stopping.csv")
MLP = "digits MLP 64-64"
DESIGNS: dict[str, int | Sequential] = {
    "fixed 999": 999,
    "sequential": Sequential(),
}
FEW = dict(outcomes=("cross_entropy",), matched=False, n_visual=1, steps=1, n_exhibits=0, n_boot=1)


class Case(NamedTuple):
    """A network, what its clusters are found on, and what they are judged on."""

    model: nn.Module
    find: Any
    judge: Any


def of_digits(seed: int, trained: bool) -> Case:
    train, test, model = digits("train"), digits("test"), mlp((64, 64, 64, 10), seed=seed)
    if trained:
        fit(model, train, epochs=15, seed=seed)
    return Case(model.eval(), (train.x, train.y), (test.x, test.y))


def of_modules(seed: int) -> Case:
    """Six modules that never touch."""
    made = planted_mlp(n_modules=6, hidden=(12, 12), n=600, seed=seed)
    return Case(made.model, (made.x[::2], made.y[::2]), (made.x[1::2], made.y[1::2]))


CASES: list[tuple[str, str, int, Callable[[int], Case]]] = [
    (MLP, "trained", 3, lambda seed: of_digits(seed, True)),
    ("six modules", "planted", 3, of_modules),
    (MLP, "untrained", 3, lambda seed: of_digits(seed, False)),
]


def verdicts_of(found: Audit) -> pd.DataFrame:
    """One row a sub-cluster, the same ones in the same order whatever the design."""
    return found.verdicts().sort_values(["graph", "scope", "layer", "cluster"], ignore_index=True)


def apart(first: pd.DataFrame, now: pd.DataFrame) -> dict[str, str]:
    """For each list, q-values by 999 fixed controls and by the other design, where just one of them is on it."""
    found = {}
    for column in ("specialized_q", "importance_q", "coherence_q"):
        on = [passes_level(one[column].to_numpy(), 0.05) for one in (first, now)]
        pairs = zip(first[column][on[0] != on[1]], now[column][on[0] != on[1]], strict=True)
        found[column] = " ".join(f"{a:.3f}/{b:.3f}" for a, b in pairs)
    return found


def passes(found: Audit, design: int | Sequential) -> dict[str, int]:
    """Random groups that were lesioned, and those whose agreement was measured."""
    counts = dict(lesions=0, agreements=0)
    for one in found.findings:
        for name, evidence in (("lesions", one.importance), ("agreements", one.coherence)):
            if len(evidence.keys):
                main = evidence.outcomes[0]
                tested = int(np.isfinite(evidence.p_values(main)).sum())
                counts[name] += design * tested if isinstance(design, int) else int(evidence.n_drawn[main].sum())
    return counts


def rows_of(case: Case, seed: int) -> Iterator[dict[str, Any]]:
    """One audit a design, each beside the first."""
    first = None
    for name, design in DESIGNS.items():
        start = time.process_time()
        found = audit(case.model, case.judge, find=case.find, n_controls=design, seed=seed, **FEW)
        spent, told = time.process_time() - start, verdicts_of(found)
        first = told if first is None else first
        kinds = told["verdict"].value_counts().reindex(["specialized", "important", "coherent"], fill_value=0)
        yield dict(
            design=name,
            tested=len(told),
            specialized=kinds["specialized"],
            important=kinds["specialized"] + kinds["important"],
            coherent=kinds["specialized"] + kinds["coherent"],
            differ=int((first["verdict"] != told["verdict"]).sum()),
            seconds=round(spent, 1),
            **passes(found, design),
            **apart(first, told),
        )


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    done = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=["network", "state", "seed"])
    for seed in range(max(n for _, _, n, _ in CASES)):
        for network, state, n, make in CASES:
            there = (done["network"] == network) & (done["state"] == state) & (done["seed"] == seed)
            if seed < n and not there.any():
                rows = [dict(network=network, state=state, seed=seed) | row for row in rows_of(make(seed), seed)]
                done = pd.concat([done, pd.DataFrame(rows)])
                done.to_csv(TABLE, index=False)


if __name__ == "__main__":
    main()
