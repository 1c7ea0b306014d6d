"""Networks, weights and data for the shell."""

import inspect
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lesson import lesson
from PIL import Image
from torch import nn

from specialize_nb.audits import sources
from specialize_nb.audits.sources import (
    SOURCES,
    Source,
    UserError,
    check_data,
    check_fits,
    check_model,
    file_of,
    find_source,
    function_of,
    load_data,
    load_model,
    made_by,
    one_line,
)
from specialize_nb.base.data import batches, digits

MAKE = "my_model.py:make_model"


def test_one_line():
    assert one_line(KeyError("no layer 'x'")) == "no layer 'x'" and one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("a\n  b")) == "a b"


def test_functions_by_name():
    path, name = file_of("base.data.digits")
    assert name == "digits" and path.samefile(sys.modules["specialize_nb.base.data"].__file__)
    assert function_of("base.data.digits") is digits


def test_models():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    with lesson() as folder:
        name, model = check_model(MAKE), load_model(MAKE)
        again = load_model(str(folder / "my_model.py") + ":make_model")
        other = load_model(MAKE, seed=1)
        ready = [load_model("my_model.py:ready", seed=seed)[1].weight for seed in (0, 0, 1)]
        assert str(folder) not in sys.path
    assert torch.equal(before[0], torch.get_rng_state()) and random.getstate() == before[2]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(ready[0], ready[1]) and not torch.equal(ready[0], ready[2])
    assert name == "make_model" and not model.training
    assert torch.equal(model[1].weight, again[1].weight) and not torch.equal(model[1].weight, other[1].weight)
    assert isinstance(load_model("specialize_nb.training.models:mlp"), nn.Sequential)


def test_model_mistakes():
    cases = {
        "my_model.py": "give FILE.py:FACTORY or package.module:FACTORY",
        "my_modle.py:make_model": "no file 'my_modle.py'.*did you mean 'my_model.py'",
        "elsewhere/my_model.py:make_model": "nor is there such a folder",
        "my_model.py:make_modle": "has no 'make_modle'; did you mean 'make_model'",
        "my_model.py:zzz": "has no 'zzz'; its functions and classes are 'make_model', 'make_wide'",
        "my_model.py:make_list": "returned a list, not a torch.nn.Module",
        "my_model.py:make_wide": r"needs arguments \(width\)",
        "my_model.py:make_error": r"failed with ZeroDivisionError: division by zero \(my_model.py, line 15\)",
        "my_model.py:SIZE": "is a int, not a function",
        "no_such_package.models:Net": "no module 'no_such_package.models'",
        "no such module:Net": "no module 'no such module'",
        "broken.py:make_model": r"loading 'broken.py' failed with SyntaxError.*\(broken.py, line 2\)",
        "missing.py:make_model": r"failed with ModuleNotFoundError: No module named 'not_there' \(missing.py, line 1\)",
    }
    with lesson():
        Path("broken.py").write_text("x = 1\ndef (:\n")
        Path("missing.py").write_text("import not_there\n")
        for given, message in cases.items():
            with pytest.raises(UserError, match=message):
                load_model(given)
        with pytest.raises(UserError, match="device 'tpu9' cannot be used"):
            load_model(MAKE, device="tpu9")


def test_weights():
    with lesson():
        state = load_model(MAKE, seed=5).state_dict()
        torch.save(state, "good.pt")
        torch.save({"epoch": 3, "state_dict": state}, "nested.pt")
        torch.save(
            {key: value for key, value in state.items() if key != "1.bias"} | {"extra": torch.ones(1)}, "other.pt"
        )
        torch.save(state | {"1.weight": torch.zeros(3, 64)}, "shape.pt")
        torch.save([1, 2], "list.pt")
        torch.save(nn.Linear(2, 2), "whole.pt")
        Path("text.pt").write_text("not weights")
        for file in ("good.pt", "nested.pt"):
            assert torch.equal(load_model(MAKE, weights=file)[1].weight, state["1.weight"])
        cases = {
            "other.pt": "the file has no '1.bias'; 'extra', which the model has not",
            "shape.pt": r"'1.weight' of shape \(3, 64\) for \(12, 64\)",
            "list.pt": "holds a list, not the weights of a model",
            "whole.pt": "or holds more than numbers: save them with torch.save",
            "text.pt": "is no file of weights",
            "nowhere.pt": "no file of weights 'nowhere.pt'",
        }
        for file, message in cases.items():
            with pytest.raises(UserError, match=message):
                load_model(MAKE, weights=file)


def photos():
    for label in ("cat", "dog"):
        Path("photos", label).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (12, 9), (40 * i, 0, 0)).save(f"photos/{label}/{i}.png")


def test_data():
    words, some = load_data("digits", split="train", examples=30)
    assert (
        words == "digits, train split"
        and some.n == 30
        and some.example.shape == (2, 1, 8, 8)
        and len(set(some.labels)) > 5
    )
    words, every = load_data("digits", examples=10**6)
    assert every.n == len(digits("test").y) and words == "digits, test split"
    with lesson():
        photos()
        words, folder = load_data("photos", size=8)
        assert words == "images of photos" and folder.example.shape == (2, 3, 8, 8) and folder.n == 6
        assert load_data("photos", size=8, examples=4)[1].labels.tolist() == [0, 0, 1, 1]
        words, own = load_data("my_model.py:make_data")
        check_fits(load_model(MAKE), own)
        assert words == "my_model.py:make_data" and own.n == made_by(words).n == 40


def test_data_mistakes():
    cases = {
        "mnits": "no data 'mnits': did you mean 'mnist'",
        "somewhere": "no data 'somewhere': give one of digits, mnist, fashion, cifar10, text, text:FILE, a folder",
        "mnist": "MNIST is not in 'data': say with --root DIR",
        "photos": "folder of images: say with --size",
        "my_model.py:make_spent": "cannot be used: got a list_iterator, which can be read only once",
        "my_model.py:make_list": "what 'my_model.py:make_list' returned cannot be used",
        "my_model.py:make_dta": "did you mean 'make_data'",
        "my_modle.py:make_data": "no file 'my_modle.py'",
    }
    with lesson():
        Path("photos").mkdir()
        for given, message in cases.items():
            with pytest.raises(UserError, match=message):
                load_data(given)
        with pytest.raises(FileNotFoundError, match="no images under root 'photos'"):
            load_data("photos", size=8)
        with pytest.raises(UserError, match=r"--examples does not go with --data my_model.py:make_data: let your own"):
            load_data("my_model.py:make_data", examples=3)
        flat = load_data("my_model.py:make_flat")[1]
        with pytest.raises(UserError, match=r"inputs of shape \(7,\) each.*with weights is 1 = Linear\(in_features=64"):
            check_fits(load_model(MAKE), flat)
    two = batches(({"input1": torch.zeros(2, 3), "input2": torch.zeros(2, 4)}, torch.zeros(2, dtype=torch.int64)))
    check_fits(torch.nn.Bilinear(3, 4, 2), two)
    with pytest.raises(UserError, match=r"inputs of shape \(3,\) and \(4,\) each"):
        check_fits(torch.nn.Bilinear(4, 4, 2), two)


def test_options_that_do_not_go_with_the_data():
    "What would be ignored is refused, with what is not."
    cases = {
        ("digits", "root"): r"--root does not go with --data digits: its options are --split, --examples$",
        ("photos", "batch_size"): r"--batch-size does not go with --data photos: its options are --size, --examples$",
        ("mnist", "size"): r"--size does not go with --data mnist: its options are --root, --split, --download, --exam",
    }
    with lesson():
        photos()
        for (given, option), message in cases.items():
            with pytest.raises(UserError, match=message):
                check_data(given, {option: 1})
    for source in SOURCES[:4]:
        assert check_data(source.name, dict.fromkeys(source.names())) is source is find_source(source.name)


def test_every_row_reads_with_a_function_that_has_its_parameters():
    for source in SOURCES:
        settled = {source.given, *source.fixed, *source.preset} - {""}
        assert settled <= set(inspect.signature(function_of(source.reads)).parameters), source.name


def test_another_source_is_one_row(monkeypatch):
    "Its options are the parameters of its function."
    row = Source(name="sums", reads="base.data.modular_addition", fixed={"p": 11}, words="sums by {p}", thins=False)
    monkeypatch.setattr(sources, "SOURCES", (*SOURCES, row))
    assert row.names() == ["split", "share"]
    words, data = load_data("sums")
    assert words == "sums by 11" and data.n > 4
    with pytest.raises(UserError, match="--examples does not go with --data sums"):
        load_data("sums", examples=3)


def test_nothing_heavy_before_it_is_needed():
    code = """if True:
        import sys
        from specialize_nb.audits.sources import UserError, check_data, check_model
        check_data("digits", {"split": "test"})
        try:
            check_model("nowhere.py:make")
        except UserError:
            print({"torch", "numpy", "pandas"} & set(sys.modules))"""
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert asked.stdout == "set()\n"
