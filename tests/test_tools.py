"""The checks of CI notice what they are for: each is shown one fault, and nothing where there is none."""

import base64
import importlib.util
import json
import shutil
import subprocess
import sys
from itertools import pairwise
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


plans = load("tools/house.py")
check = load("tools/check_notebooks.py")
walls = load("tools/check_walls.py")
docstrings = load("tools/docstrings.py")
offline = load("tools/check_offline.py")
readme = load("tools/readme.py")
stories = load("tools/stories.py")
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


HEAD = text("# Toys\n\n> Something small"), code("#| default_exp wing.toy")


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        (text("Toys"), "no `# title`"),
        (text("# toy\n\n> Something small"), "say in words"),
        (text("# wing.toy\n\n> Something small"), "say in words"),
        (text("# Toys"), "no `> sentence`"),
        (text("# Toys\n\n> " + "word " * 16), "16 words"),
        (HEAD[0], None),
    ],
)
def test_title(tmp_path, head, fault):
    found = "; ".join(check.title(notebook(tmp_path, head, HEAD[1])))
    assert fault in found if fault else not found


@pytest.mark.parametrize(
    ("path", "cell", "fault"),
    [
        ("nbs/00_toy.ipynb", code("#| default_exp wing.toy"), None),
        ("nbs/00_toy.ipynb", code("#| default_exp wing.toy\n#| export\n1"), None),
        ("nbs/00_toy.ipynb", code("#| default_exp toy"), "a room of a wing"),
        ("nbs/00_tour.ipynb", code("1"), None),  # a page of the course may export nothing
        ("nbs/toy.ipynb", code("#| default_exp wing.toy"), "has no number"),
        ("nbs/00a_toy.ipynb", code("#| default_exp wing.toy"), "has no number"),
        ("nbs/index.ipynb", code("1"), None),
        ("nbs/index.ipynb", code("#| export\n1"), "exports, and no `#| default_exp`"),
        ("nbs/rooms/wing_toy.ipynb", code("#| default_exp wing.toy"), None),
        ("nbs/rooms/toy.ipynb", code("#| default_exp wing.toy"), "must be named wing_toy.ipynb"),
        ("nbs/rooms/wing_toy.ipynb", code("1"), "defines no module"),
        ("nbs/studies/toy.ipynb", code("1"), None),
        ("nbs/studies/toy.ipynb", code("#| exporti\n1"), "exports, and no `#| default_exp`"),
        ("nbs/studies/toy.ipynb", code("#| default_exp wing.toy"), "belong in the course"),
    ],
)
def test_place(tmp_path, monkeypatch, path, cell, fault):
    monkeypatch.setattr(check, "ROOT", tmp_path)
    made = tmp_path / path
    made.parent.mkdir(parents=True)
    notebook(tmp_path, HEAD[0], cell).path.rename(made)
    found = "; ".join(check.place(check.Notebook(made)))
    assert fault in found if fault else not found


FOLDED = text("## Checks") | dict(metadata={"jp-MarkdownHeadingCollapsed": True})
TEST = code("#| test toy\nassert True")


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ((FOLDED, TEST, text("### More"), TEST), None),
        ((text("## One"), code("1")), None),  # a page without tests needs no such section
        ((TEST, FOLDED), "outside the section"),
        ((text("## One"), TEST), "outside the section"),
        ((code("#| test setup\n1"), FOLDED, TEST), None),  # it may be a lesson as well
        ((FOLDED, TEST, text("## More")), "must be the last"),
        ((FOLDED, code("#| exporti\nx = 1")), "exports from the section"),
        ((text("## Checks"), TEST), "is not folded"),
    ],
)
def test_checks(tmp_path, cells, fault):
    found = "; ".join(check.checks(notebook(tmp_path, *HEAD, *cells)))
    assert fault in found if fault else not found


def test_nbdev_clean_keeps_the_fold(tmp_path):
    path = notebook(tmp_path, *HEAD, FOLDED | dict(metadata=FOLDED["metadata"] | dict(other=1)), TEST).path
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [Path(sys.executable).with_name("nbdev-clean"), "--fname", path.name]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    heading = check.Notebook(path).cells[2]
    assert heading["metadata"] == {"jp-MarkdownHeadingCollapsed": True}


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
        (code("x;"), "the last cell of the story shows nothing"),
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
        ("`planted_mlp` and `testing.planted_mlp` and `specialize_nb.dev.testing.planted_mlp(seed=1)`", None),
        ("`dev.testing.planted_mlp` and `dev.testing` and `dev`", None),
        ("`dev.testing.no_such_name`", "`dev.testing.no_such_name`"),
        ("`dev.no_such_room`", "`dev.no_such_room`"),
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


def package_of(root, **modules):
    """A house `toy` of the wings low and high: `low__a="..."` is the source of `toy.low.a`, `high` of its `__init__`."""
    files = dict(__init__="", low="", high="") | modules
    for name, source in files.items():
        path = root / "toy" / name.replace("__", "/") if name != "__init__" else root / "toy" / name
        path = path / "__init__.py" if name in ("low", "high") else path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return plans.House(root / "toy", ("low", "high"))


@pytest.mark.parametrize(
    ("modules", "fault"),
    [
        (
            dict(low__a="x = 1", high__b="from toy.low.a import x\nfrom ..low import a\nfrom toy import __version__"),
            None,
        ),
        (
            dict(low__a="from toy.high.b import x", high__b=""),
            "toy.low.a, line 1 imports toy.high.b: high comes after low",
        ),
        (dict(low__a="def f():\n    from ..high import b", high__b=""), "line 2 imports toy.high.b"),
        (dict(low__a="import toy.high.b as b", high__b=""), "imports toy.high.b"),
        (dict(low__a="import_module('toy.high.b')", high__b=""), "imports toy.high.b"),
        (dict(low__a="from toy import x"), "which stands above all wings"),
        (dict(middle__a="", middle____init__=""), "the wing 'middle' has no place"),
    ],
)
def test_no_import_runs_up(tmp_path, modules, fault):
    found = "; ".join(walls.upward(package_of(tmp_path, **modules)))
    assert fault in found if fault else not found


def test_every_wing_of_the_order_is_there(tmp_path):
    package_of(tmp_path)
    house = plans.House(tmp_path / "toy", ("low", "high", "gone"))
    assert list(walls.upward(house)) == ["there is no wing 'gone', which tools/house.py lists"]


def test_no_imports_run_in_a_circle(tmp_path):
    house = package_of(
        tmp_path, low__a="from . import b", low__b="def f():\n    from .c import g", low__c="from .a import h"
    )
    (fault,) = walls.circles(house)
    ring = fault.removeprefix("imports run in a circle: ").split(" -> ")
    assert ring[0] == ring[-1] and set(pairwise(ring)) == {
        ("toy.low.a", "toy.low.b"),
        ("toy.low.b", "toy.low.c"),
        ("toy.low.c", "toy.low.a"),
    }
    assert not list(walls.circles(package_of(tmp_path, low__c="")))


@pytest.mark.parametrize(
    ("user", "fault"),
    [
        ("from .a import f\nf()._replace(x=1)\n__name__", None),
        ("from .a import f\n\n\nclass B:\n    def __init__(self):\n        self._kept = f\n        self._kept", None),
        ("from .a import _g", "imports the private '_g' of toy.low.a"),
        ("from . import a\na._g()", "reaches for '_g', which is private to toy.low.a"),
        ("from .a import A\nA()._kept", "reaches for '_kept'"),
        ("from .a import A\ngetattr(A(), '_kept')", "reaches for '_kept'"),
        ("from .a import A\n\n\nclass B(A):\n    def f(self):\n        return self._kept", "reaches for '_kept'"),
    ],
)
def test_no_private_name_crosses_a_wall(tmp_path, user, fault):
    own = "def f():\n    pass\n\n\ndef _g():\n    pass\n\n\nclass A:\n    def __init__(self):\n        self._kept = 1"
    found = "; ".join(walls.private(package_of(tmp_path, low__a=own, low__b=user)))
    assert fault in found if fault else not found


def test_tests_and_notebooks_look_into_their_own_module_only(tmp_path):
    house = package_of(tmp_path, low__a="def _g():\n    pass", low__b="", high__c="")
    look = "from toy.low.a import _g\nfrom toy.low import a\na._g()"
    for folder in ("tests", "bench", "nbs"):
        (tmp_path / folder).mkdir()
    for path in ("tests/test_low_a.py", "tests/test_low_both.py", "tests/test_high_c.py", "bench/one.py"):
        (tmp_path / path).write_text(look)
    for name in ("low.a", "low.b"):
        cells = [code(f"#| default_exp {name}"), code("!ls"), code(look)]
        (tmp_path / "nbs" / f"{name}.ipynb").write_text(json.dumps(dict(cells=cells)))
    found = {fault.split(",")[0].split(":")[0] for fault in walls.outside(house, tmp_path)}
    assert found == {"tests/test_high_c.py", "bench/one.py", "nbs/low.b.ipynb"}


@pytest.mark.parametrize(
    ("package", "stub", "fault"),
    [
        ("", "", None),
        ("x = 1\nfrom .a import f", "from .low.a import f as f", None),
        ("from .a import f as a", "", "toy.low binds the name 'a'"),
        ("def a():\n    pass", "", "toy.low binds the name 'a'"),
        ("a = 1", "", "toy.low binds the name 'a'"),
        ("from . import a", "", None),
        ("", "from .low.a import f as low", "toy binds the name 'low'"),
    ],
)
def test_no_module_is_shadowed(tmp_path, package, stub, fault):
    house = package_of(tmp_path, low=package, low__a="def f():\n    pass")
    (tmp_path / "toy" / "__init__.pyi").write_text(stub)
    found = "; ".join(walls.shadowed(house))
    assert fault in found if fault else not found


def test_every_dotted_path_leads_to_its_module():
    for name, module in plans.House().modules.items():
        if not module.room.startswith("_"):
            imported = importlib.import_module(name)
            found = importlib.import_module("specialize_nb")
            for part in name.split(".")[1:]:
                found = getattr(found, part)
            assert found is imported, name


def test_tools_of_authors_stay_in_dev(tmp_path):
    house = package_of(
        tmp_path, low__a="import torch\nfrom nbdev.config import x", high__b="import numpy, pytest.raises"
    )
    assert [fault.split(", ")[0] for fault in walls.needs(house)] == ["toy.high.b", "toy.low.a"]


def test_braces_in_globs():
    assert set(walls.expanded("p/{a/{b,c},d/*}.py")) == {"p/a/b.py", "p/a/c.py", "p/d/*.py"}
    assert walls.expanded("p/a.py") == ["p/a.py"]


def test_lists_of_generated_modules(tmp_path):
    made = f"{plans.GENERATED}../../nbs/a.ipynb."
    house = package_of(tmp_path, low__a=made, low__b="", high__c=made)
    lists = '"toy/{low/a,high/c}.py"\n"toy/{low/[a-z]*}.py"'
    (tmp_path / "pyproject.toml").write_text(lists)
    (tmp_path / ".gitattributes").write_text("toy/low/a.py linguist-generated\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert [fault.rpartition(": ")[2] for fault in walls.generated(house, tmp_path)] == [
        "toy/high/c.py is generated and not listed",
        "toy/low/b.py is listed and not generated",
        "toy/high/c.py is generated and not listed",
    ]
    assert house.modules["toy.low.a"].notebook == tmp_path / "nbs" / "a.ipynb"


def test_the_list_of_wings(tmp_path, capsys, monkeypatch):
    house = package_of(tmp_path, low='"""The low one."""', low__a="", low__b="from . import a", high='"""High."""')
    assert "| `low` | The low one | `a`, `b` |\n| `high` | High |  |\n" in plans.listed(house)
    path = tmp_path / "CONTRIBUTING.md"
    path.write_text(f"before\n{plans.BEGIN}old\n{plans.END}\nafter\n")
    monkeypatch.setattr(plans, "House", lambda: house)
    assert plans.main(True, path) == 1 and "make export" in capsys.readouterr().out
    assert plans.main(False, path) == 0 and plans.main(True, path) == 0
    made = path.read_text()
    assert made.startswith("before\n") and made.endswith(f"{plans.END}\nafter\n") and "old" not in made


def test_docstrings_of_plain_modules(tmp_path, capsys):
    source = 'def f(\n    a,  # One\n):\n    """What?"""\n'
    house = package_of(tmp_path, low__a=source, low__b=f"{plans.GENERATED}../../nbs/b.ipynb.\n{source}")
    assert docstrings.main(True, house) == 1 and "toy/low/a.py" in capsys.readouterr().out
    assert docstrings.main(False, house) == 0
    assert "        One\n" in (tmp_path / "toy" / "low" / "a.py").read_text()
    assert "        One\n" not in (tmp_path / "toy" / "low" / "b.py").read_text()
    assert docstrings.main(True, plans.House(tmp_path / "toy", ("low", "high"))) == 0


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
    assert one.row() == "| a | 2 (1 to 9) | 4 (0.5 to 5) | 0.556 | b | both None | 3 |"


# Stories


def test_a_story_ends_where_its_checks_begin():
    cells = [("markdown", "# Title"), ("code", "x = 1  # ## Checks"), ("markdown", "## Checks"), ("code", "assert x")]
    notebook = {"cells": [{"cell_type": kind, "source": [source]} for kind, source in cells], "nbformat": 4}
    assert stories.story(notebook) == notebook | {"cells": notebook["cells"][:2]}
    short = notebook | {"cells": notebook["cells"][:2]}
    assert stories.story(short) == short
