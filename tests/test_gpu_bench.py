"""`bench/gpu.py` on the CPU: all of its sections run and agree, and one that fails never costs the others."""

import json
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))
try:
    import gpu
    from gpu_frame import LeftOut, Section, Setting, near
finally:
    sys.path.remove(str(BENCH))

SWEEPS = ["sweep, ResNet-18 at 224", "sweep, ResNet-50 at 224", "sweep, GPT-2 small"]


def strict(path):
    def refuse(one):
        raise ValueError(f"{one} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the tiny run writes. In this process, which spares a second import of everything."""
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    gpu.write(path, gpu.begun(True, 300))
    sys.path.insert(0, str(BENCH))  # one section imports its neighbour
    logging.disable(logging.DEBUG)  # of which pytest keeps what torch.export says, thousands of lines
    try:
        assert gpu.work(path, [*gpu.SECTIONS], True, time.monotonic() + 300) == 0
    finally:
        sys.path.remove(str(BENCH))
        logging.disable(logging.NOTSET)
    return strict(path)


def test_all_sections_are_there_and_none_failed(told):
    assert [*told["sections"]] == [*gpu.SECTIONS] and not told["left_out"] and told["running"] is None
    assert not {name: one["error"] for name, one in told["sections"].items() if "error" in one}
    assert all(one["seconds"] > 0 and one["memory_peak_mb"] is None for one in told["sections"].values())
    assert told["tiny"] and "trivial" in told["note"] and torch.__version__.startswith(told["versions"]["torch"])


def test_answers_agree_within_the_tolerances_and_are_not_the_same_bits(told):
    rooms = {name: one for name, one in told["sections"].items() if one["part"] == "agreement"}
    found = [each for one in rooms.values() for each in one["checks"]]
    assert len(rooms) == 13 and not [each for each in found if not each["within"]]
    assert all(one["checks"] and one["within"] for one in rooms.values())
    lesions = [one["checks"] for name, one in rooms.items() if name.startswith("lesions")]
    assert len(lesions) == 5 and all(any(each["difference"] > 0 for each in one) for one in lesions)


def test_races_tell_both_sides(told):
    for name in SWEEPS:
        one = told["sections"][name]
        assert one["goal"] == 0.85 and one["share_of_floor"] == pytest.approx(one["bare_s"] / one["ours_s"])
        assert one["share_of_floor_with_set_up"] < one["share_of_floor"] and one["set_up_s"] > 0
        assert one["farthest_mean_loss_nats"] < 1e-5  # a hook and a full pass say the same
        assert all(row["hook"] and row["lesions"] == 3 for row in one["layers"])
    one = told["sections"]["pictures, beside render_vis"]
    assert one["response_over_theirs"]["median"] == pytest.approx(1, abs=0.05)
    one = told["sections"]["audit, ResNet-18, 1,000 images at 224"]
    assert one["sub_clusters"] > 0 and one["planned"] and not one["whole"]


def stub(run, most_s=60.0, least_s=0.0):
    return Section("", "agreement", most_s, least_s, run)


def fails(setting):
    raise ValueError("wrong on purpose")


def hangs(setting):
    while True:
        try:
            time.sleep(60)
        except Exception:  # as parts of an audit do
            pass


def dies(setting):
    os._exit(9)


def missing(setting):
    raise LeftOut("not installed")


def test_what_fails_hangs_or_dies_costs_no_other_section(tmp_path, monkeypatch, capfd):
    good = stub(lambda setting: {"checks": [], "within": True, "odd": [np.float32(0.5), float("nan")]})
    sections = dict(a=stub(fails), b=stub(hangs, most_s=0.2), c=stub(dies), d=stub(missing), e=good)
    sections["f"] = stub(lambda setting: {}, least_s=1e6)  # which a tiny run does not ask for
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    monkeypatch.setattr(gpu, "begun", lambda *_: dict(sections={}, left_out={}, running=None))
    path = tmp_path / "out.json"
    assert gpu.main(["--tiny", "--out", str(path), "--seconds", "30"]) == 1
    told = strict(path)
    errors = {name: one.get("error", "") for name, one in told["sections"].items()}
    assert [*errors] == ["a", "b", "c", "e", "f"] and told["failed"] == ["a", "b", "c"]
    assert errors["a"] == "ValueError: wrong on purpose" and "stopped after" in errors["b"] and "code 9" in errors["c"]
    assert told["left_out"] == {"d": "not installed"}
    assert told["sections"]["e"]["odd"] == [0.5, "nan"]
    assert [one.name for one in tmp_path.iterdir()] == ["out.json"]


def test_what_does_not_fit_in_the_time_is_left_out(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(gpu, "SECTIONS", dict(a=stub(lambda setting: {}), b=stub(lambda setting: {})))
    monkeypatch.setattr(gpu, "begun", lambda *_: dict(sections={}, left_out={}, running=None))
    assert gpu.main(["--tiny", "--out", str(tmp_path / "out.json"), "--seconds", "0"]) == 0
    told = strict(tmp_path / "out.json")
    assert not told["sections"] and [*told["left_out"]] == ["a", "b"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capfd):
    assert gpu.main(["--out", str(tmp_path / "out.json")]) == 2
    assert "no CUDA device" in capfd.readouterr().err and not [*tmp_path.iterdir()]


def test_words_that_no_section_has_are_told(capfd):
    assert gpu.main(["--tiny", "--only", "nothing"]) == 1
    assert "lesions, dense" in capfd.readouterr().err


def test_the_peak_of_memory_is_the_most_of_all_parts():
    told = {"ours_peak_mb": 3.0, "layers": [{"bare_peak_mb": 7.0, "hook": True}, {"bare_peak_mb": 5.0}], "bare_s": 9.0}
    assert sorted(gpu.peaks(told)) == [3.0, 5.0, 7.0]


def test_near_tells_differences_gaps_and_shapes():
    assert near("x", [1.0, 2.0], [1.0, 2.1], most=0.2)["within"]
    assert not near("x", [1.0, 2.0], [1.0, 2.1], most=0.05)["within"]
    assert near("x", [1.0, 2.0], [1.0, 2.1], most=0.0501, relative=True)["within"]
    assert near("x", [np.nan, 2.0], [np.nan, 2.0], most=0.0)["within"]
    assert not near("x", [np.nan, 2.0], [1.0, 2.0], most=9.0)["within"]
    assert not near("x", [np.inf], [-np.inf], most=9.0)["within"]
    assert not near("x", [1.0], [1.0, 2.0], most=9.0)["within"] and not near("x", [], [], most=9.0)["within"]
    assert Setting(torch.device("cpu"), True, time.monotonic() + 5).size(2, 1) == 1
