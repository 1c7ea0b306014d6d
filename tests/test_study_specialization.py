"""`nbs/studies/specialization.py`: its statistics on known cases, and its stages on small networks of the digits."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

STUDY = Path(__file__).resolve().parent.parent / "nbs" / "studies" / "specialization.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study_specialization", STUDY)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for dataclasses and named tuples, which look their own module up
    spec.loader.exec_module(module)
    return module


def test_superiority_by_hand(study):
    value, draws = np.array([2.0, 0.0, np.nan]), np.array([[1.0, 0.0, 5.0], [2.0, 0.0, 5.0], [3.0, -1.0, 5.0]])
    assert study.superiority(value, draws) == pytest.approx(((1 + 0.5) / 3 + (0.5 + 0.5 + 1) / 3) / 2)
    assert study.superiority(-value, -draws) == pytest.approx(1 - study.superiority(value, draws))
    assert np.isnan(study.superiority(value[2:], draws[:, 2:]))


def test_joint_p_values_are_uniform_under_dependence(study):
    rng, p = np.random.default_rng(0), []
    for _ in range(400):
        rows = rng.standard_normal((40, 6)) + 2 * rng.standard_normal((40, 1))  # groups that rise and fall together
        p.append(study.joint(rows[0], rows[1:]))
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p) == pytest.approx(0.5, abs=0.05)
    rows[0] += 20
    assert study.joint(rows[0], rows[1:]) <= 0.05
    assert study.joint(-rows[0], -rows[1:]) > 0.9
    rows = rng.standard_normal((40, 6)) - [0, 0, 1000, 0, 0, 0]
    rows[0, 2] = np.nan  # is left out, and is neither the best nor the worst
    kept = np.delete(rows, 2, axis=1)
    assert study.joint(rows[0], rows[1:]) == study.joint(kept[0], kept[1:]) > 0.05


def test_level_of_the_published_test(study):
    rng = np.random.default_rng(0)
    assert study.published_level(rng.standard_normal((99, 12))) < 0.15  # groups that are independent
    rising = np.zeros((99, 12)) + np.arange(99)[:, None]  # below the 19 after it, but for the last ones
    assert study.published_level(rising) < 0.1
    nothing = np.zeros((99, 12))  # lesions that do nothing, among others that do nothing
    assert study.published_level(nothing) == 1
    assert study.joint(nothing[0], nothing[1:]) != study.joint(nothing[0], nothing[1:])  # NaN: undefined
    assert np.isnan(study.published_level(nothing[:19]))


def test_first_of_each_network_comes_first(study, tmp_path):
    place = study.Place(study.NETWORKS, tmp_path, tmp_path, tmp_path)
    plan = study.jobs(place, list(study.NETWORKS), list(study.PARTS), 5)
    assert list(dict.fromkeys(job[:2] for job in plan))[: len(study.NETWORKS)] == [(name, 0) for name in study.NETWORKS]
    assert {job[1] for job in plan if job[0] == study.PRETRAINED} == {0}
    later = [job[2] in study.LATER for job in plan]
    assert later == sorted(later) and len(set(plan)) == len(plan)
    seeds = [job[1] for job in plan if job[2] not in study.LATER]
    assert seeds == sorted(seeds)


def run(study, monkeypatch, folder, *options):
    monkeypatch.setattr(sys, "argv", ["specialization.py", "--folder", str(folder), "--out", str(folder), *options])
    study.main()


def test_stages(study, monkeypatch, tmp_path):
    tiny = ("--tiny", "--seeds", "1", "--networks")
    run(study, monkeypatch, tmp_path, "audits", *tiny, "MLP, digits", "--parts", "main", "untrained", "norm")
    run(study, monkeypatch, tmp_path, "audits", *tiny, "CNN, digits", "--parts", "main")
    tables = {path.stem.split("_")[1]: pd.read_csv(path) for path in tmp_path.glob("*.csv")}
    assert set(tables) == {"networks", "partitions", "importance", "coherence", "subclusters", "costs"}
    damage = tables["importance"].set_index(["network", "part", "norm", "graph", "scope", "outcome"])
    assert damage.index.is_unique
    assert len(damage.loc["MLP, digits", "main"]) == 4 * len(study.IMPORTANCE)  # four partitionings
    assert len(damage.loc["MLP, digits", "norm"]) == 3 * 2 * len(study.BRIEF)  # three norms of the weights alone
    assert damage["superiority"].dropna().between(0, 1).all() and (damage["n_controls"] == 19).all()
    assert damage.loc[("MLP, digits", "main"), "n_matched"].notna().all()
    assert damage.loc[("MLP, digits", "untrained"), "n_matched"].isna().all()
    assert (
        len(tables["subclusters"])
        == damage.xs("cross_entropy", level="outcome").loc[(slice(None), "main"), "n_tests"].sum()
    )
    part = tmp_path / "parts" / "MLP-digits-0-main.json"
    before = part.stat().st_mtime_ns, tables["importance"]
    run(study, monkeypatch, tmp_path, "audits", *tiny, "MLP, digits", "--parts", "main")  # what is done, stays
    again = pd.read_csv(tmp_path / "specialization_importance.csv")
    assert part.stat().st_mtime_ns == before[0] and again.equals(before[1])
    part.unlink()  # and is the same when it is done again
    run(study, monkeypatch, tmp_path, "audits", *tiny, "MLP, digits", "--parts", "main")
    assert pd.read_csv(tmp_path / "specialization_importance.csv").equals(before[1])


def test_pictures(study, monkeypatch, tmp_path):
    tiny = ("--tiny", "--seeds", "1", "--networks", "MLP, digits", "CNN, digits")
    run(study, monkeypatch, tmp_path, "audits", *tiny, "--parts", "pictures")
    found = pd.read_csv(tmp_path / "specialization_coherence.csv")
    assert set(found["outcome"]) == set(study.ON_PICTURES)
    assert set(found["network"]) == {"MLP, digits"}  # of the other no pictures are asked


def test_refusals(study, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="no network"):
        run(study, monkeypatch, tmp_path, "--networks", "LeNet")
    with pytest.raises(SystemExit, match="give the folder that holds MNIST"):
        run(study, monkeypatch, tmp_path, "train", "--networks", "MLP, MNIST", "--data", str(tmp_path))
