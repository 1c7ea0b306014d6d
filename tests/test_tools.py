"""The checks of CI notice what they are for: each is shown one fault, and nothing where there is none."""

import base64
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    path = ROOT / name
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


check = load("tools/check_notebooks.py")
offline = load("tools/check_offline.py")
readme = load("tools/readme.py")
harness = load("bench/harness.py")


def code(source, *outputs):
    return dict(cell_type="code", id="x", metadata={}, execution_count=None, source=source, outputs=list(outputs))


def text(source):
    return dict(cell_type="markdown", id="x", metadata={}, source=source)


def shown(value="1", kind="text/plain"):
    return dict(output_type="execute_result", metadata={}, execution_count=None, data={kind: value})


def stream(value, name="stdout"):
    return dict(output_type="stream", name=name, text=value)


def notebook(tmp_path, *cells):
    path = tmp_path / "00_toy.ipynb"
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return check.Notebook(path)


HEAD = text("# toy\n\n> Something small"), code("#| default_exp toy")


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        (text("toy"), "no `# title`"),
        (text("# other\n\n> Something small"), "must be the same"),
        (text("# toy"), "no `> sentence`"),
        (text("# toy\n\n> " + "word " * 16), "16 words"),
        (HEAD[0], None),
    ],
)
def test_title(tmp_path, head, fault):
    found = "; ".join(check.title(notebook(tmp_path, head, HEAD[1])))
    assert fault in found if fault else not found


@pytest.mark.parametrize(
    ("path", "cell", "fault"),
    [
        ("nbs/00_toy.ipynb", code("#| default_exp toy"), None),
        ("nbs/00_toy.ipynb", code("#| default_exp toy\n#| export\n1"), None),
        ("nbs/00_toy.ipynb", code("1"), "defines no module"),
        ("nbs/index.ipynb", code("1"), None),
        ("nbs/index.ipynb", code("#| export\n1"), "exports, and no `#| default_exp`"),
        ("nbs/studies/toy.ipynb", code("1"), None),
        ("nbs/studies/toy.ipynb", code("#| exporti\n1"), "exports, and no `#| default_exp`"),
        ("nbs/studies/toy.ipynb", code("#| default_exp toy"), "belong in nbs/ itself"),
    ],
)
def test_place(tmp_path, monkeypatch, path, cell, fault):
    monkeypatch.setattr(check, "ROOT", tmp_path)
    made = tmp_path / path
    made.parent.mkdir(parents=True)
    notebook(tmp_path, HEAD[0], cell).path.rename(made)
    found = "; ".join(check.place(check.Notebook(made)))
    assert fault in found if fault else not found


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("#| export\ndef f():\n" + "    x = 1\n\n" * 40, "exports 41 lines"),
        ("#| export\ndef f():\n" + "    x = 1\n\n" * 39, None),
        ("x = 1\n" * 60, None),
        ("import os\nx = 1", "mixes imports"),
        ("import os\nfrom sys import path", None),
        ("nbdev_export()", "calls nbdev_export"),
    ],
)
def test_export_cells(tmp_path, source, fault):
    found = "; ".join(check.export_cells(notebook(tmp_path, *HEAD, code(source))))
    assert fault in found if fault else not found


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        (code("x"), "none of it is stored"),
        (code("!make"), "none of it is stored"),
        (code("f(x)", shown()), None),
        (code("x;"), "the last cell shows nothing"),
        (code("x", shown()), None),
        (code("x", shown("/home/someone/x")), "stores '/home"),
        (code("x", shown("see https://a.org/home/x and ratio 3/tmp")), None),
        (code("x", shown("<Net at 0x7f10a2b3c4d5>")), "0x7f10"),
        (code("x", shown("<b>site-packages</b>", "text/html")), "site-packages"),
        (code("x", stream("<ipython-input-6-ed>:4: bad")), "ipython-input"),
        (code("x", stream("oops", "stderr")), "written to stderr"),
        (code("x", stream("a.py:4: RuntimeWarning: ties")), "stores a warning: 'RuntimeWarning: ties'"),
        (code("x", dict(output_type="error", ename="KeyError", evalue="", traceback=[])), "stores an error: KeyError"),
        (code("x", shown(base64.b64encode(bytes(100_001)).decode(), "image/png")), "picture of 100,001 bytes"),
        (code("x", shown(base64.b64encode(b"/tmp/0x7f10a2b3c4d5").decode(), "image/png")), None),
        (code("x", *[shown("1" * 200_001)] * 5), "1,000,005 bytes of output"),
    ],
)
def test_outputs(tmp_path, cell, fault):
    found = "; ".join(check.outputs(notebook(tmp_path, *HEAD, cell)))
    assert fault in found if fault else not found


@pytest.fixture(scope="module")
def package():
    return check.Package()


@pytest.mark.parametrize(
    ("prose", "fault"),
    [
        ("`planted_mlp` and `testing.planted_mlp` and `specialize_nb.testing.planted_mlp(seed=1)`", None),
        ("`planted_network`", "`planted_network`"),
        ("`Planted.labels` and `Planted.count()`, which tuples have", None),
        ("`Planted.colour`", "`Planted.colour`"),
        ("`testing.no_such_name`", "`testing.no_such_name`"),
        ("`here` is in the notebook, `nowhere_at_all` is not", "`nowhere_at_all`"),
        ("`n_modules=3`, `a + b`, `make test`, `nbs/x.ipynb`, ```no_such_name```", None),
        ("```\nno_such_name `no_such_name`\n```", None),
        ("<!-- `no_such_name` -->", None),
    ],
)
def test_names_in_prose(tmp_path, package, prose, fault):
    found = list(check.names_in_prose(notebook(tmp_path, *HEAD, text(prose), code("here = 1")), package))
    assert (len(found) == 1 and found[0].startswith(fault)) if fault else not found


def test_sidebar(tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "sidebar.yml").write_text("contents:\n  - 00_a.ipynb\n  - tutorials/b.ipynb\n")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    found = list(check.sidebar([tmp_path / "nbs" / "00_a.ipynb", tmp_path / "nbs" / "01_c.ipynb"]))
    assert found == ["nbs/sidebar.yml: 01_c.ipynb is missing from it", "nbs/sidebar.yml: there is no tutorials/b.ipynb"]


@pytest.mark.parametrize(
    ("page", "loads"),
    [
        ("<script src='https://a.org/x.js'></script>", True),
        ("<link rel=stylesheet href='//a.org/x.css'>", True),
        ("<img src='http://a.org/x.png'>", True),
        ("<style>@import 'https://a.org/x.css'</style>", True),
        ("<div style='background: url(https://a.org/x.png)'></div>", True),
        ("<script>fetch('https://a.org/x')</script>", True),
        ("<a href='https://a.org'>a</a><link rel=canonical href='https://a.org'>", False),
        ("<img src='data:image/png;base64,AAAA'><script src='_static/x.js'></script>", False),
        ("<svg xmlns='http://www.w3.org/2000/svg'></svg> https://a.org/x.js", False),
    ],
)
def test_offline(tmp_path, page, loads):
    (tmp_path / "index.html").write_text(page)
    assert offline.main([str(tmp_path)]) == loads


def test_offline_needs_a_page(tmp_path):
    (tmp_path / "x.css").touch()
    assert offline.main([str(tmp_path)]) == 1


def test_readme(tmp_path, monkeypatch, capsys):
    figure = shown("AAAA", "image/png") | {"data": {"image/png": "AAAA", "text/plain": "<Figure>"}}
    cells = [
        text(
            '# toy {#sec-a}\n\n> Small\n\n::: {.callout-note title="T"}\nMind\n\nthis\n:::\n\n[a](00_a.ipynb), [b](../b.md)'
        ),
        code("#| hide\nimport secret"),
        code("x = 1\nx", shown("1")),
        code("!make test", stream("ok\n")),
        code("#| echo: false\nplot()", figure),
    ]
    path = notebook(tmp_path, *cells).path
    monkeypatch.setattr(readme, "INDEX", path)
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    assert readme.main(check=False) == 0
    written = (tmp_path / "README.md").read_text()
    assert "# toy\n\n> Small\n\n> [!NOTE]\n> Mind\n>\n> this\n\n[a](nbs/00_a.ipynb), [b](b.md)\n" in written
    assert "```python\nx = 1\nx\n```\n\n```text\n1\n```\n\n```sh\nmake test\n```\n\n```text\nok\n```\n" in written
    assert "secret" not in written and "Figure" not in written and "plot" not in written
    assert readme.main(check=True) == 0
    (tmp_path / "README.md").write_text(written + "edited by hand")
    assert readme.main(check=True) == 1 and "make export" in capsys.readouterr().out


def test_harness_takes_turns():
    calls = []
    race = harness.Race(lambda: calls.append("ours"), lambda: calls.append("peer"), lambda mine, theirs: "both None")
    one = harness.Measure("a", "b", 3, lambda: race)
    one.run()
    assert calls == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert len(one.ours_s) == len(one.peer_s) == 3 and one.agreement == "both None"
    one.ours_s[:], one.peer_s[:] = [1.0, 9.0, 2.0], [4.0, 5.0, 0.5]
    assert one.row() == "| a | 2 (1 to 9) | 4 (0.5 to 5) | 2 | b | both None | 3 |"
