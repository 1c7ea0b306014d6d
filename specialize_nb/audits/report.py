"""One page that tells people who were not there what was found.

A report is one HTML file: the verdict in words, the specialized sub-clusters, a picture of the clusters of every layer,
each measurement beside its random controls, what the groups ask to see, and how all of it was computed. It needs no
other file, no network and no script, prints on paper, and shows whatever names it is given as text. The same audit
always gives the same file.

A plain module, not a notebook: mechanism without a story; the report notebook shows how to read a page. Its words and
its look are in `templates/`, one file for each part of the page; here is what goes into them.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from specialize_nb.audits.findings import Exhibit, Finding
from specialize_nb.audits.kinds import KINDS
from specialize_nb.audits.twins import Twins
from specialize_nb.base.files import write_atomic
from specialize_nb.base.words import counted
from specialize_nb.clusters.partition import Partition
from specialize_nb.lesions.dissociation import Dissociation
from specialize_nb.lesions.outcomes import OUTCOMES
from specialize_nb.responses.coherence import MEASURES
from specialize_nb.responses.contexts import Contexts, ContextsExhibit, contexts_exhibit
from specialize_nb.stats.effects import effect_size
from specialize_nb.stats.evidence import Evidence

__all__ = ["Reported", "label_of", "write_report"]


class Reported(Protocol):
    """What a report tells of: an `Audit`, or anything that has as much."""

    @property
    def model(self) -> str:
        """Class of the model, or the name it was given."""

    @property
    def data(self) -> str:
        """What it was judged on, in words."""

    @property
    def layers(self) -> pd.DataFrame:
        """One row for each layer: `layer` first; `kind`, `n_units`, and other columns as they come."""

    @property
    def unknown(self) -> Sequence[str]:
        """Operations that could not be followed."""

    @property
    def refused(self) -> str:
        """Why the wiring of the model is not known; '' if it is."""

    @property
    def findings(self) -> Sequence[Finding]:
        """The partitions and the evidence about them; none if no partition could be found."""

    @property
    def exhibits(self) -> Sequence[Exhibit]:
        """Pictures of some sub-clusters."""

    @property
    def alpha(self) -> float:
        """False discovery rate of the verdicts, between 0 and 1."""

    @property
    def baseline(self) -> Mapping[str, float]:
        """Of the intact model 'n_examples', and by the task 'loss' (nats), 'accuracy', 'label_accuracy' (from 0 to 1),
        'squared_error' (of the targets' variance)."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was asked for, as JSON has it."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Package, or 'python' and 'machine' -> its version."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Stage -> how long it took."""

    @property
    def twins(self) -> Twins | None:
        """What the same pipeline finds in networks that have learnt nothing; None if it was not asked."""

    @property
    def contexts(self) -> Mapping[str, Contexts]:
        """Finding by its name -> where in the sequences its first sub-clusters answer; empty without tokens."""

    @property
    def dissociations(self) -> Mapping[str, Dissociation]:
        """Finding by its name -> which of its groups serve which task; empty where there is one task."""

    @property
    def headline(self) -> str:
        """The answer in words, doubts included."""

    @property
    def notes(self) -> Sequence[str]:
        """What was decided, approximated or left out, a sentence each."""

    def verdicts(self) -> pd.DataFrame:
        """One row for each sub-cluster, as `audits.findings` has them."""


def write_report(
    audits: Reported | Sequence[Reported],  # One or more; several get a summary on top
    path: str | Path,  # The HTML file to write; one that is there is replaced
) -> Path:  # `path`
    """Write one HTML file, complete in itself, that tells what was found and how.

    Parameters
    ----------
    audits : Reported | Sequence[Reported]
        One or more; several get a summary on top
    path : str | Path
        The HTML file to write; one that is there is replaced

    Returns
    -------
    Path
        `path`

    Raises: `TypeError` if there is something other than audits; `ValueError` if there is none; `IsADirectoryError`.
    """
    found = [audits] if _is_audit(audits) else list(audits)
    if wrong := [one for one in found if not _is_audit(one)]:
        raise TypeError(
            f"got a {type(wrong[0]).__name__}: give an Audit or a list of them, from `audit` or `Audit.load`"
        )
    if not found:
        raise ValueError("got no audits: give at least one, from `audit` or `Audit.load`")
    if Path(path).is_dir():
        raise IsADirectoryError(
            f"{str(path)!r} is a folder: give a file in it, such as {(Path(path) / 'index.html').as_posix()!r}"
        )
    sections = [_section(one, f"audit-{i}") for i, one in enumerate(found)]
    page = _filled("page.html", sections=sections, version=found[0].versions.get("specialize_nb", ""))
    return write_atomic(path, page.encode("utf-8"))


def _is_audit(one: Any) -> bool:
    """Has it what a report tells of? Asks for names only: the verdict is costly to work out."""
    return {name for name in vars(Reported) if not name.startswith("_")} <= set(dir(one))


# What a page shows of one audit. Templates get it as `section`.


def _section(audit: Reported, anchor: str) -> dict[str, Any]:
    """Everything about one audit; the verdicts are worked out once."""
    verdicts = audit.verdicts()
    hidden = audit.layers[audit.layers["kind"] == "hidden"]
    rows = [_rows_of(finding, verdicts) for finding in audit.findings]
    exhibits = _exhibits(audit.exhibits, verdicts, anchor)
    pairs = list(zip(audit.findings, rows, strict=True))
    return {
        "audit": audit,
        "anchor": anchor,
        "intact": _intact(audit.baseline),
        "n_tested": len(verdicts),
        "n_hidden": int(hidden["n_units"].sum()),
        "n_hidden_layers": len(hidden),
        "counts": {name: int((verdicts["verdict"] == name).sum()) for name in _VERDICTS},
        "outcome": next((one.importance.outcomes[0] for one in audit.findings), "damage"),
        "listed": _listed(verdicts, exhibits),
        "clusters": [_clusters(finding, own) for finding, own in pairs],
        "sheets": _sheets(exhibits),
        "evidence": [_evidence(finding, own, audit.alpha) for finding, own in pairs],
        "contexts": [_contexts(name, found) for name, found in audit.contexts.items()],
        "tasks": [_tasks(name, found) for name, found in audit.dissociations.items()],
        **_method(audit),
    }


_INTACT = {  # What a model is judged by: what the page calls it, and how the number is told
    "accuracy": ("accuracy", "{:.1%} of {:,.0f} examples"),
    "label_accuracy": ("labels right", "{:.1%} in {:,.0f} examples"),
    "squared_error": ("squared error", "{:.1%} of the variance of the targets in {:,.0f} examples"),
}


def _intact(baseline: Mapping[str, float]) -> list[tuple[str, str]]:
    """What the model does without a lesion: names and values, the main one first."""
    n = baseline["n_examples"]
    told = [(name, words.format(baseline[key], n)) for key, (name, words) in _INTACT.items() if key in baseline]
    told += [("loss", f"{_number(baseline['loss'])} nats")] if "loss" in baseline else []
    return told or [("targets", f"none; {n:,.0f} examples")]


_KEYS = ["graph", "scope", "layer", "cluster"]


def _rows_of(finding: Finding, verdicts: pd.DataFrame) -> pd.DataFrame:
    """The verdicts on the sub-clusters of one finding, in the order of its layers."""
    rows = verdicts[(verdicts["graph"] == finding.graph) & (verdicts["scope"] == finding.scope)]
    place = {layer: i for i, layer in enumerate(finding.partition.labels)}
    return rows.iloc[np.lexsort((rows["cluster"], rows["layer"].map(place)))]


def _listed(verdicts: pd.DataFrame, exhibits: Sequence[Mapping[str, Any]]) -> list[tuple[Any, str | None]]:
    """The specialized sub-clusters, the largest effect first, and the anchor of the picture of each.

    Those that are nearly the same units stand together.
    """
    rows = verdicts[verdicts["verdict"] == "specialized"]
    rows = rows.sort_values("importance_effect", ascending=False, kind="stable")
    rows = rows.iloc[np.argsort(pd.factorize(rows["same"])[0], kind="stable")]
    anchors = {tuple(one[key] for key in _KEYS): one["anchor"] for one in exhibits}
    return [(row, anchors.get(tuple(getattr(row, key) for key in _KEYS))) for row in rows.itertuples()]


# Clusters


def _clusters(finding: Finding, rows: pd.DataFrame) -> dict[str, Any]:
    """All layers of one partition."""
    labels = np.concatenate(list(finding.partition.labels.values()))
    known = {layer: dict(zip(part["cluster"], part["verdict"], strict=True)) for layer, part in rows.groupby("layer")}
    return {
        "name": _name(finding),
        "n_clusters": len(np.unique(labels[labels >= 0])),
        "n_loose": int((labels < 0).sum()),
        "n_units": len(labels),
        "ncut": finding.partition.ncut,
        "depth": finding.partition.depth,
        "mostly_layers": finding.partition.mostly_layers,
        "strips": [(layer, _strip(own, known.get(layer, {}))) for layer, own in finding.partition.labels.items()],
    }


def _strip(labels: np.ndarray, verdicts: Mapping[int, str]) -> list[dict[str, Any]]:
    """The clusters of one layer side by side."""
    clusters, sizes = np.unique(labels, return_counts=True)
    order = np.argsort(clusters < 0, kind="stable")  # units in no cluster come last
    return [
        {"cluster": int(clusters[i]), "n_units": int(sizes[i]), "verdict": verdicts.get(int(clusters[i]))}
        for i in order
    ]


def _colour(cluster: int) -> str:
    """Steps of the golden angle around the colour wheel keep any number of clusters apart."""
    return f"--c:hsl({(40 + cluster * 137.508) % 360:.0f} 62% {(72, 64)[cluster % 2]}%)"


# Evidence


def _squeeze(value: Any) -> Any:
    return np.arcsinh(np.asarray(value, dtype=float) / 2)


class _Scale:
    """From standard deviations to percent of the width; squeezed far from zero, so that weak effects stay readable."""

    def __init__(self, values: np.ndarray):
        known = values[np.isfinite(values)]
        ends = _squeeze([min(known.min(initial=0), -3.0), max(known.max(initial=0), 3.0)])
        self.low, self.high = ends + np.array([-0.1, 0.1])
        marks = [0, *(sign * size for size in (3, 10, 30, 100, 1000, 10**4, 10**6) for sign in (-1, 1))]
        self.ticks = sorted(mark for mark in marks if 0 < self.share(mark) < 1)

    def share(self, value: float) -> float:
        """From 0 to 1; what lies outside goes to the edge."""
        return float(np.clip((_squeeze(value) - self.low) / (self.high - self.low), 0, 1))

    def at(self, value: float) -> str:
        return f"{100 * self.share(value):.2f}%"


@dataclass(frozen=True, eq=False, kw_only=True)
class _Drawn:
    """One sub-cluster beside its random groups, all in standard deviations of these."""

    scale: _Scale
    effect: float  # NaN where the measure does not exist
    ci_low: float  # Bootstrap interval; NaN where there is none
    ci_high: float
    controls: tuple[float, ...]  # At 0, 25, 50, 75 and 100 percent of the random groups
    q: float
    passes: bool


def _evidence(finding: Finding, rows: pd.DataFrame, alpha: float) -> dict[str, Any]:
    """Every tested sub-cluster of one finding, its two kinds of evidence side by side."""
    columns, drawn = [], []
    for name in ("importance", "coherence"):
        evidence = getattr(finding, name)
        scale, own = _column(evidence, rows, name, alpha)
        columns.append({"name": name, "outcome": evidence.outcomes[0], "scale": scale})
        drawn.append(own)
    return {
        "name": _name(finding),
        "columns": columns,
        "rows": list(zip(rows.itertuples(), zip(*drawn, strict=True), strict=True)),
    }


def _column(evidence: Evidence, rows: pd.DataFrame, name: str, alpha: float) -> tuple[_Scale, list[_Drawn | None]]:
    """One kind of evidence for each of `rows`; None for what was not tested."""
    effect, controls = _standardised(evidence)
    ends = rows[[f"{name}_ci_low", f"{name}_ci_high"]].to_numpy(dtype=float)
    scale = _Scale(np.concatenate([effect, controls.ravel(), ends.ravel()]))
    tested = zip(evidence.keys["layer"], evidence.keys["cluster"], strict=True)
    place = {key: i for i, key in enumerate(tested)}
    drawn: list[_Drawn | None] = []
    for key, (low, high), q in zip(
        zip(rows["layer"], rows["cluster"], strict=True), ends, rows[f"{name}_q"], strict=True
    ):
        i = place.get(key)
        if i is None:
            drawn.append(None)
            continue
        own = dict(effect=effect[i], ci_low=low, ci_high=high, controls=tuple(controls[:, i]))
        drawn.append(_Drawn(scale=scale, q=q, passes=bool(q <= alpha), **own))
    return scale, drawn


def _standardised(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """Main outcome: effects (m,), and controls (5, m) at 0, 25, 50, 75 and 100 percent, in sds of the controls."""
    name = evidence.outcomes[0]
    if not len(evidence.keys):
        return np.zeros(0), np.zeros((5, 0))
    mean, sd, effect = effect_size(evidence.value[name], evidence.draws[name])
    draws = (evidence.draws[name] - mean) / np.where(sd > 0, sd, np.nan)
    known = np.where(np.isfinite(draws).any(0), draws, 0.0)  # a column without a number draws nothing visible
    return effect, np.nanpercentile(np.where(np.isinf(known), np.nan, known), [0, 25, 50, 75, 100], axis=0)


# Contexts


def _contexts(finding: str, found: Contexts) -> tuple[str, list[tuple[int, str, int, ContextsExhibit]], Sequence[str]]:
    """What is shown of the groups of one partition: cluster, layer, units, exhibit; and what there is to say."""
    graph, _, scope = finding.rpartition(", ")
    groups = zip(found.clusters, found.layers, found.units, strict=True)
    exhibits = [
        (cluster, layer, len(units), contexts_exhibit(found, i)) for i, (cluster, layer, units) in enumerate(groups)
    ]
    return f"{label_of(graph)}, {scope}", exhibits, [note for note in found.notes if "raises is not shown" in note]


# Tasks


_N_PAIRS = 12  # pairs of groups that are told in words


def _tasks(finding: str, found: Dissociation) -> dict[str, Any]:
    """Which groups of one partition serve which task."""
    graph, _, scope = finding.rpartition(", ")
    frame = found.to_frame()
    groups = [found.group(i) for i in range(len(found.keys))]
    place, m = np.arange(len(frame)), len(groups)
    rows = frame.assign(group=groups * len(found.tasks), matched_mean=_matched_means(found))
    rows = [list(rows[place % m == i].itertuples()) for i in range(m)]  # of each group, task by task
    finite = frame["effect"][np.isfinite(frame["effect"])]
    most = max(float(finite.abs().max()) if len(finite) else 0.0, 3.0)
    settings = {**found.settings, "outcomes": found.outcomes}
    return {
        "name": f"{label_of(graph)}, {scope}",
        "tasks": found.tasks,
        "told": found.in_words(),
        "matrix": [(group, [_Cell.of(row, most) for row in own]) for group, own in zip(groups, rows, strict=True)],
        "rows": [row for own in rows for row in own],
        "pairs": _pairs_told(found),
        "settings": _flat(settings),
        "notes": found.notes,
        "untested": [(f"{row.layer}/{row.cluster}", row.reason) for row in found.untested.itertuples()],
    }


def _matched_means(found: Dissociation) -> np.ndarray:
    """(tasks x groups,) what groups of units as strong cost; NaN where there are none."""
    nothing = np.full(len(found.keys), np.nan)
    strict = [found.matched.get(task) for task in found.tasks]
    return np.concatenate([nothing if one is None else effect_size(nothing, one)[0] for one in strict])


@dataclass(frozen=True)
class _Cell:
    """A group and a task in the matrix: how large the effect is, as a number and as a colour."""

    effect: float
    serves: bool
    colour: str  # Of the cell and its text, as style; '' where nothing is known

    @classmethod
    def of(cls, row: Any, most: float) -> _Cell:
        """Blue for less than random groups, white, red for more; both kinds of colour-blindness tell them apart."""
        if not math.isfinite(row.effect):
            return cls(row.effect, bool(row.serves), "")
        share = float(_squeeze(row.effect) / _squeeze(most))
        white, end = np.array([247, 247, 247]), np.array([178, 24, 43] if share > 0 else [33, 102, 172])
        red, green, blue = (white + (end - white) * min(abs(share), 1)).round().astype(int)
        ink = "#fff" if abs(share) > _DARK else "#14181c"
        return cls(row.effect, bool(row.serves), f"background:rgb({red} {green} {blue});color:{ink}")


_DARK = 0.6  # share of the strongest colour from which on white text is read better than black


def _pairs_told(found: Dissociation) -> list[str]:
    """Which pairs dissociate doubly, a sentence each; the closest one where none does."""
    pairs = found.shown() if len(found.pairs()) else found.pairs()
    place = {key: i for i, key in enumerate(zip(found.keys["layer"], found.keys["cluster"], strict=True))}

    def told(row: Any) -> str:
        first, second = place[row.layer, row.cluster], place[row.other_layer, row.other_cluster]
        return f"{found.group(first)} for {row.task!r} and {found.group(second)} for {row.other_task!r}"

    def proof(row: Any) -> str:
        strict = f"; beside units as strong, q = {_probability(row.q_matched)}" if found.matched else ""
        return f"p = {_probability(row.p_value)}, q = {_probability(row.q_value)}{strict}"

    clear = pairs[pairs["dissociates"]] if len(pairs) else pairs
    listed = [f"{told(row)} ({proof(row)})." for row in clear.head(_N_PAIRS).itertuples()]
    if len(clear) > _N_PAIRS:
        listed.append(f"And {len(clear) - _N_PAIRS} more.")
    for row in pairs.head(1).itertuples() if not len(clear) else ():
        listed.append(f"The closest is {told(row)} ({proof(row)}); what holds it back most is {row.weakest}.")
    return listed


# Pictures, kept inside the page as PNG


def _exhibits(exhibits: Sequence[Exhibit], verdicts: pd.DataFrame, anchor: str) -> list[dict[str, Any]]:
    """What each group asks to see, beside what random groups ask to see, and real images."""
    known = dict(zip(verdicts[_KEYS].itertuples(index=False, name=None), verdicts["verdict"], strict=True))
    found = []
    for i, exhibit in enumerate(exhibits):
        keys = {key: getattr(exhibit, key) for key in _KEYS}
        pictures = {name: [_picture(one, "small") for one in getattr(exhibit, name)] for name in _ROWS_OF}
        told = {"n_units": len(exhibit.units), "verdict": known.get(tuple(keys.values()), "neither")}
        told["notes"] = exhibit.notes
        found.append(
            keys | told | pictures | {"image": _picture(exhibit.image, "large"), "anchor": f"{anchor}-picture-{i}"}
        )
    return found


_ROWS_OF = ("controls", "real", "highest", "lowest")  # Pictures of an exhibit beside its own


def _sheets(exhibits: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Each layer once, in the order in which it comes first, with its groups."""
    layers = dict.fromkeys(one["layer"] for one in exhibits)
    return [(layer, [one for one in exhibits if one["layer"] == layer]) for layer in layers]


_SHOWN = {"large": 116, "small": 44}  # Pixels on the screen, as the style sheet has them


def _picture(picture: np.ndarray, size: str) -> dict[str, Any]:
    """Small pictures keep their size, and the browser enlarges them; large ones shrink to twice what is shown."""
    image, shown = Image.fromarray(_bytes_of(picture)), _SHOWN[size]
    enlarged = max(image.size) < shown
    image.thumbnail((2 * shown, 2 * shown), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"source": source, "size": size, "enlarged": enlarged}


def _bytes_of(picture: np.ndarray) -> np.ndarray:
    """(H, W, C) from 0 to 1 -> uint8 (H, W) or (H, W, 3); other channel counts are laid side by side."""
    picture = np.nan_to_num(np.asarray(picture, dtype=float)).clip(0, 1)
    picture = (picture * 255).round().astype(np.uint8)
    return picture if picture.shape[2] == 3 else np.concatenate(list(picture.transpose(2, 0, 1)), axis=1)


# How it was computed


def _method(audit: Reported) -> dict[str, Any]:
    """Everything needed to do it again."""
    seconds = {stage: f"{took:.1f} s" for stage, took in audit.seconds.items()}
    lists = {
        "Settings": _flat(audit.settings),
        "Importance": _shared(audit.findings, "importance"),
        "Coherence": _shared(audit.findings, "coherence"),
        "Versions": audit.versions,
        "Time": seconds | {"together": f"{sum(audit.seconds.values()):.1f} s"},
    }
    return {"lists": lists, "agreement": _agreement(audit.findings), "untested": _untested(audit.findings)}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings with nested ones under dotted names, as text."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            parts = value if isinstance(value, list | tuple) else [value]
            found[f"{prefix}{key}"] = ", ".join(part if isinstance(part, str) else json.dumps(part) for part in parts)
    return found


def _shared(findings: Sequence[Finding], name: str) -> dict[str, str]:
    """Settings that one kind of evidence has in every finding."""
    results = [getattr(finding, name) for finding in findings]
    every = [_flat(one.settings) for one in results if one.settings]
    return {key: value for key, value in next(iter(every), {}).items() if all(one.get(key) == value for one in every)}


def _agreement(findings: Sequence[Finding]) -> list[tuple[str, list[float]]]:
    """How much do the partitions agree with each other? Nothing to say of one alone."""
    partitions = [finding.partition for finding in findings] if len(findings) > 1 else []
    pairs = zip(findings, partitions, strict=False)
    return [(_name(finding), [_rand_index(one, other) for other in partitions]) for finding, one in pairs]


def _rand_index(one: Partition, other: Partition) -> float:
    try:
        return one.agreement(other)
    except ValueError:  # no unit is clustered in both
        return math.nan


def _untested(findings: Sequence[Finding]) -> list[Any]:
    """What was not tested and why, once for both kinds of evidence where they agree."""
    parts = []
    for finding in findings:
        for name in ("importance", "coherence"):
            parts.append(getattr(finding, name).untested.assign(evidence=name, partition=_name(finding)))
    if not any(map(len, parts)):
        return []
    keys = ["partition", "layer", "cluster", "n_units", "reason"]
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return list(frame.groupby(keys, sort=False)["evidence"].agg(" and ".join).reset_index().itertuples())


# Words and numbers, for reading


@dataclass(frozen=True)
class _Words:
    """What a verdict is called."""

    mark: str  # A sign that is seen at a glance; '' for none
    told: str

    @property
    def short(self) -> str:
        return self.told.partition(":")[0]


_VERDICTS = {
    "specialized": _Words("★", "specialized: important and coherent"),
    "important": _Words("▲", "important only"),
    "coherent": _Words("●", "coherent only"),
    "neither": _Words("", "neither"),
    "undefined": _Words("", "undefined: no lesion of it left a loss that is a number"),
}


_STRENGTHS = {
    "not beyond": _Words("†", "not shown to matter more than units as strong"),
    "not matched": _Words("‡", "not compared with units as strong: there are no such groups"),
}


def _mark(verdict: str | None) -> str:
    return _VERDICTS[verdict].mark if verdict in _VERDICTS else ""


_LABELLED: tuple[Mapping[str, Any], ...] = (OUTCOMES, MEASURES, KINDS)  # Name -> what has a `label`


def label_of(
    name: str,  # An outcome of importance or coherence, or a kind of graph
) -> str:  # What people call it; the name in words where nothing is said
    """What is it called on a page? What it is called where it is defined.

    Parameters
    ----------
    name : str
        An outcome of importance or coherence, or a kind of graph

    Returns
    -------
    str
        What people call it; the name in words where nothing is said
    """
    labels = [table[name].label for table in _LABELLED if name in table]
    return next(filter(None, labels), name.replace("_", " "))


def _name(finding: Finding) -> str:
    return f"{label_of(finding.graph)}, {finding.scope}"


def _number(value: float, digits: int = 3) -> str:
    """A measurement with a few significant digits; what is undefined is a dash, never a zero."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        text = f"{value:.{digits}g}"
    else:
        text = f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.{digits - 1}e}"
    return text.replace("-", "−", 1) if value < 0 else text


def _effect(value: float) -> str:
    """Standard deviations, with a sign and one decimal."""
    return f"{round(value, 1) or 0:+.1f}".replace("-", "−") if math.isfinite(value) else _number(value)


def _probability(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.{3 if value < 0.1 else 2}f}"


def _tick(value: int) -> str:
    return f"{value:,}".replace("-", "−")


def _units(n: int) -> str:
    return counted(n, "unit")


def _n_controls(settings: Mapping[str, Any]) -> str:
    """A number of controls, or the most that a design may draw."""
    n = settings.get("n_controls", "–")
    return f"up to {n['most']}" if isinstance(n, dict) else str(n)


# The templates. Whatever is put into one is escaped, and no template says otherwise.

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # not allowed in HTML


def _printable(value: Any) -> Any:
    """What is put in, as text that HTML may hold; what a template made stays as it is."""
    return value if hasattr(value, "__html__") else _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value))


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("specialize_nb.audits", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals |= {"verdicts": _VERDICTS, "strengths": _STRENGTHS}
    made.tests["nan"] = math.isnan
    made.filters |= {
        "label": label_of,
        "mark": _mark,
        "colour": _colour,
        "units": _units,
        "name": _name,
        "n_controls": _n_controls,
    }
    made.filters |= {"number": _number, "effect": _effect, "probability": _probability, "tick": _tick}
    return made


_TEMPLATES = _environment()


def _filled(template: str, **names: Any) -> str:
    """A template with what its names stand for."""
    return _TEMPLATES.get_template(template).render(**names)
