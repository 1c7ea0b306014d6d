"""Do the p-values of `importance` keep their promise on real networks? Writes calibration_*.csv beside this file.

    python nbs/studies/calibration.py [null|cost|mixtures|family ...] --data ROOT

Parts are those named, all by default. What a part has finished is kept, and passed over when it is run again. MNIST is
read from ROOT, which holds `MNIST/raw` with the four unzipped files; without --data its networks are left out.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

from specialize_nb import (
    Network,
    Partition,
    Sequential,
    cnn,
    digits,
    fit,
    importance,
    mlp,
    spectral_partition,
    trace,
    weight_graph,
)
from specialize_nb.base.data import torchvision_images
from specialize_nb.controls.controls import Controls, draw_controls
from specialize_nb.controls.matching import evened, strata, strengths, unit_properties
from specialize_nb.dev.testing import planted_mlp
from specialize_nb.lesions.damage import DamageRun, damage_run
from specialize_nb.lesions.importance import floors
from specialize_nb.lesions.outcomes import find_outcomes, residual, resolved
from specialize_nb.stats.many import benjamini_hochberg, max_t
from specialize_nb.stats.published import PaperTest
from specialize_nb.stats.sequential import Standing, look_p_values, undecided
from specialize_nb.stats.tests import p_values
from specialize_nb.training.models import vgg

ALPHA, N_CONTROLS, N_PAPER = 0.05, 39, 19
OUTCOMES = "cross_entropy", "margin", "kl", "accuracy", "micro_accuracy", "selectivity", "selectivity_residual"
PUBLISHED = "accuracy", "class_range"  # what the paper ranks
N_NETWORKS = 4  # of each kind and state
N_PARTITIONS = {("digits mlp", "trained"): 1_000}  # null partitions, over the networks; 200 of the other kinds
HERE = Path(__file__)


def shares(kind: str, state: str) -> Iterator[tuple[int, range]]:
    """Seed of each network of a kind, and seeds of the null partitions dealt to it."""
    each = N_PARTITIONS.get((kind, state), 200) // N_NETWORKS
    return ((seed, range(10_000 * seed, 10_000 * seed + each)) for seed in range(N_NETWORKS))


# Networks ---------------------------------------------------------------------------------------------------------


class Specimen(NamedTuple):
    """A network with the images it is tested on."""

    model: nn.Module
    data: tuple[Tensor, Tensor]
    network: Network

    def run(self, outcomes: Sequence[str]) -> DamageRun:
        layers = list(self.network.hidden)
        return damage_run(self.model, self.data, self.network, layers, outcomes=outcomes, n_boot=1, n_jobs=1)


def half_dead(model: nn.Module, seed: int) -> nn.Module:
    """`model` with half of the units of each hidden layer never active, whatever the image."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for layer in [one for one in model if isinstance(one, nn.Linear)][:-1]:
            units = rng.choice(len(layer.bias), len(layer.bias) // 2, replace=False)
            layer.bias[torch.as_tensor(units)] = -1e3
    return model


def specimen(kind: str, state: str, seed: int, root: Path | None, n_images: int) -> Specimen:
    """The network of one kind, state and seed."""
    makers = {
        "digits mlp": partial(mlp, (64, 64, 64, 64, 10)),
        "digits cnn": partial(cnn, size=8, channels=(16, 16), dense=32),
        "mnist mlp": partial(mlp, (784, 64, 64, 10)),
        "mnist mlp, 4 x 256": mlp,
        "mnist cnn, 3 x 8": partial(cnn, channels=(8, 8, 8), dense=64),
        "digits vgg, 11 x 4": partial(vgg, in_channels=1, depth=11, width=4, size=8, dropout=False),
    }
    model, mnist = makers[kind](seed=seed), kind.startswith("mnist")
    train, test = ((torchvision_images("MNIST", root, split=s) if mnist else digits(s)) for s in ("train", "test"))
    if state != "untrained":
        few = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(seed))[:12_000]
        fit(model, (train.x[few], train.y[few]), epochs=4 if mnist else 15, seed=seed)
    if state == "half dead":
        half_dead(model, seed)
    data = test.x[:n_images], test.y[:n_images]
    return Specimen(model, data, trace(model, data[0][:2]))


def judged(damage: dict[str, np.ndarray], outcomes: Sequence[str]) -> dict[str, np.ndarray]:
    """Outcome -> (1 + n, m), rounding and overall damage taken out of real groups and controls alike."""
    rows = {name: resolved(damage[name]) for name in damage}
    on = {one.name: one.residual_on for one in find_outcomes(list(outcomes), n_scores=10)}
    return {name: resolved(residual(rows[name], rows[on[name]])) if on[name] else rows[name] for name in outcomes}


# A: null partitions -----------------------------------------------------------------------------------------------


class Dealt(NamedTuple):
    """A null partition, and the one sub-cluster of each layer that is looked at."""

    partition: Partition
    chosen: dict[str, int]  # Layer -> cluster
    properties: pd.DataFrame  # Of the units, from `unit_properties`
    strata: dict[str, np.ndarray]
    seed: int

    def controls(self, layer: str, n: int, matched: bool) -> Controls:
        options = dict(strata=self.strata if matched else None, layers=[layer], seed=self.seed)
        return draw_controls(self.partition, n_controls=n, **options)

    def groups(self, layer: str, n: int, matched: bool) -> np.ndarray:  # (1 + n, n_units) bool
        return self.controls(layer, n, matched).labels[layer] == self.chosen[layer]

    def strength(self, layer: str, n: int) -> np.ndarray | None:  # (1 + n, 1, k)
        """How strong the group and its matched controls are; None where too few groups match it for a test."""
        controls = self.controls(layer, n, True)
        tested = [sub.cluster for sub in controls.subclusters]
        if self.chosen[layer] not in tested:
            return None
        i = tested.index(self.chosen[layer])
        return strengths(replace(controls, subclusters=controls.subclusters[i : i + 1]), self.properties)


def deal(network: Network, properties: pd.DataFrame, seed: int) -> Dealt:
    """Labels dealt at random to all units, in clusters of uneven sizes."""
    rng, labels = np.random.default_rng([seed, 0xDEA1]), {}
    for name in network.hidden:
        n, k = network.layer(name).n_units, int(rng.integers(3, 9))
        labels[name] = rng.choice(k, size=n, p=rng.dirichlet(np.full(k, 2.0)))
    partition = Partition.from_labels({name: np.unique(one, return_inverse=True)[1] for name, one in labels.items()})
    chosen = {name: int(rng.integers(partition.labels[name].max() + 1)) for name in network.hidden}
    return Dealt(partition, chosen, properties, strata(properties, partition), seed)


def measured(run: DamageRun, layer: str, tables: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Outcome -> (rows, partitions): the damage of groups that are given partition by partition, in one go."""
    found = run.damage({layer: np.concatenate(tables)})
    return {name: values[:, 0].reshape(len(tables), -1).T for name, values in found.items()}


def alike(rows: np.ndarray, strength: Sequence[np.ndarray | None]) -> np.ndarray:  # (1 + n, partitions)
    """Matched controls as if they were as strong as their group; NaN for partitions without a test."""
    none = np.full((len(rows), 1), np.nan)
    columns = [none if s is None else evened(rows[:, [i]], s) for i, s in enumerate(strength)]
    return resolved(np.hstack(columns))


def at_least(p: np.ndarray, value: np.ndarray, floor: float) -> np.ndarray:
    """p-values, 1 where a value is not above what counts as damage at all."""
    return np.where((value <= floor) & ~np.isnan(p), 1.0, p)


def ranked(run: DamageRun, dealt: Sequence[Dealt], layer: str, outcomes: Sequence[str]) -> Iterator[tuple]:
    """Design, outcome and p-values (partitions,) with a fixed number of controls, and as published."""
    least, strength = floors(run), [one.strength(layer, N_CONTROLS) for one in dealt]
    for design, matched in (("random", False), ("matched", True)):
        rows = judged(measured(run, layer, [one.groups(layer, N_CONTROLS, matched) for one in dealt]), outcomes)
        for name, found in rows.items():
            fair = alike(found, strength) if matched else found
            p = np.where(np.isnan(fair[1:]).all(0), np.nan, p_values(fair[0], fair[1:]))
            yield design, name, at_least(p, fair[0], least.get(name, -np.inf))
            if not matched:
                test = PaperTest(value=found[0], draws=found[1 : 1 + N_PAPER])
                yield "published", name, test.p_value
                yield "published, shifted", name, test.shifted


def stopping(
    run: DamageRun, dealt: Sequence[Dealt], layers: Sequence[str], design: Sequential, outcomes: Sequence[str]
) -> dict:
    """(layer, outcome) -> p-values, each partition's sub-clusters one list that stops when cross-entropy is clear."""
    shape = 1 + design.most, len(dealt), len(layers)
    names = [one.name for one in run.work.outcomes]
    damage = {name: np.full(shape, np.nan, dtype=np.float64) for name in names}
    drawn, going, start = np.zeros(shape[1:], dtype=int), np.ones(shape[1:], dtype=bool), 0
    for n in design.looks:
        for j, layer in enumerate(layers):
            if len(who := np.flatnonzero(going[:, j])):
                part = measured(run, layer, [dealt[i].groups(layer, n, False)[start:] for i in who])
                for name in names:
                    damage[name][start : n + 1, who, j] = part[name]
        drawn[going], start = n, n + 1
        main = resolved(damage["cross_entropy"][: n + 1])
        for i in np.flatnonzero(going.any(1)):
            going[i] = undecided(Standing.of(main[0, i], main[1:, i], drawn[i], design.looks, floor=0.0), design)
        if not going.any():
            break
    least = floors(run)
    found: dict = {"drawn": drawn}
    for j, layer in enumerate(layers):
        rows = judged({name: values[:start, :, j] for name, values in damage.items()}, outcomes)
        for name, values in rows.items():
            p = look_p_values(values[0], values[1:], drawn[:, j], design.looks)
            found[layer, name] = at_least(p, values[0], least.get(name, -np.inf))
    return found


def same_as_importance(sample: Specimen, one: Dealt) -> None:
    """Is this short way the same as `importance`? AssertionError if not."""
    outcomes = [name for name in OUTCOMES if name != "selectivity_residual"]
    options = dict(n_controls=N_CONTROLS, outcomes=outcomes, n_boot=1, network=sample.network, seed=one.seed)
    frame = importance(sample.model, sample.data, one.partition, **options).to_frame()
    columns = {"random": ("control_mean", "p_value"), "matched": ("matched_mean", "p_matched")}
    for layer, cluster in one.chosen.items():
        theirs = frame[(frame["layer"] == layer) & (frame["cluster"] == cluster)].set_index("outcome")
        for design, name, p in ranked(sample.run(outcomes), [one], layer, outcomes):
            if design in columns and np.isfinite(theirs.loc[name, columns[design][0]]):  # there are such controls
                assert_allclose(p[0], theirs.loc[name, columns[design][1]], rtol=1e-6, strict=True)


def counted(p: np.ndarray) -> list:
    """p-values to four digits, rounded up; '' where undefined."""
    return ["" if np.isnan(one) else float(one) for one in np.ceil(np.ravel(p) * 1e4 - 1e-6) / 1e4]


def null_of(kind: str, state: str, root: Path | None) -> list[tuple]:
    """Rows design, outcome, p, count; design 'controls' holds how many the stopping tests drew."""
    counts, design = Counter(), Sequential(most=999)
    for seed, deals in shares(kind, state):
        sample = specimen(kind, state, seed, root, 100 if "cnn" in kind else 150)
        properties = unit_properties(sample.model, sample.data, sample.network)
        dealt = [deal(sample.network, properties, i) for i in deals]
        run, layers = sample.run((*OUTCOMES, "class_range")), sample.network.hidden
        same_as_importance(sample, dealt[0])
        for layer in layers:
            for told, name, p in ranked(run, dealt, layer, (*OUTCOMES, "class_range")):
                counts.update((told, name, one) for one in counted(p))
        found = stopping(sample.run(OUTCOMES), dealt, layers, design, OUTCOMES)
        counts.update(("controls", "cross_entropy", float(n)) for n in found.pop("drawn").ravel())
        for (_, name), p in found.items():
            counts.update(("sequential", name, one) for one in counted(p))
    return sorted(((*key, n) for key, n in counts.items()), key=str)


def null(root: Path | None) -> Iterator[tuple[tuple, list[tuple]]]:
    kinds = [("digits mlp", "trained"), ("digits mlp", "half dead"), ("digits mlp", "untrained")]
    kinds += [("mnist mlp", "trained"), ("mnist mlp", "untrained")] if root else []
    kinds += [("digits cnn", "trained"), ("digits cnn", "untrained")]
    for kind, state in kinds:
        yield (kind, state), partial(null_of, kind, state, root)


# D: any false alarm in a partition --------------------------------------------------------------------------------


def whole(run: DamageRun, controls: Controls, outcomes: Sequence[str]) -> dict[str, np.ndarray]:
    """Outcome -> (1 + n, m) of all sub-clusters and their controls."""
    parts: dict[str, list] = {name: [] for name in outcomes}
    for layer in controls.labels:
        mine = [i for i, sub in enumerate(controls.subclusters) if sub.layer == layer]
        found = measured(run, layer, [controls.groups(i) for i in mine]) if mine else {}
        for name, values in found.items():
            if name in parts:
                parts[name].append(values)
    return judged({name: np.concatenate(values, axis=1) for name, values in parts.items()}, outcomes)


def family_of(kind: str, state: str, root: Path | None) -> list[tuple]:
    """Rows outcome, partitions, tests, partitions with a p_fwer at ALPHA or below, the same with a p_value."""
    outcomes, n, counts = ("cross_entropy", "accuracy", "selectivity"), 19, Counter()
    for seed, deals in shares(kind, state):
        sample = specimen(kind, state, seed, root, 150)
        properties, run = unit_properties(sample.model, sample.data, sample.network), sample.run(outcomes)
        least = floors(run)
        for i in deals:
            one = deal(sample.network, properties, 5_000 + i)
            rows = whole(run, draw_controls(one.partition, n_controls=n, seed=one.seed), outcomes)
            for name, values in rows.items():
                found = [
                    at_least(f(values[0], values[1:]), values[0], least.get(name, -np.inf)) for f in (max_t, p_values)
                ]
                alarm = [bool(np.any(p <= ALPHA + 1e-9)) for p in found]
                counts.update({(name, 0): 1, (name, 1): values.shape[1], (name, 2): alarm[0], (name, 3): alarm[1]})
    return [(name, *(counts[name, i] for i in range(4))) for name in outcomes]


def family(root: Path | None) -> Iterator[tuple[tuple, Any]]:
    for state in ("trained", "half dead"):
        yield ("digits mlp", state), partial(family_of, "digits mlp", state, root)


# B: lists of special and other sub-clusters -----------------------------------------------------------------------

N_MODULES, MIXED = 6, ("cross_entropy", "accuracy", "selectivity")


def mixture(labels: dict[str, np.ndarray], planted: Sequence[str], seed: int) -> Partition:
    """Modules as labels in the layers `planted`, and the same labels dealt at random in the others."""
    rng, hidden = np.random.default_rng([seed, 0x3B]), [name for name in labels if name != "input"][:-1]
    return Partition.from_labels(
        {name: labels[name] if name in planted else rng.permutation(labels[name]) for name in hidden}
    )


def tallied(value: np.ndarray, q: np.ndarray, special: np.ndarray) -> tuple[int, int, int]:
    """Tests, of the special ones those on the list, and of the others."""
    found = np.nan_to_num(q, nan=1.0) <= ALPHA
    return len(value), int((found & special).sum()), int((found & ~special).sum())


def mixture_of(seed: int) -> list[tuple]:
    """Rows planted layers, design, outcome, tests, special, special found, others found, mean controls."""
    made = planted_mlp(n_modules=N_MODULES, hidden=(12, 12, 12, 12), n=100, seed=seed)
    network = trace(made.model, made.x[:2])
    run, rows = Specimen(made.model, (made.x, made.y), network).run(MIXED), []
    for n_planted in (0, 1, 2, 4):
        planted = list(network.hidden)[:n_planted] if seed % 2 else list(network.hidden)[::-1][:n_planted]
        partition = mixture(made.labels, planted, seed)
        values = whole(run, draw_controls(partition, n_controls=199, seed=seed), MIXED)
        special = np.array([sub.layer in planted for sub in partition.subclusters()])
        for name, one in values.items():
            q = benjamini_hochberg(at_least(p_values(one[0], one[1:]), one[0], floors(run).get(name, -np.inf)))
            m, hits, false = tallied(one[0], q, special)
            rows.append((n_planted, "fixed", name, m, int(special.sum()), hits, false, 199))
        replayed = replay(run, partition, Sequential(most=999), seed, "cross_entropy")
        m, hits, false = tallied(replayed.value, replayed.q, special)
        drawn = round(float(replayed.drawn.mean()), 1)
        rows.append((n_planted, "sequential", "cross_entropy", m, int(special.sum()), hits, false, drawn))
    return rows


def mixtures(root: Path | None) -> Iterator[tuple[tuple, Any]]:
    for seed in range(15):
        yield (seed,), partial(mixture_of, seed)


# C: how many passes? ----------------------------------------------------------------------------------------------


class Replay(NamedTuple):
    """What a design that stops early said of one partition."""

    value: np.ndarray
    drawn: np.ndarray
    p: np.ndarray
    q: np.ndarray


class Pool:
    """Damage of the controls of one partition, measured when first asked for."""

    def __init__(self, run: DamageRun, partition: Partition, seed: int, outcome: str):
        self.run, self.partition, self.seed, self.outcome = run, partition, seed, outcome
        self.subclusters = draw_controls(partition, n_controls=1, seed=seed).subclusters
        self.rows = np.full((0, len(self.subclusters)), np.nan)

    def need(self, n: int, going: np.ndarray) -> np.ndarray:  # (1 + n, m)
        """The first n controls, of those sub-clusters that need them."""
        controls, extra = None, max(0, 1 + n - len(self.rows))
        self.rows = np.pad(self.rows, ((0, extra), (0, 0)), constant_values=np.nan)
        for i in np.flatnonzero(going & np.isnan(self.rows[: 1 + n]).any(0)):
            controls = controls or draw_controls(self.partition, n_controls=n, seed=self.seed)
            left = np.flatnonzero(np.isnan(self.rows[: 1 + n, i]))
            found = self.run.damage({self.subclusters[i].layer: controls.groups(i)[left]})[self.outcome]
            self.rows[left, i] = resolved(found[:, 0])
        return self.rows[: 1 + n]

    def by(self, design: Sequential) -> Replay:
        """Stop as the design says."""
        m = len(self.subclusters)
        drawn, going = np.zeros(m, dtype=int), np.ones(m, dtype=bool)
        for n in design.looks:
            rows = self.need(n, going)
            drawn[going] = n
            going = undecided(Standing.of(rows[0], rows[1:], drawn, design.looks, floor=0.0), design)
            if not going.any():
                break
        p = at_least(look_p_values(rows[0], rows[1:], drawn, design.looks), rows[0], 0.0)
        return Replay(rows[0], drawn, p, benjamini_hochberg(p))


def replay(run: DamageRun, partition: Partition, design: Sequential, seed: int, outcome: str) -> Replay:
    return Pool(run, partition, seed, outcome).by(design)


DESIGNS = {
    "default": Sequential(most=999),
    "first 9": Sequential(most=999, first=9),
    "growth 1.25": Sequential(most=999, growth=1.25),
    "growth 2": Sequential(most=999, growth=2.0),
    "enough 5": Sequential(most=999, enough=5),
    "hopeless 0.05": Sequential(most=999, hopeless=0.05),
    "most 9,999": Sequential(),
}


def cost_of(kind: str, seed: int, root: Path | None) -> list[tuple]:
    """Rows design, sub-clusters, passes, found with 999 fixed, found, only fixed, only here, their least fixed q."""
    n = 100 if kind.startswith("mnist") else 200
    sample = modules(seed, n) if kind == "six modules" else specimen(kind, "trained", seed, root, n)
    partition = spectral_partition(weight_graph(sample.network), 12, seed=seed)
    partition = Partition.from_labels({name: partition.labels[name] for name in sample.network.hidden})
    pool = Pool(sample.run(("cross_entropy",)), partition, seed, "cross_entropy")
    m = len(pool.subclusters)
    rows = pool.need(999, np.ones(m, dtype=bool)).copy()
    q = benjamini_hochberg(at_least(p_values(rows[0], rows[1:]), rows[0], 0.0))
    listed, found = q <= ALPHA, [("fixed 999", m, 1000 * m, int((q <= ALPHA).sum()), int((q <= ALPHA).sum()), 0, 0, "")]
    for name, design in DESIGNS.items():
        one = pool.by(design)
        now = one.q <= ALPHA
        apart = " ".join(f"{a:.3f}/{b:.3f}" for a, b in zip(q[listed != now], one.q[listed != now], strict=True))
        passes, both = int((1 + one.drawn).sum()), (int((listed & ~now).sum()), int((now & ~listed).sum()))
        found.append((name, m, passes, int(listed.sum()), int(now.sum()), *both, apart))
    return found


def modules(seed: int, n: int) -> Specimen:
    """Six modules that never touch."""
    made = planted_mlp(n_modules=N_MODULES, hidden=(12, 12, 12, 12), n=n, seed=seed)
    return Specimen(made.model, (made.x, made.y), trace(made.model, made.x[:2]))


def cost(root: Path | None) -> Iterator[tuple[tuple, Any]]:
    kinds = [("digits mlp", 5), ("digits cnn", 3), ("six modules", 3), ("digits vgg, 11 x 4", 2)]
    kinds += [("mnist mlp, 4 x 256", 5), ("mnist cnn, 3 x 8", 2)] if root else []
    for seed in range(max(n for _, n in kinds)):
        for kind, n in kinds:
            if seed < n:
                yield (kind, seed), partial(cost_of, kind, seed, root)


# All --------------------------------------------------------------------------------------------------------------

PARTS = {
    "null": (null, ["network", "state"], ["design", "outcome", "p", "count"]),
    "cost": (
        cost,
        ["network", "seed"],
        ["design", "subclusters", "passes", "fixed_found", "found", "only_fixed", "only_here", "q_apart"],
    ),
    "mixtures": (
        mixtures,
        ["seed"],
        ["planted", "design", "outcome", "tests", "special", "special_found", "others_found", "controls"],
    ),
    "family": (family, ["network", "state"], ["outcome", "partitions", "tests", "alarms", "alarms_unadjusted"]),
}


def finish(part: str, root: Path | None) -> None:
    """Measure what is not yet in the file of this part."""
    make, keys, columns = PARTS[part]
    path = HERE.with_name(f"calibration_{part}.csv")
    done = pd.read_csv(path, dtype=str)[keys].drop_duplicates() if path.exists() else pd.DataFrame(columns=keys)
    before = set(done.itertuples(index=False, name=None))
    for key, work in make(root):
        if tuple(map(str, key)) in before:
            continue
        start = time.perf_counter()
        rows = pd.DataFrame(work(), columns=columns)
        for place, (name, value) in enumerate(zip(keys, key, strict=True)):
            rows.insert(place, name, value)
        rows.to_csv(path, mode="a", header=not path.exists(), index=False)
        taken = pd.DataFrame([(part, " ".join(map(str, key)), round(time.perf_counter() - start, 1))])
        times = HERE.with_name("calibration_times.csv")
        taken.to_csv(times, mode="a", header=False if times.exists() else ["part", "unit", "seconds"], index=False)
        print(*taken.iloc[0], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--data", type=Path, help="folder that holds MNIST/raw; without it MNIST is left out")
    given = parser.parse_args()
    if unknown := [part for part in given.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}: choose of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    for part in given.parts or PARTS:
        finish(part, given.data)
