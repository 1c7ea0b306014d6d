"""The page of an audit: judged as a reader's browser sees it, by its elements, their attributes and the text in them."""

import base64
import fnmatch
import importlib.resources
import io
import re
import tempfile
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape
from numpy.testing import assert_allclose
from PIL import Image

from specialize_nb.audits import report
from specialize_nb.audits.audit import Audit
from specialize_nb.audits.findings import RANK, Exhibit, Finding
from specialize_nb.audits.kinds import KINDS
from specialize_nb.audits.report import label_of, write_report
from specialize_nb.clusters.partition import Partition
from specialize_nb.lesions.dissociation import Dissociation
from specialize_nb.lesions.importance import Importance
from specialize_nb.lesions.outcomes import OUTCOMES
from specialize_nb.responses.coherence import Coherence

TEMPLATES = importlib.resources.files("specialize_nb.audits") / "templates"


def toy_evidence(kind, rows, effects, seed, outcomes=("cross_entropy", "accuracy"), reason="one unit"):
    "Evidence of class `kind` in which sub-cluster i lies about `effects[i]` standard deviations above its controls."
    rng, m = np.random.default_rng(seed), len(rows)
    draws = {name: rng.normal(size=(199, m)) * 0.1 + 0.2 for name in outcomes}
    value = {name: 0.2 + 0.1 * np.asarray(effects, dtype=float) for name in outcomes}
    replicates = {outcomes[0]: np.asarray(effects) + rng.normal(size=(100, m))}
    keys = pd.DataFrame(rows, columns=["layer", "cluster", "n_units"])
    untested = pd.DataFrame(
        [[rows[0][0], 3, 1, "too_small", reason]], columns=["layer", "cluster", "n_units", "code", "reason"]
    )
    return kind(
        keys=keys,
        outcomes=outcomes,
        value=value,
        draws=draws,
        replicates=replicates,
        settings={"n_controls": 199, "seed": seed},
        untested=untested,
    )


def toy_finding(graph, scope, layers, seed):
    "Three clusters a layer, one unit in a fourth, two in none; the first cluster of each layer is specialized."
    rng = np.random.default_rng(seed)
    labels = {name: rng.permutation([-1, -1, 3, *[0] * 6, *[1] * 5, *[2] * (n - 14)]) for name, n in layers.items()}
    partition = replace(Partition.from_labels(labels), graph=graph, scope=scope, k=4, seed=0, ncut=2.5)
    rows = [[sub.layer, sub.cluster, len(sub.units)] for sub in partition.subclusters() if len(sub.units) > 1]
    measured = ("correlation", "visual_score")
    return Finding(
        graph=graph,
        scope=scope,
        partition=partition,
        importance=toy_evidence(Importance, rows, [9, 5, -1, 6, 0, 1][: len(rows)], seed),
        coherence=toy_evidence(Coherence, rows, [4, 0, 5, 12, 1, -2][: len(rows)], seed + 1, measured),
    )


def toy_audit(model="TinyNet", layers=("features.0", "classifier.1"), setting="fast", channels=1, seed=0):
    "An audit made by hand: no network was run."
    sizes, rng = dict(zip(layers, (24, 40), strict=True)), np.random.default_rng(seed)
    findings = tuple(
        toy_finding(graph, "global", sizes, seed + i) for i, graph in enumerate(("weights", "activations"))
    )
    pictures = rng.random((13, 8, 8, channels))
    exhibit = Exhibit(
        graph="weights",
        scope="global",
        layer=layers[0],
        cluster=0,
        units=(1, 2, 5, 7, 9, 11),
        image=pictures[0],
        controls=pictures[1:7],
        real=pictures[7:],
    )
    frame = pd.DataFrame([[name, "hidden", "linear", "neuron", n, ""] for name, n in sizes.items()])
    return Audit(
        model=model,
        data="200 examples of noise",
        layers=frame.set_axis(["layer", "kind", "op", "unit", "n_units", "feeds"], axis=1),
        unknown=(),
        findings=findings,
        exhibits=(exhibit,),
        alpha=0.05,
        baseline={"loss": 0.25, "accuracy": 0.93, "n_examples": 200},
        settings={"k": 4, "n_controls": 199, "speed": setting, "seed": 0},
        versions={"specialize_nb": "0.1.0", "python": "3.11"},
        seconds={"importance": 1.25, "coherence": 20.5},
    )


def toy_tasks(layers=("fc", "out"), tasks=("code", "prose"), strict=True, seed=0, **changes):
    "Three groups on each layer: the first serves the first task, the second the second, the third none."
    rng, m = np.random.default_rng(seed), 3 * len(layers)
    keys = pd.DataFrame(
        [[layer, i, 4 + i] for layer in layers for i in range(3)], columns=["layer", "cluster", "n_units"]
    )
    drawn = {name: rng.normal(size=(999, m)) * 0.1 + 0.2 for name in tasks}
    value = {name: 0.2 + (np.arange(m) % 3 == i) * 0.9 for i, name in enumerate(tasks)}
    content = dict(keys=keys, tasks=tasks, outcomes=dict.fromkeys(tasks, "cross_entropy"), value=value, draws=drawn)
    content |= dict(matched={name: one + 0.05 for name, one in drawn.items()} if strict else {})
    content |= dict(replicates={name: rng.normal(size=(50, m)) for name in tasks})
    untested = [["fc", 7, 1, "too_small", "one unit"]]
    content |= dict(untested=pd.DataFrame(untested, columns=["layer", "cluster", "n_units", "code", "reason"]))
    content |= dict(settings={"n_controls": 999, "lesion": "subcluster"}, notes=("Something was left out.",))
    return Dissociation(**content | changes)


class Reader(HTMLParser):
    "The elements of a page, their attributes, and its text."

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def written(*audits):
    "The report of `audits`, as text."
    with tempfile.TemporaryDirectory() as folder:
        return write_report(audits, Path(folder) / "new" / "report.html").read_text("utf-8")


def part(name, audit, **changes):
    "One part of the page of `audit`, as text; `changes` to what it shows."
    return report._filled(f"{name}.html", section=report._section(audit, "a") | changes)


def made_of(source, **names):
    return report._TEMPLATES.from_string(source).render(**names)


def test_text_stays_text():
    hostile = '"><img src=x onerror=alert(1)>'
    told = made_of('<p title="{{ text }}">{{ text }}<b>{{ more }}</b></p>', text=hostile, more="a & b")
    seen = Reader(told)
    assert seen.elements == [("p", {"title": hostile}), ("b", {})] and seen.text == f"{hostile}a & b"
    assert told.count("<") == 4
    assert made_of("<p>{{ text }}</p>", text="a\0b\ud800") == "<p>a\ufffdb\ufffd</p>"
    assert made_of("{% macro m(x) %}<i>{{ x }}</i>{% endmacro %}{{ m(x) }}", x="\0<") == "<i>\ufffd&lt;</i>"
    told = "".join(one.read_text("utf-8") for one in TEMPLATES.iterdir())
    assert "macro table" in told and not re.search(r"\bsafe\b|autoescape|Markup", told)


def test_a_name_that_is_missing_is_an_error():
    with pytest.raises(Exception, match="'gone' is undefined"):
        made_of("<p>{{ gone }}</p>")


def test_numbers():
    numbers = [0.0, 0.12345, -3.21987, 12345.6, 2e-5, float("nan"), -float("inf")]
    assert [report._number(n) for n in numbers] == ["0", "0.123", "−3.22", "12,346", "2.00e-05", "–", "−∞"]
    effects = [report._effect(n) for n in (3.14, -2, -0.04, float("nan"), float("inf"))]
    assert effects == ["+3.1", "−2.0", "+0.0", "–", "∞"]
    assert [report._probability(p) for p in (0.0004, 0.0123, 0.5, float("nan"))] == ["<0.001", "0.012", "0.50", "–"]


def test_table():
    small = made_of(
        '{% from "parts.html" import head, table %}{% call table("Effects") %}{{ head("layer") }}{{ head("effect", "number") }}'
        '<th scope="row">conv1</th><td class="number">{{ 2.5|effect }}</td>{% endcall %}'
    )
    assert small.count('scope="col"') == 2 and small.count('scope="row"') == 1 and "tall" not in small
    assert '<th scope="col" class="number">effect</th>' in small and '<td class="number">+2.5</td>' in small
    assert "<caption>Effects</caption>" in small and 'aria-label="Effects"' in small
    toy = toy_audit()
    (row, _), *_ = report._listed(toy.verdicts(), [])
    tall = ['class="scroll tall"' in part("listed", toy, listed=[(row, None)] * n) for n in (13, 12)]
    assert tall == [True, False]
    assert len({report._colour(cluster) for cluster in range(32)}) == 32


def test_strips():
    one = toy_audit().findings[0]
    labels = {"a": np.array([0, 0, 1, -1, 0, 2])}
    finding = replace(one, partition=Partition.from_labels(labels))
    rows = pd.DataFrame([["weights", "global", "a", 0, "specialized"], ["weights", "local", "a", 1, "important"]])
    rows = rows.set_axis(["graph", "scope", "layer", "cluster", "verdict"], axis=1)
    clusters = report._clusters(finding, report._rows_of(finding, rows))
    drawn, legend = part("clusters", toy_audit(), clusters=[clusters]).split('<p class="legend">')
    told = "cluster 0: 3 units, specialized; cluster 1: 1 unit, not tested; cluster 2: 1 unit, not tested"
    assert f'aria-label="a: {told}; 1 unit in no cluster"' in drawn
    assert drawn.count("segment specialized") == 1 and drawn.count("segment untested") == 2 and drawn.count("★") == 1
    assert drawn.count("segment none") == 1
    assert re.findall(r"flex-grow:(\d)", drawn) == ["3", "1", "1", "1"]
    assert [legend.count(mark) for mark in "★▲●"] == [1, 1, 1] and "n-cut" not in drawn
    assert "4 clusters, 4 of 64 units in none, n-cut 2.5" in part("clusters", toy_audit())


def test_scale():
    scale = report._Scale(np.array([-2.0, 0.0, 40.0, np.nan, np.inf]))
    shares = [scale.share(v) for v in (-np.inf, -3, 0, 3, 40, 1e9)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and 0 < shares[1] < shares[4] < 1
    assert scale.ticks == [-3, 0, 3, 10, 30] and report._Scale(np.array([np.nan])).ticks == [-3, 0, 3]
    assert [report._tick(n) for n in (-1000, 0)] == ["−1,000", "0"]


def test_labels_come_from_where_things_are_defined(monkeypatch):
    names = [label_of(name) for name in ("cross_entropy", "visual_score", "my_own_measure", "weights")]
    assert names == ["loss added by a lesion", "visualisation score", "my own measure", "weights"]
    monkeypatch.setitem(OUTCOMES, "cross_entropy", replace(OUTCOMES["cross_entropy"], label="nats lost"))
    assert label_of("cross_entropy") == "nats lost" and "importance: nats lost" in written(toy_audit())
    before = written(toy_audit())
    monkeypatch.setitem(KINDS, "weights", replace(KINDS["weights"], label="cables"))
    after = written(toy_audit())
    named = before.count("weights, global")
    assert named > 9 and after.count("cables, global") == named and "weights, global" not in after
    assert tuple(report._VERDICTS) == RANK


def test_evidence():
    toy = toy_audit()
    rows, finding = toy.verdicts(), toy.findings[0]
    expected = report._rows_of(finding, rows)
    drawn = part("evidence", toy, evidence=[report._evidence(finding, expected, toy.alpha)])
    assert drawn.count("<circle") == 2 * len(finding.importance.keys)
    lines = re.findall("<tr>.*?</tr>", drawn, re.DOTALL)[1:]
    assert expected["layer"].tolist() == [*["features.0"] * 3, *["classifier.1"] * 3]
    passes = {
        "specialized": [True, True],
        "important": [True, False],
        "coherent": [False, True],
        "neither": [False, False],
    }
    for line, row in zip(lines, expected.itertuples(), strict=True):
        assert ["passes" in dot for dot in re.findall("<circle[^>]*>", line)] == passes[row.verdict]
        effects = (report._effect(e) for e in (row.importance_effect, row.coherence_effect))
        assert all(f">{e}<" in line for e in effects) and row.layer in line
    main = finding.importance
    effect, controls = report._standardised(main)
    assert_allclose(effect, main.to_frame()["effect"][: len(effect)].to_numpy(), rtol=1e-6, strict=True)
    draws = main.draws["cross_entropy"]
    assert_allclose(controls[4], (draws.max(0) - draws.mean(0)) / draws.std(0, ddof=1), rtol=1e-6, strict=True)
    other = report._evidence(finding, expected.assign(cluster=9), toy.alpha)
    assert part("evidence", toy, evidence=[other]).count("not tested") == 12 and len(set(expected["verdict"])) == 4


def test_undefined_evidence():
    "Controls that are all equal leave no standard deviation to measure in: this is said, not drawn."
    rows = [["a", 0, 2], ["a", 1, 2], ["a", 2, 2]]
    flat = toy_evidence(Importance, rows, [1, 2, 3], 0)
    draws = flat.draws["cross_entropy"].copy()
    draws[:, 0], draws[:3, 1] = 0.2, np.nan
    flat = replace(
        flat, draws={"cross_entropy": draws}, value={"cross_entropy": [0.5, 0.4, np.nan]}, outcomes=("cross_entropy",)
    )
    effect, controls = report._standardised(flat)
    assert np.isnan(effect).tolist() == [True, False, True] and np.isfinite(controls[:, 1]).all()
    judged = pd.DataFrame(rows, columns=["layer", "cluster", "n_units"]).assign(
        verdict="neither", importance_q=0.5, q_matched=np.nan, strength="not matched"
    )

    def drawn(place, low, high):
        own = judged.iloc[[place]].assign(importance_ci_low=low, importance_ci_high=high)
        scale, (one,) = report._column(flat, own, "importance", 0.05)
        column = {"name": "importance", "outcome": "cross_entropy", "scale": scale}
        shown = {"name": "x", "columns": [column], "rows": [(next(own.itertuples()), (one,))]}
        return part("evidence", toy_audit(), evidence=[shown]).split("<tbody>")[1]

    assert "undefined" in drawn(0, np.nan, np.nan) and "<svg" not in drawn(0, np.nan, np.nan)
    assert "interval" not in drawn(1, np.nan, np.nan) and "<svg" in drawn(1, np.nan, np.nan)
    assert 'class="interval"' in drawn(1, -np.inf, np.inf)


def test_short_list():
    toy = toy_audit()
    rows = toy.verdicts()
    picture = {"graph": "weights", "scope": "global", "layer": "features.0", "cluster": 0, "anchor": "there"}
    listed = part("listed", toy, listed=report._listed(rows, [picture]))
    assert listed.count("<tr>") == 1 + (rows["verdict"] == "specialized").sum() and listed.count('href="#there"') == 1
    of_listed = rows[rows["verdict"] == "specialized"]["importance_effect"].sort_values(ascending=False)
    shown = re.findall(r'number">([+−][\d.]+)<small', listed)[::2]
    assert shown == of_listed.map(report._effect).tolist() and len(of_listed) > 2
    marked = part("listed", toy, listed=report._listed(rows.assign(strength="not beyond", q_matched=0.4), []))
    assert marked.count("†</abbr>") == len(of_listed) and listed.count("‡</abbr>") == len(of_listed)  # none is matched
    assert (
        "†" not in part("listed", toy, listed=report._listed(rows.assign(strength="beyond"), [])).split("</table>")[0]
    )
    nothing = part("listed", toy, listed=report._listed(rows.assign(verdict="neither"), []))
    assert "No sub-cluster is on the list of both" in nothing and "<table" not in nothing


def test_image():
    rng = np.random.default_rng(0)
    for channels, shape in ((1, (5, 4)), (3, (5, 4, 3)), (2, (5, 8)), (4, (5, 16))):
        picture = rng.random((5, 4, channels))
        made = report._picture(picture, "large")
        text = made["source"].removeprefix("data:image/png;base64,")
        back = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        assert back.shape == shape and made["enlarged"]
        assert_allclose(
            back.reshape(5, -1)[:, : 12 if channels == 3 else 4] / 255,
            picture[..., slice(None) if channels == 3 else 0].reshape(5, -1),
            rtol=1e-6,
            atol=0.002,
            strict=True,
        )
    assert not report._picture(np.ones((224, 224, 3)), "small")["enlarged"]
    assert len(report._picture(rng.random((224, 224, 3)), "small")["source"]) < 4 * 88 * 88 * 3
    assert report._bytes_of(np.array([[[-1.0], [2.0], [np.nan]]])).tolist() == [[0, 255, 0]]
    css = (TEMPLATES / "report.css").read_text("utf-8")
    assert all(f".{size} {{ width: {pixels}px; }}" in css for size, pixels in report._SHOWN.items())


def test_exhibits():
    toy = toy_audit()
    (one,) = report._exhibits(toy.exhibits, toy.verdicts(), "a")
    assert one["anchor"] == "a-picture-0" and (one["layer"], one["cluster"]) == ("features.0", 0)
    shelf = part("pictures", toy)
    assert 'id="a-picture-0"' in shelf and shelf.count('class="large pixels"') == 1
    assert shelf.count("badge specialized") == 1 and len(re.findall('alt="[^"]*random group', shelf)) == 6
    assert "· weights, global · 6 units" in shelf
    bare = replace(toy.exhibits[0], controls=np.zeros((0, 8, 8, 1)), real=np.zeros((0, 8, 8, 1)), cluster=1)
    shelf = part("pictures", replace(toy, exhibits=(bare,)))
    shelf = shelf[shelf.index("<figure") :]
    assert shelf.count("<img") == 1 and "badge important" in shelf and "real images" not in shelf
    assert "holds no pictures" in part("pictures", replace(toy, exhibits=()))


def test_sheets():
    toy, patches = toy_audit(), np.random.default_rng(1).random((5, 3, 3, 1))
    first = replace(toy.exhibits[0], highest=patches[:3], lowest=patches[3:])
    others = [replace(first, layer="classifier.1", cluster=c) for c in (0, 1)]
    shelf = part("pictures", replace(toy, exhibits=(first, *others, replace(first, cluster=3))))
    assert re.findall("<h4>(.*?)</h4>", shelf) == ["features.0", "classifier.1"]
    assert re.findall('figure id="a?[^"]*-picture-([0-9])"', shelf) == ["0", "3", "1", "2"]
    assert len(re.findall('alt="Part of a real image that excites [^"]* most, rank [123]"', shelf)) == 4 * 3
    assert len(re.findall('alt="Part of a real image that excites [^"]* least, rank [12]"', shelf)) == 4 * 2
    assert "scaled alike" in shelf and shelf.count("<img") == shelf.count("alt=") == 4 * (1 + 6 + 6 + 5)
    bare = part("pictures", toy)
    assert "Part of" not in bare and "<h5>parts that" not in bare


def test_method():
    flat = report._flat({"a": 1, "b": {"c": "x", "d": [1, "y"]}, "e": None})
    assert flat == {"a": "1", "b.c": "x", "b.d": "1, y", "e": "null"}
    toy = toy_audit()
    told = part("method", toy)
    index = report._number(toy.findings[0].partition.agreement(toy.findings[1].partition), 2)
    assert told.count(f'<td class="number">{index}</td>') == 2
    assert "Rand index" in told and "Rand index" not in part("method", replace(toy, findings=toy.findings[:1]))
    assert (
        "21.8 s" in told
        and told.count("<dt>n_controls</dt>") == 3
        and told.count("<dt>seed</dt>") == 1
        and "Every operation of the network could be followed" in told
    )
    assert (
        "4 sub-clusters" not in told
        and "2 sub-clusters were not tested" in told
        and '<td class="text">importance and coherence</td>' in told
    )
    assert "aten.fft" in part("method", replace(toy, unknown=("aten.fft",)))
    assert "not known: it branches. Units act" in part("method", replace(toy, refused="it branches"))
    kinds = ("importance", "coherence")
    complete = [
        replace(one, **{name: replace(getattr(one, name), untested=()) for name in kinds}) for one in toy.findings
    ]
    assert "Every sub-cluster of every hidden layer was tested" in part(
        "method", replace(toy, findings=tuple(complete))
    )
    drawn_on = [
        replace(one, importance=replace(one.importance, settings={"n_controls": {"first": 19, "most": 999}}))
        for one in toy.findings
    ]
    told = part("method", replace(toy, findings=tuple(drawn_on)))
    assert told.count('<td class="number">up to 999</td>') == 2


def test_tasks():
    "A matrix of groups and tasks, the numbers behind it, and the pairs in words; nothing of it where there is one task."
    one, other = toy_tasks(), toy_tasks(tasks=("code", "prose", "verse"), strict=False)
    toy = replace(toy_audit(), dissociations={"weights, global": one, "my own, local": other})
    told = part("tasks", toy)
    seen, text = Reader(told), " ".join(Reader(told).text.split())
    assert "Groups by weights, global" in text and "Groups by my own, local" in text and not seen.open
    assert all(sentence in text for sentence in (*one.in_words(), *one.notes))
    matrix, *_ = re.findall('<table class="matrix">.*?</table>', told, re.DOTALL)
    rows = re.findall("<tr>.*?</tr>", matrix, re.DOTALL)
    frame = one.to_frame()
    assert len(rows) == 7 and rows[0].count("<th") == 3 and matrix.count("★") == frame["serves"].sum() == 4
    for i, row in enumerate(rows[1:]):
        effects = frame["effect"].to_numpy()[[i, i + 6]]
        assert [one.group(i) in row, *(report._effect(e) in row for e in effects)] == [True] * 3
    colours = {
        style: e for e in frame["effect"] for style in [report._Cell.of(SimpleNamespace(effect=e, serves=0), 9).colour]
    }
    assert min(colours, key=colours.get).count("247") < 3 and "rgb(178 24 43)" in max(colours, key=colours.get)
    assert (
        report._Cell.of(SimpleNamespace(effect=0.0, serves=0), 9).colour == "background:rgb(247 247 247);color:#14181c"
    )
    assert report._Cell.of(SimpleNamespace(effect=np.nan, serves=0), 9).colour == ""
    table = re.findall("<table.*?</table>", told, re.DOTALL)[1]
    lines = re.findall("<tr>.*?</tr>", table, re.DOTALL)[1:]
    assert len(lines) == 12 and [">yes<" in line for line in lines] == [True, False, False, True, False, False] * 2
    assert f">{report._number(one.matched['code'][:, 0].mean())}<" in lines[0]
    pairs = report._pairs_told(one)
    clear = one.pairs()["dissociates"].sum()
    assert len(pairs) == clear == 4 and pairs[0].startswith("fc/0 for 'code' and fc/1 for 'prose' (p = ")
    assert "beside units as strong, q = " in pairs[0] and "strong" not in report._pairs_told(other)[0]
    assert "fc/7 was not tested: one unit." in text and told.count("<dt>n_controls</dt><dd>999</dd>") == 2
    none = replace(one, value={name: np.full(6, 0.2) for name in one.tasks})
    (closest,) = report._pairs_told(none)
    assert closest.startswith("The closest is ") and "what holds it back most is " in closest
    alone = replace(
        one, **{name: {t: v[..., :1] for t, v in getattr(one, name).items()} for name in _BY_TASK}, keys=one.keys[:1]
    )
    assert report._pairs_told(alone) == [] and "No pair" not in part(
        "tasks", replace(toy, dissociations={"weights, local": alone})
    )
    whole, without = written(toy), written(toy_audit())
    assert 'href="#audit-0-tasks"' in whole and "<h3>Tasks</h3>" in whole and "tasks" not in without
    many = toy_tasks(layers=tuple(f"layer {i}" for i in range(9)))
    assert len(report._pairs_told(many)) == report._N_PAIRS + 1 and report._pairs_told(many)[-1].startswith("And ")


_BY_TASK = ("value", "draws", "matched", "replicates")


def test_page():
    page = written(toy_audit(), toy_audit(model="Other", channels=3))
    seen = Reader(page)
    assert page.startswith('<!doctype html>\n<html lang="en">') and not seen.open and not seen.all("script")
    assert page == written(toy_audit(), toy_audit(model="Other", channels=3))
    sources = [one["src"] for one in seen.all("img")]
    assert len(sources) == 2 * 13 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(one["alt"] for one in seen.all("img"))
    assert all(one["aria-label"] for one in seen.all("svg") if one.get("role"))
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r'base64,[^"]+', "", page))
    ids = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and {one["href"][1:] for one in seen.all("a")} <= set(ids)
    assert {one["scope"] for one in seen.all("th")} == {"col", "row"}
    assert len(seen.all("caption")) == len(seen.all("table"))
    assert "No pictures were made." in Reader(written(replace(toy_audit(), notes=("No pictures were made.",)))).text


def test_looks_for_night_and_paper_are_in_the_page():
    page, css = written(toy_audit()), (TEMPLATES / "report.css").read_text("utf-8")
    assert page.count("<style>") == 1 and css in page
    assert "@media (prefers-color-scheme: dark)" in css and "@media print" in css
    colours = set(re.findall(r"(--\w[\w-]*):", css)) - {"--c"}
    night, paper = (css[css.index(start) :] for start in ("@media (prefers-color-scheme: dark)", "@media print"))
    assert len(colours) > 8 and all(f"{one}:" in night[: night.index("}")] and f"{one}:" in paper for one in colours)


def test_summary():
    "Two audits have a summary on top, with the verdict of each in words; one has the verdict above its table."
    one, two = toy_audit(), toy_audit(model="Other")
    assert written(one).count(escape(one.verdict)) == 1 and 'id="summary"' not in written(one)
    both = written(one, two)
    assert 'id="summary"' in both and all(both.count(escape(each.verdict)) == 1 for each in (one, two))
    assert both.index(escape(two.verdict)) < both.index('id="audit-0"') < both.index('id="audit-1"')
    counts = [int((one.verdicts()["verdict"] == name).sum()) for name in report._VERDICTS]
    row = re.search('href="#audit-0">TinyNet</a>.*?</tr>', both, re.DOTALL)[0]
    assert [int(n) for n in re.findall(r'<td class="number">(\d+)</td>', row)] == [sum(counts), *counts]


def test_hostile():
    "Every text that an audit holds is hostile here, and each arrives as text."
    attack = "<script>alert(1)</script>\"><img src=x onerror=alert(2)>'&lt;"

    def hostile_finding(finding):
        parts = {
            name: replace(one, settings={attack: attack}, untested=one.untested.assign(reason=attack))
            for name, one in (("importance", finding.importance), ("coherence", finding.coherence))
        }
        return replace(finding, graph=attack, **parts)

    bad = toy_audit(model=attack + "m", layers=(attack + "a", attack + "b"), setting=attack + "s")
    hostile = dict(
        data=attack + "d", unknown=(attack + "u",), settings={attack + "k": {attack: attack}, "n_controls": 199}
    )
    hostile |= dict(
        versions={attack + "v": attack}, seconds={attack + "t": 1.0}, findings=tuple(map(hostile_finding, bad.findings))
    )
    hostile |= dict(exhibits=tuple(replace(one, graph=attack) for one in bad.exhibits), notes=(attack + "n",))
    names = tuple(f"{attack}{i}" for i in "ef")
    apart = toy_tasks((attack + "g", attack + "h"), names, notes=(attack + "i",), settings={attack + "j": attack})
    apart = replace(apart, untested=apart.untested.assign(reason=attack + "o"))
    bad = replace(bad, **hostile, dissociations={attack + "p, " + attack + "q": apart})
    seen = Reader(written(bad, bad))
    allowed = set(
        "html head meta title style body main header section article nav footer div span h1 h2 h3 h4 h5 p strong small "
        "a abbr code ul li dl dt dd figure figcaption table caption thead tbody tr th td img svg line circle text".split()
    )
    assert {tag for tag, _ in seen.elements} <= allowed and not seen.open
    assert not [name for _, attributes in seen.elements for name in attributes if name.startswith("on")]
    assert all(one["src"].startswith("data:image/png") for one in seen.all("img"))
    assert all(seen.text.count(attack + mark) >= 2 for mark in "mabduvtkefghijopq")


def test_whatever_has_the_fields_of_an_audit_can_be_reported():
    class Counted(SimpleNamespace):
        asked = 0

        def verdicts(self):
            self.asked += 1
            return toy.verdicts()

    toy = toy_audit()
    kept = {one.name: getattr(toy, one.name) for one in fields(toy)}
    other = Counted(**kept, headline=toy.headline)
    assert written(other) == written(toy) and other.asked == 1
    for name in ("alpha", "headline", "notes"):
        less = Counted(**{key: one for key, one in vars(other).items() if key != name})
        with pytest.raises(TypeError, match="got a Counted: give an Audit"):
            written(less)


def test_refused(tmp_path):
    with pytest.raises(TypeError, match="got a DataFrame: give an Audit"):
        write_report([toy_audit().verdicts()], tmp_path / "x.html")
    with pytest.raises(ValueError, match="got no audits"):
        write_report([], tmp_path / "x.html")
    with pytest.raises(IsADirectoryError, match=r"is a folder: give a file in it, such as .*index.html"):
        write_report(toy_audit(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_templates_ship_with_the_package():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["specialize_nb.audits"]
    names = [f"templates/{one.name}" for one in TEMPLATES.iterdir()]
    assert "templates/report.css" in names and len(names) > 5
    assert all(any(fnmatch.fnmatch(name, pattern) for pattern in patterns) for name in names)
