"""One more of each kind of thing is one row of one table: it goes through an audit, the report and the shell."""

import contextlib
import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from lesson import lesson
from numpy.testing import assert_allclose

from specialize_nb.audits import sources
from specialize_nb.audits.audit import Audit, audit
from specialize_nb.audits.cli import main
from specialize_nb.audits.kinds import KINDS
from specialize_nb.audits.sources import load_data, load_model
from specialize_nb.base import devices
from specialize_nb.base.data import digits
from specialize_nb.clusters.partition import Partition
from specialize_nb.controls.controls import draw_controls
from specialize_nb.controls.matching import PROPERTIES, balance, properties_of, strata
from specialize_nb.lesions.lesion import ABLATIONS
from specialize_nb.lesions.outcomes import OUTCOMES, loss_of
from specialize_nb.network.answers import answers_of
from specialize_nb.network.subject import Subject, find_and_confirm
from specialize_nb.responses.coherence import MEASURES, CoherenceMeasure
from specialize_nb.training.models import mlp

SMALL = dict(k=3, n_controls=19, n_visual=2, steps=2, n_boot=5, n_exhibits=1, n_jobs=1)
MODEL = "my_model.py:make_model"


def run(*words):
    "Exit status, standard output and standard error of a command."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(words))
    return status, out.getvalue(), err.getvalue()


def audited(data="digits", examples=60, **options):
    "The audit that the shell saves, which is the one that Python makes; the text of its page; model and data."
    options = SMALL | {"graphs": ["activations"], "scopes": ["local"]} | options
    words = [f"--{name.replace('_', '-')} {' '.join(map(str, np.atleast_1d(one)))}" for name, one in options.items()]
    with lesson() as folder:
        asked = " ".join([f"audit {MODEL} --data {data} --examples {examples}", *words])
        status, _, err = run(*asked.split())
        assert status == 0, err
        kept = Audit.load(folder / "audit-make_model" / "sequential" / "audit.npz")
        page = re.sub(r"<[^>]+>", " ", (folder / "audit-make_model" / "index.html").read_text("utf-8"))
        model, batches = load_model(MODEL), load_data(data, examples=examples)[1]
    made = audit(model, batches, **options)
    columns = ["graph", "scope", "evidence", "outcome", "layer", "cluster", "n_units", "value"]  # threads round apart
    shell, python = (one.to_frame()[columns] for one in (kept, made))
    pd.testing.assert_frame_equal(shell, python, check_dtype=False, rtol=1e-3, atol=1e-5)
    return kept, " ".join(page.split()), model, batches


def suggested(option, wrong):
    "What the shell suggests for a name that is in no table."
    status, _, err = run(*f"audit m.py:f --data digits --{option} {wrong}".split())
    assert (status, err.count("\n")) == (2, 1)
    return err.rpartition("did you mean ")[2].strip()


def listed(name):
    "Is a name listed among the choices of `audit --help`?"
    return re.search(rf"\b{name}\b", run("audit", "--help")[1]) is not None


def halves(subject):
    "Two clusters in each layer, by place."
    sizes = {name: subject.network.layer(name).n_units for name in subject.network.hidden}
    return Partition.from_labels({name: np.arange(n) * 2 // n for name, n in sizes.items()})


def test_graph(monkeypatch):
    assert not listed("dummy")
    cut = {"scopes": ("local",), "cut": lambda graph, subject, how: {"local": halves(subject)}}
    kind = replace(
        KINDS["activations"], name="dummy", label="my own wires", coherence=("correlation",), by_construction=(), **cut
    )
    monkeypatch.setitem(KINDS, "dummy", kind)
    found, page, model, data = audited(graphs=["dummy", "activations"])
    first, second = found.findings
    assert (first.name, second.name) == ("dummy, local", "activations, local")
    expected = halves(Subject.of(model, data)).labels
    assert {name: labels.tolist() for name, labels in first.partition.labels.items()} == {
        name: labels.tolist() for name, labels in expected.items()
    }
    assert first.coherence.outcomes[0] == "correlation" and second.coherence.outcomes[0] == "class_information"
    assert "my own wires, local" in page and "dummy, local" not in page
    assert listed("dummy") and suggested("graphs", "dumy") == "'dummy'?; see `specialize-nb audit --help`"
    monkeypatch.setitem(KINDS, "dummy", replace(kind, missing=lambda subject, memory: "nobody wired them"))
    found, page, *_ = audited(graphs=["dummy", "activations"])
    assert [one.graph for one in found.findings] == ["activations"]
    assert "Clusters by my own wires are missing: nobody wired them." in found.verdict
    assert "Clusters by my own wires are missing: nobody wired them." in page


def test_scopes_of_a_graph(monkeypatch):
    "A kind that has no global clusters is not asked for any."
    monkeypatch.setitem(KINDS, "dummy", replace(KINDS["activations"], name="dummy", scopes=("local",)))
    with lesson():
        status, _, err = run(*f"audit {MODEL} --data digits --graphs dummy --scopes global".split())
    assert status == 2 and "['dummy'] join units within layers only; add 'local' to the scopes" in err


def test_outcome(monkeypatch):
    twice = lambda scores, intact, y: 2 * OUTCOMES["cross_entropy"].measure(scores, intact, y)  # noqa: E731
    row = replace(OUTCOMES["cross_entropy"], name="dummy", label="my own damage", measure=twice)
    monkeypatch.setitem(OUTCOMES, "dummy", row)
    found, page, *_ = audited(outcomes=["dummy", "cross_entropy"])
    (finding,) = found.findings
    assert finding.importance.outcomes == ("dummy", "cross_entropy") == tuple(found.settings["outcomes"])
    value = finding.importance.value
    assert np.ptp(value["dummy"]) > 1e-3
    assert_allclose(value["dummy"], 2 * value["cross_entropy"], rtol=0, atol=3e-6, strict=True)
    assert set(found.verdicts()["importance_outcome"]) == {"dummy"} and "my own damage" in page
    assert listed("dummy") and suggested("outcomes", "dumy").startswith("'dummy'")


def test_ablation(monkeypatch):
    def tens(subject, names, seed):
        tables = {name: torch.full((1, subject.network.layer(name).n_units), 10.0) for name in names}
        return tables, np.zeros(subject.data.n, dtype=np.int64)

    monkeypatch.setitem(ABLATIONS, "dummy", tens)
    found, page, model, data = audited(ablation="dummy", outcomes=["cross_entropy"])
    (finding,) = found.findings
    assert found.settings["ablation"] == "dummy" and "ablation dummy" in page
    confirm = find_and_confirm(data)[1]
    x, y = (torch.cat(parts) for parts in zip(*confirm, strict=True))
    layer, cluster, _ = finding.importance.keys.iloc[0]
    assert layer == "1"  # of nn.Sequential; its activation is the next module
    hidden = model[:3](x)
    silenced = hidden.clone()
    silenced[:, finding.partition.labels[layer] == cluster] = 10
    added = (loss_of(model[3:](silenced), y) - loss_of(model[3:](hidden), y)).mean().item()
    assert abs(added) > 0.1
    assert_allclose(finding.importance.value["cross_entropy"][0], added, rtol=1e-4, strict=True)
    assert listed("dummy") and suggested("ablation", "dumy").startswith("'dummy'")


def test_coherence_measure(monkeypatch):
    def spread(recorded, work):
        each = recorded.std(0, dtype=np.float64)
        return lambda groups, weights: np.repeat((groups @ each)[:, None], len(weights), axis=1)

    monkeypatch.setitem(MEASURES, "dummy", CoherenceMeasure(label="my own spread", on_data=spread))
    seen = CoherenceMeasure(label="my own look", on_pictures=lambda made: 3 * made.score)
    monkeypatch.setitem(MEASURES, "look", seen)
    asked = replace(KINDS["activations"], coherence=("dummy", "correlation"))
    monkeypatch.setitem(KINDS, "activations", asked)
    found, page, model, data = audited()
    (finding,) = found.findings
    shown = ("visual_score", "visual_entropy", "look")  # whatever looks at pictures is measured on them
    assert finding.coherence.outcomes == ("dummy", "correlation", *shown)
    answers = answers_of(Subject.of(model, find_and_confirm(data)[1]), ["1", "3"])
    labels = finding.partition.labels
    by_hand = [
        answers[layer][:, labels[layer] == cluster].std(0, dtype=np.float64).sum()
        for layer, cluster in finding.coherence.keys[["layer", "cluster"]].itertuples(index=False)
    ]
    value = finding.coherence.value
    assert_allclose(value["dummy"], by_hand, rtol=1e-6, strict=True)
    assert_allclose(value["look"], 3 * value["visual_score"], rtol=1e-12, strict=True)
    assert set(found.verdicts()["coherence_outcome"]) == {"dummy"} and "my own spread" in page


def test_control_property(monkeypatch):
    plain, _, model, data = audited()

    def place(units):
        "Small for one half of the units that live, large for the other."
        live = units.most > units.least
        return np.where(np.cumsum(live) * 2 <= live.sum(), 1.0, 1e6)

    monkeypatch.setitem(PROPERTIES, "dummy", place)
    found, page, *_ = audited()
    before, after = (one.findings[0].importance for one in (plain, found))
    assert_allclose(after.draws["cross_entropy"], before.draws["cross_entropy"], rtol=0, strict=True)
    moved = np.abs(after.matched["cross_entropy"] - before.matched["cross_entropy"])
    assert np.nanmax(moved) > 1e-3
    subject = Subject.of(model, find_and_confirm(data)[1])
    properties, partition = properties_of(subject), found.findings[0].partition
    assert list(properties)[-2:] == ["dummy", "dead"]
    alike = draw_controls(partition, n_controls=50, strata=strata(properties, partition), layers=["1", "3"])
    free = draw_controls(partition, n_controls=50, layers=["1", "3"])
    apart = [balance(one, properties)["dummy"].abs().max() for one in (free, alike)]
    assert apart[0] > 0.1 and apart[1] < apart[0] / 2  # strata are of a few units, so that some of it is left
    assert "activations, local" in page


def test_data_source(monkeypatch):
    row = sources.Source(name="dummy", reads="base.data.digits", fixed={"split": "train"}, words="my own digits")
    monkeypatch.setattr(sources, "SOURCES", (*sources.SOURCES, row))
    found, page, _, data = audited(data="dummy")
    assert found.data == "my own digits" and "my own digits" in page
    train = digits("train")
    rows = np.arange(60) * len(train.y) // 60
    assert_allclose(torch.cat([x for x, _ in data]), train.x[rows], rtol=0, strict=True)
    assert listed("dummy")
    with lesson():
        status, _, err = run(*f"audit {MODEL} --data dumy".split())
    assert status == 2 and "no data 'dumy': did you mean 'dummy'?" in err


@pytest.mark.parametrize("option", ["graphs", "outcomes", "ablation"])
def test_a_name_in_no_table(option):
    status, _, err = run(*f"audit m.py:f --data digits --{option} dummy".split())
    assert status == 2 and f"argument --{option}: invalid choice: 'dummy'" in err


def test_a_graph_that_does_not_fit_into_memory_is_left_out(monkeypatch):
    "A system kills whoever takes more than there is: that is known before, and the other graphs are there."
    model, options = mlp((64, *[12] * 8, 10)), SMALL | dict(scopes=("global",))
    monkeypatch.setattr(devices, "free_memory", lambda *_: 7e-5)  # 96 units take 74 kB, and 1,896 weights 27 kB
    found = audit(model, digits("test"), **options)
    assert [finding.graph for finding in found.findings] == ["weights"]
    told = "edges between all 96 units need about 7.37e-05 GB of memory, and 7e-05 GB are free"
    notes = [note for note in found.notes if "by activations" in note]
    assert notes == [f"Clusters by activations are missing: {told}."]
    with pytest.raises(ValueError, match="none can be built"):
        audit(model, digits("test"), graphs=("activations",), **options)
    monkeypatch.setattr(devices, "free_memory", lambda *_: 1.0)
    with pytest.raises(ValueError, match=r"none can be built .*7.37e-05 GB of memory, and memory=6e-05 allows less"):
        audit(model, digits("test"), graphs=("activations",), memory=6e-5, **options)
    monkeypatch.setattr(devices, "free_memory", lambda *_: 3e-5)
    with pytest.raises(ValueError, match=r"between 1,896 pairs of units need about 2.65e-05 GB .* and 3e-05 GB are"):
        audit(model, digits("test"), **options)
