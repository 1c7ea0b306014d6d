"""The command `specialize-nb`, mostly in this process: what it prints is caught."""

import argparse
import contextlib
import inspect
import io
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
from lesson import lesson

from specialize_nb import __version__
from specialize_nb.audits import cli, sources
from specialize_nb.audits.audit import Audit, audit
from specialize_nb.audits.cli import _asked_for, _Call, _parser, _short_warnings, _understood, main
from specialize_nb.base.data import digits
from specialize_nb.base.signatures import Parameter
from specialize_nb.layers.measures import MEASURES
from specialize_nb.training.models import mlp, transformer

AUDIT = "audit my_model.py:make_model --data digits"


def run(*words):
    "Exit status, standard output and standard error of a command."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(words))
    return status, out.getvalue(), err.getvalue()


def refused(*words):
    "The one line that a command is refused with."
    status, out, err = run(*words)
    assert (status, out, err.count("\n")) == (2, "", 1), (status, out, err)
    assert err.startswith("specialize-nb: "), err
    return err.removeprefix("specialize-nb: ").strip()


def helped(command):
    "The help of a command, on one line."
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    return " ".join(out.split())


def test_short_warnings():
    told = io.StringIO()
    with contextlib.redirect_stderr(told), _short_warnings():
        seen = {}
        for module in ("specialize_nb.clusters.spectral", "specialize_nb.clusters.spectral", "numpy.lib"):
            text = f"falls apart,\nsays {module}"
            warnings.warn_explicit(text, RuntimeWarning, "file.py", 1, module=module, registry=seen)
    assert told.getvalue() == "specialize-nb: note: falls apart, says specialize_nb.clusters.spectral\n"


# Options from signatures

COMMANDS = {
    "demo": ["_DEMO"],
    "audit": ["_LOAD", "_AUDIT"],
    "plan": ["_LOAD", "_PLAN"],
    "layers": ["_LOAD", "_DISTANCES", "_GROUPS"],
}


def options_of(command):
    "Name -> action, of a command's options."
    commands = next(one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    return {one.dest: one for one in commands.choices[command].filled()._actions}


def test_options_are_the_parameters_of_the_functions():
    "None is missing, none is there that nobody takes."
    of_data = {name for one in sources.SOURCES for name in one.names()}
    own = {"help", "model", "data", "tasks", "name", "out", "traceback", "seed"} | of_data
    for command, names in COMMANDS.items():
        taken = set()
        for call in (getattr(cli, name) for name in names):
            parameters = inspect.signature(sources.function_of(call.function)).parameters.values()
            taken |= {one.name for one in parameters if one.kind is not one.VAR_KEYWORD} - {
                *cli._NOT_OPTIONS,
                *call.without,
            }
            if call.only:
                taken &= set(call.only)
        found = set(options_of(command))
        assert taken <= found, (command, taken - found)
        assert found - taken <= own, (command, found - taken - own)
    assert "name" not in options_of("layers") and "name" not in options_of("plan")
    assert not {"alpha", "n_visual", "n_exhibits"} & set(options_of("plan"))


def test_help_is_the_comment():
    "With the names there are, and the default."
    told = helped("audit")
    assert "--k N Clusters to look for in the whole network, from 2 (default: 8)" in told
    assert "--n-controls N Random groups for each: until it is clear, or a fixed number" in told
    assert "audit only files you trust" in told and "--controls" not in told
    told = helped("layers")
    assert f"(of {', '.join(MEASURES)}; default: gw)" in told
    assert "--repeats N Samples of inputs, at least 1 (default: 3)" in told


def test_tasks_by_name_or_after_their_files():
    def asked(words):
        return _asked_for(_understood(f"audit hf:x {words}".split()))

    assert asked("--data digits") == {"": "digits"}
    assert asked("--data text:a/b.txt --data text:c.md") == {"b": "text:a/b.txt", "c": "text:c.md"}
    assert asked("--tasks one=m.py:f two=text:x=y.txt") == {"one": "m.py:f", "two": "text:x=y.txt"}
    assert _asked_for(_understood("layers hf:x --data text".split())) == {"": "text"}


def test_names_that_python_knows_and_a_shell_does_not(monkeypatch):
    "A parameter that nobody can type has to be named; the rest are typed by their annotation."
    kinds = {
        "int | Sequential": ("int", (), False),
        "str | Path | None": ("path text", (), False),
        "Literal['a', 'b'] | Callable[[int], int]": ("", ("a", "b"), False),
        "Sequence[Literal['a']]": ("", ("a",), True),
        "tuple[float, ...]": ("float", (), True),
        "Ablation": ("", ("zero", "mean", "class_mean", "resample"), False),
        "Sequence[Ablation]": ("", ("zero", "mean", "class_mean", "resample"), True),
        "int | tuple[int, int]": ("int", (), False),
        "Network | None": ("", (), False),
    }
    path = sources.file_of("lesions.lesion.Ablation")[0]
    for annotation, (types, names, many) in kinds.items():
        found = cli._Kind.of(cli.ast.parse(annotation, mode="eval").body, path)
        assert found == cli._Kind(frozenset(types.split()), names, many), annotation
    strange = Parameter("network", "Network | None", "None", "", True)
    with pytest.raises(
        RuntimeError, match=r"network: Network | None \(lesion.py\) cannot be given in a shell: name it"
    ):
        cli._add_option(argparse.ArgumentParser(), strange, path, {})


def test_what_is_refused_early_is_refused_by_the_functions():
    "The least numbers that the shell knows are not stricter than those of the functions."
    model, data = mlp((64, 8, 8, 10)).eval(), digits("test")
    for name in ("k", "n_controls", "n_visual"):
        with pytest.raises(ValueError):
            audit(model, data, **{"n_controls": 19, "n_visual": 2, "k": 2, name: cli._LEAST[name] - 1})
    for alpha in (0, 1):
        with pytest.raises(ValueError, match="alpha"):
            audit(model, data, alpha=alpha)


def test_a_table_is_read_without_importing_it(tmp_path, monkeypatch):
    "And where it is loaded, rows that were added count."
    assert cli._names_of("layers.measures.MEASURES") == list(MEASURES)
    monkeypatch.setitem(MEASURES, "dummy", MEASURES["cka"])
    assert cli._names_of("layers.measures.MEASURES")[-1] == "dummy"
    monkeypatch.delitem(sys.modules, "specialize_nb.layers.measures")
    assert cli._names_of("layers.measures.MEASURES") == list(MEASURES)[:-1]
    rows = "(Row('a', 1), Row(name='b'))"
    for written in ("{'a': 1, 'b': 2}", rows, f"{{row.name: row for row in {rows}}}"):
        assert list(cli._keys(cli.ast.parse(written, mode="eval").body)) == ["a", "b"]


def test_every_option_reaches_its_function(monkeypatch):
    "None is accepted and ignored: what is said arrives, and nothing else does but the words of a text, if it is one."
    given = {}

    class Stop(Exception):
        pass

    def called(self, *args, **others):
        given.update(others)
        raise Stop

    monkeypatch.setattr(_Call, "__call__", called)
    with lesson(), pytest.raises(Stop):
        main(f"{AUDIT} --controls 7 --scopes local --store kept --n-jobs 1 --seed 3 --alpha 0.1 --exhibits 2".split())
    assert given == dict(
        n_controls=7,
        scopes=["local"],
        store="kept",
        n_jobs=1,
        seed=3,
        alpha=0.1,
        n_exhibits=2,
        progress=False,
        words=None,
    )


# Mistakes


def test_mistakes():
    cases = {
        "": "arguments are required: COMMAND; see `specialize-nb --help`",
        "demos": "invalid choice: 'demos'",
        "audit": "arguments are required: MODEL; see `specialize-nb audit --help`",
        "audit m.py:f": "one of the arguments --data --tasks is required",
        "layers m.py:f": "arguments are required: --data; see `specialize-nb layers --help`",
        "layers m.py:f --data digits --tasks a=text": "unrecognized arguments: --tasks a=text",
        "plan m.py:f --data digits --tasks a=text b=text": "argument --tasks: not allowed with argument --data",
        "audit m.py:f --tasks a=text prose": "argument --tasks: 'prose' is no NAME=DATA, such as code=text:code.txt",
        f"{AUDIT} --data digits": "--data: two tasks are called 'digits'; name them with --tasks NAME=DATA NAME=DATA",
        "audit my_model.py:make_model --tasks a=digits": "--tasks names 1 task, 'a': name two or more, or say digits with",
        "audit my_model.py:make_model --tasks a=digits b=dgits": "no data 'dgits': did you mean 'digits'",
        "audit my_model.py:make_model --tasks a=digits b=text --size 8": "--size does not go with --data digits",
        "audit m.py:f --data digits --k 1": "argument --k: 1 is too few; give 2 or more",
        "audit m.py:f --data digits --k x": "argument --k: 'x' is no whole number",
        "audit m.py:f --data digits --alpha x": "argument --alpha: 'x' is no number",
        "audit m.py:f --data digits --alpha 5": "argument --alpha: 5 is no rate; give a number between 0 and 1",
        "audit m.py:f --data digits --graphs wieghts": "argument --graphs: invalid choice: 'wieghts'",
        "audit m.py:f --data digits --outcomes accuracy_7 acuracy": "argument --outcomes: invalid choice: 'acuracy'",
        "audit m.py:f --data digits --ablation zerro": "argument --ablation: invalid choice: 'zerro' (choose "
        "from zero, mean, class_mean, resample); did you mean 'zero'?",
        "audit m.py:f --data digits --split tset": "argument --split: invalid choice: 'tset' (choose from train, test); "
        "did you mean 'test'?",
        "plan m.py:f --data digits --alpha 0.1": "unrecognized arguments: --alpha 0.1; see `specialize-nb plan --help`",
        "plan m.py:f --data digits --important 0.1": "unrecognized arguments: --important 0.1",
        "layers m.py:f --data digits --measure cka --max-iter 9": "--max-iter: goes with --measure gw, not with --measure "
        "cka; see `specialize-nb layers --help`",
        "layers m.py:f --data digits --name x": "unrecognized arguments: --name x",
        f"{AUDIT} --contrls 8": "unrecognized arguments: --contrls 8; did you mean --n-controls?",
        f"{AUDIT} --size 8": "--size does not go with --data digits",
        "audit my_model.py:make_modle --data digits": "did you mean 'make_model'",
        f"{AUDIT} --out my_model.py": "'my_model.py' is a file, not a folder",
        f"{AUDIT} --out . --name taken": "'taken' exists and is no saved audit",
        f"{AUDIT} --task number": "argument --task: invalid choice: 'number' (choose from classes, dense, labels, numbers, none)",
        f"{AUDIT} --task numbers": "the targets have 1 number to predict an example, and the model puts out 10",
        "audit my_model.py:make_model --data my_model.py:make_numbers --outcomes kl": "'kl'",
        f"{AUDIT} --output logits": "has no output 'logits': it is alone and has no name",
        f"{AUDIT} --scores probabilities": "they are no probabilities",
        "audit my_model.py:make_model --data my_model.py:make_flat": "the model does not take the data",
        "demo --out my_model.py": "'my_model.py' is a file",
        "report nowhere": "no saved audit 'nowhere': there is no such file or folder",
        "report taken": "no saved audit 'taken': it has no audit.npz",
        "report my_model.py": "'my_model.py' is not a result",
    }
    with lesson():
        Path("taken").mkdir()
        told = {given: refused(*given.split()) for given in cases}
    for given, pattern in cases.items():
        assert pattern in told[given], (given, told[given])


def test_layers_too_few_for_groups():
    "Known before any distance is computed or a file is written."
    with lesson() as folder:
        few = refused(*"layers my_model.py:make_model --data digits --examples 20".split())
        named = refused(*"layers my_model.py:make_model --data digits --layers 1 3".split())
        assert [one.name for one in folder.iterdir() if one.is_dir() and one.name != "__pycache__"] == []
    assert few == "Sequential has 3 layers ('1', '3', '5'); groups need at least 4"
    assert named == "--layers has 2 layers ('1', '3'); groups need at least 4"


def test_statuses():
    with lesson():
        stopped = run("audit", "my_model.py:make_stop", "--data", "digits")
        told = run("audit", "my_model.py:make_error", "--data", "digits", "--traceback")
    assert stopped == (130, "", "specialize-nb: stopped\n")
    assert told[0] == 2 and told[2].startswith("Traceback") and "specialize-nb: calling" in told[2].splitlines()[-1]
    assert run("--version") == (0, f"specialize-nb {__version__}\n", "")


# The commands


def test_audit():
    small = (
        "--k 4 --graphs weights --scopes global --controls 19 --visual 3 --exhibits 1 --examples 60 --jobs 1 --seed 7"
    )
    with lesson() as folder:
        status, out, err = run(*AUDIT.split(), "--name", "Tiny Net", *small.split())
        assert status == 0, err
        *_, last = out.splitlines()
        page = folder.resolve() / "audit-make_model" / "index.html"
        assert last == f"report: {page}" and "Tiny Net" in page.read_text()
        file = folder / "audit-make_model" / "tiny-net" / "audit.npz"
        kept = Audit.load(file)
        assert " ".join(out.split()).startswith(kept.verdict)
        assert (kept.settings["n_controls"], kept.settings["seed"]) == (19, 7)
        assert [one.name for one in kept.findings] == ["weights, global"]
        for given in ("audit-make_model", "audit-make_model/tiny-net", str(file)):
            status, out, err = run("report", given, "--out", "again.html")
            assert status == 0 and Path("again.html").read_bytes() == page.read_bytes(), err
    assert kept.data == "digits, test split"
    assert kept.settings["activation clusters found in"] == "every other example of digits, test split"


def test_plan():
    with lesson():
        small = "--k 4 --graphs weights --scopes global --n-controls 19 --examples 60 --n-jobs 1"
        status, out, err = run("plan", "my_model.py:make_model", "--data", "digits", *small.split())
    assert status == 0, err
    first, *more = out.splitlines()
    assert first.startswith("weights, global: about") and "lesions of" in first
    told = " ".join(more)
    assert re.fullmatch(
        r"together about .+ \(likely .+ to .+\); memory: about [\d.]+ .?B, beside Python and its libraries; "
        r"disk: the results at most [\d.]+ .?B, and the report; coherence and pictures come on top of the time",
        told,
    ), told
    with lesson():
        few = f"plan my_model.py:make_model --data digits --memory 1e-9 {small}"
        kept = run(*f"plan my_model.py:make_model --data digits --store kept {small}".split())[1]
        status, _, err = run(*few.split())
    assert "and finished lesions at most" in " ".join(kept.split())
    assert status == 2 and "GB of memory, and memory=1e-09 allows less" in err


def test_tasks():
    "What the targets are is read from them, or said; the page says what the intact network does in terms of it."
    small = "--k 3 --graphs weights --scopes global --controls 19 --visual 1 --steps 2 --exhibits 1 --n-boot 5 --jobs 1"
    cases = {
        "make_numbers": ("", "numbers", "squared error"),
        "make_many": ("", "labels", "labels right"),
        "make_bare": ("", "none", "targets"),
        "make_data": ("--task none", "none", "targets"),
        "make_many --task numbers": ("", "numbers", "squared error"),
    }
    with lesson() as folder:
        for given, (more, task, told) in cases.items():
            asked = f"audit my_model.py:make_model --data my_model.py:{given} {more} {small} --out found"
            status, out, err = run(*asked.split())
            assert status == 0, err
            kept = Audit.load(folder / "found" / "sequential" / "audit.npz")
            page = Path("found/index.html").read_text("utf-8")
            assert kept.task == task and f"<dt>{told}</dt>" in page and "accuracy</dt>" not in page
            assert kept.notes and all(note in " ".join(out.split()) for note in kept.notes)
        status, out, err = run(*f"plan my_model.py:make_model --data my_model.py:make_bare {small}".split()[:-10])
        assert status == 0 and "There are no targets" in out, err
        assert "together about" in out


def test_layers():
    with lesson() as folder:
        Path("deep.py").write_text(
            "from specialize_nb import mlp\ndef make():\n    return mlp((64, 16, 16, 16, 16, 16, 10))\n"
        )
        asked = "layers deep.py:make --data digits --examples 60 --n 40 --measure cka --jobs 1".split()
        status, out, err = run(*asked)
        assert status == 0, err
        written = folder.resolve() / "layers-make"
        assert out.splitlines()[-1] == f"written: {written}"
        kept = {path.name for path in written.iterdir()}
        layers, pairs = pd.read_csv(written / "groups.csv"), pd.read_csv(written / "distances.csv")
        refused_measure = run(*asked[:-2], "--measure", "cca")
        status, out, err = run(*asked, "--n-groups", "2", "--out", "two")
        assert status == 0 and pd.read_csv("two/groups.csv")["group"].nunique() == 2
    assert kept == {"distances.csv", "groups.csv", "layers.png"} and len(pairs) == len(layers) * (len(layers) - 1) / 2
    assert set(pairs["measure"]) == {"cka"} and pairs["sd"].notna().all()
    assert refused_measure[0] == 2 and "argument --measure: invalid choice: 'cca'" in refused_measure[2]


def test_demo(monkeypatch):
    "All of it but the training, and with an audit made small."
    whole, seen = _Call.__call__, []

    def small(self, model, *args, **chosen):
        seen.append(chosen)
        less = dict(k=8, graphs=("weights",), scopes=("local",), n_controls=19, n_visual=1, n_exhibits=0)
        less |= dict(depth="keep")  # which is quick
        if isinstance(args[0], dict):  # of several tasks
            less |= dict(n_boot=2, matched=False)
        return whole(self, model, *args, **chosen | less)

    monkeypatch.setattr(_Call, "__call__", small)
    monkeypatch.setattr("specialize_nb.training.fit.fit", lambda model, *_, **__: model.eval())
    tiny = dict(width=8, depth=1, heads=2)
    monkeypatch.setattr("specialize_nb.training.models.transformer", lambda **sizes: transformer(**sizes | tiny))
    few = sources.load_data
    monkeypatch.setattr(sources, "load_data", lambda given, **options: few(given, **options | {"examples": 8}))
    with lesson() as folder:
        status, out, err = run("demo", "--n-jobs", "1", "--seed", "2")
        assert status == 0, err
        kept = {name: Audit.load(folder / "report" / name / "audit.npz") for name in ("mlp", "cnn", "transformer")}
        page = (folder / "report" / "index.html").read_text("utf-8")
        assert out.splitlines()[-1] == f"report: {folder.resolve() / 'report' / 'index.html'}"
    *digital, textual = seen
    assert [(one["seed"], one["find"].y.shape) for one in digital] == [(2, (1347,))] * 2
    assert textual["seed"] == 2 and list(textual["find"]) == ["code", "prose"] and textual["scopes"] == ("global",)
    assert [kept[name].data for name in ("mlp", "cnn")] == ["digits, test split"] * 2
    language = kept["transformer"]
    assert language.data == "code and prose of Python, test split" and set(language.settings["tasks"]) == {
        "code",
        "prose",
    }
    assert [one.tasks for one in language.dissociations.values()] == [("code", "prose")]
    assert page.count("<h3>Tasks</h3>") == 1 and language.dissociations["weights, local"].in_words()[1] in page
    assert "Transformer: trained, gets " in out and "right, letter by letter; auditing" in out
    assert kept["cnn"].settings["activation clusters found in"] == "digits, train split"


def test_another_source_in_the_shell(monkeypatch):
    "One row more is a name more, and an option for each parameter of its function."
    row = sources.Source(name="sums", reads="base.data.modular_addition", fixed={"p": 5}, thins=False)
    monkeypatch.setattr(sources, "SOURCES", (*sources.SOURCES, row))
    assert "sums" in helped("audit") and "--share NUMBER sums: Of the p * p pairs" in helped("audit")
    with lesson():
        Path("embed.py").write_text(
            "from torch import nn\ndef make():\n"
            "    parts = nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 5)\n"
            "    return nn.Sequential(*parts)\n"
        )
        small = "--k 2 --graphs weights --scopes local --n-controls 19 --n-jobs 1 --share 0.9"
        status, out, err = run(*"audit embed.py:make --data sums".split(), *small.split())
        assert status == 0 and Audit.load("audit-make/sequential/audit.npz").data == "sums", err


# In a process of its own


def test_process():
    command = shutil.which("specialize-nb", path=Path(sys.executable).parent)
    asked = subprocess.run([command, "report", "nowhere"], capture_output=True, text=True)
    assert asked.returncode == 2 and asked.stdout == ""
    assert asked.stderr.splitlines()[-1] == "specialize-nb: no saved audit 'nowhere': there is no such file or folder"
    assert "Traceback" not in asked.stderr
    asked = subprocess.run([sys.executable, "-m", "specialize_nb", "--version"], capture_output=True, text=True)
    assert asked.returncode == 0 and asked.stdout == f"specialize-nb {__version__}\n"


LIGHT = [
    "--help",
    "--version",
    *(f"{command} --help" for command in ("demo", "audit", "plan", "layers", "report")),
    "audit m.py:f --data digits --k 1",
    "audit m.py:f --data digits --graphs wieghts",
    "audit m.py:f --data digits --ablation zerro",
    "layers m.py:f --data digits --measure cca",
    "audit nowhere.py:make --data digits",
    "audit my_model.py:make_model --data mnits",
    "audit my_model.py:make_model --data digits --size 3",
    "audit my_model.py:make_model --data digits --weights nowhere.pt",
    "audit my_model.py:make_model --data digits --out my_model.py",
    "layers my_model.py:make_model --data digits --layers 1",
    "report nowhere",
]


def test_nothing_heavy_is_imported_for_help_and_usage_errors():
    code = """if True:
        import sys
        from specialize_nb.audits.cli import main
        for words in sys.argv[1:]:
            main(words.split())
            heavy = {"torch", "numpy", "pandas", "matplotlib", "scipy", "sklearn", "torchvision"} & set(sys.modules)
            assert not heavy, (words, heavy)
        print("light")"""
    with lesson():
        asked = subprocess.run([sys.executable, "-c", code, *LIGHT], capture_output=True, text=True)
    assert asked.returncode == 0 and asked.stdout.endswith("light\n"), asked.stderr
    assert asked.stderr.count("\n") == len(LIGHT) - 7  # one line for each mistake


def test_shared_options_mean_one_thing():
    "Two functions of a command that take an option of one name are given the same."
    with lesson():
        Path("deep.py").write_text("from specialize_nb import mlp\ndef make():\n    return mlp((64, 9, 9, 9, 9, 10))\n")
        asked = "layers deep.py:make --data digits --examples 40 --n 20 --measure cka --n-jobs 1 --seed 5".split()
        given = {}
        with pytest.MonkeyPatch.context() as patch:
            whole = _Call.__call__

            def called(self, *args, **others):
                given[self.function.split(".")[-1]] = others.get("seed")
                return whole(self, *args, **others)

            patch.setattr(_Call, "__call__", called)
            status, _, err = run(*asked)
    assert status == 0 and given == {"layer_distances": 5, "layer_groups": 5}, err
