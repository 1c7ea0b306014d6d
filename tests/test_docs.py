"""How notebooks become pages: quarto's markdown as MyST, export cells as entries of the reference."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(path):
    path = ROOT / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plans = load("tools/house.py")
reference = load("docs/reference.py")
drawing = load("docs/drawing.py")
pages = load("docs/pages.py")

CODE = '''
@dataclass
class _Base:
    size: int  # Units, at least 1

    def halved(self) -> "Thing":
        """Half of it."""


class Thing(_Base, Known):
    """What it is.

    Raises: `ValueError`
    Source: someone
    """

    name: str | None = None  # With | and 2 * 3 * 4
    _hidden: int = 0

    @property
    def area(self) -> float:
        """How large?"""

    @classmethod
    def make(
        cls,
        a: int,  # First
        *rest: float,  # Others
        scale: tuple = (
            1.0,
            2.0,
        ),  # Of `a`
        **more,
    ) -> Thing:  # The thing
        """Make one."""


def plain(x: int, y: str = "a") -> None:
    """Answers
    a question. And more.

    Details.
    """


def _helper():
    pass
'''


@pytest.fixture
def entries():
    return {one.name: one for one in reference.entries([CODE], "pkg.toy")[0]}


def test_public_names_are_entries(entries):
    assert list(entries) == ["Thing", "plain"]
    assert entries["Thing"].names == ["Thing", "Thing.halved", "Thing.area", "Thing.make"]
    assert entries["plain"].sentence == "Answers a question. And more."


def test_a_function_without_docments_has_types_in_its_signature(entries):
    text = entries["plain"].markdown({})
    assert "{py:function} plain(x: int, y: str='a')\n:module: pkg.toy" in text
    assert "Details." in text and "| Parameter" not in text


def test_a_class_has_a_table_of_fields_and_its_methods(entries):
    text = entries["Thing"].markdown({"Known": "pkg.other.Known", "Thing": "pkg.toy.Thing"})
    assert "{py:class} Thing\n" in text and "{py:obj}`~pkg.other.Known`" in text
    assert "| `size` | `int` | Units, at least 1 |" in text  # of a private base
    assert "| `name` | `str \\| None` | With \\| and 2 \\* 3 \\* 4 |" in text
    assert "_hidden" not in text and "_Base" not in text
    assert "\n\n**Raises** `ValueError`\n\n**Source** someone\n" in text
    assert "{py:method} halved() -> Thing\n" in text
    assert "{py:property} area\n:module: pkg.toy\n:type: float\n" in text
    assert "{py:method} make(a, *rest, scale=(1.0, 2.0), **more) -> Thing\n:module: pkg.toy\n:classmethod:\n" in text
    rows = ["`a` | `int` | First", "`rest` | `float` | Others", "`scale` | `tuple` | Of `a`", "`more` |  | "]
    assert all(f"| {row} |" in text for row in rows)
    assert "| `returns` | {py:obj}`Thing <pkg.toy.Thing>` | The thing |" in text


def test_parameters_are_shown_once():
    section = "\n\n    Parameters\n    ----------\n    a : int\n        First\n\n    Raises: `ValueError`\n    "
    source = f'def f(\n    a: int,  # First\n) -> str:  # Last\n    """What?{section}"""'
    text = reference.entries([source], "pkg.toy")[0][0].markdown({})
    assert "-----" not in text and "What?\n\n**Raises** `ValueError`" in text
    assert "| `a` | `int` | First |" in text and "| `returns` | `str` | Last |" in text


def test_a_class_that_is_no_dataclass_has_a_table_of_what_it_is_made_with():
    source = 'class A:\n    """What."""\n\n    def __init__(\n        self,\n        size: int,  # Units\n    ):\n        pass'
    assert "| `size` | `int` | Units |" in reference.entries([source], "pkg.toy")[0][0].markdown({})


@pytest.mark.parametrize(
    ("quarto", "myst"),
    [
        ("## A b {#sec-a}\n\ntext", "(sec-a)=\n## A b\n\ntext"),
        ("$$\nx\n$$ {#eq-a}\n\ntext", "$$\nx\n$$ (eq-a)\n\ntext"),
        ("see @fig-a, @eq-b-c. And [@sec-d]", "see {numref}`fig-a`, {eq}`eq-b-c`. And {ref}`sec-d`"),
        ("`@fig-a` and\n\n```\n@fig-b\n```\n\n@fig-c", "`@fig-a` and\n\n```\n@fig-b\n```\n\n{numref}`fig-c`"),
        ("me@fig.org [a](05_partition.ipynb#x)", "me@fig.org [a](partition.ipynb#x)"),
        ("[a](tutorials/01_one.ipynb) `[a](05_b.ipynb)`", "[a](tutorials/one.ipynb) `[a](05_b.ipynb)`"),
        ("[a](../CONTRIBUTING.md), [b](../../CHANGELOG.md)", "[a](CONTRIBUTING.md), [b](../CHANGELOG.md)"),
        ("::: {.callout-tip}\n## T\n\nb\n:::\n\nc", ":::{admonition} T\n:class: tip\n\nb\n:::\n\nc"),
        ('::: {.callout-note title="T"}\nb\n:::', ":::{admonition} T\n:class: note\n\nb\n:::"),
        ("::: {.callout-warning}\nb\n:::", ":::{admonition} Warning\n:class: warning\n\nb\n:::"),
    ],
)
def test_markdown(quarto, myst):
    assert pages.myst(quarto) == myst


def cell(source, kind="code", **more):
    return dict(cell_type=kind, id=source[:40], metadata={}, source=source) | more


def page(tmp_path, monkeypatch, *cells):
    monkeypatch.setattr(pages, "NOTEBOOKS", tmp_path)
    path = tmp_path / "03_toy.ipynb"
    cells = [one | (dict(outputs=[], execution_count=None) if one["cell_type"] == "code" else {}) for one in cells]
    path.write_text(json.dumps(dict(cells=cells)))
    return pages.read(path)


def test_a_page(tmp_path, monkeypatch):
    made = page(
        tmp_path,
        monkeypatch,
        cell("# toy\n\n> What it\n> is for", "markdown"),
        cell("#| default_exp toy"),
        cell("#| export\nimport os\nfrom a import (\n    b,\n)"),
        cell("#| hide\nimport secret"),
        cell("#| export\nThe module.", "markdown"),
        cell("#| export\ndef f(x: int):\n    'What?'"),
        cell("#| export\n_TABLE = {}\n\n\ndef _g():\n    pass"),
        cell("## About `f`\n\nCall `f()`, then `f` or `specialize_nb.toy.f`.", "markdown"),
        cell("#| test f\nf(1)", outputs=["kept"]),
        cell("## More\n\n`f` again", "markdown"),
        cell('#| label: fig-a\n#| fig-cap: "See @fig-a"\n#| echo: false\nplot()'),
        cell("#| include: false\nunseen()"),
    )
    assert (made.module, made.title, made.summary, made.docname) == (
        "specialize_nb.toy",
        "toy",
        "What it is for",
        "toy",
    )
    title, module, entry, source, about, lesson, more, figure = pages.convert(made, pages.Linker([made]))
    assert title["source"] == "# toy\n\n{.lead}\nWhat it\nis for"
    assert module["source"] == "The module."
    assert "{py:function} f(x: int)" in entry["source"]
    assert source["source"].endswith("'What?'\n\n\n_TABLE = {}\n\n\ndef _g():\n    pass")
    assert source["metadata"]["mystnb"]["code_prompt_show"] == "Source of f, _TABLE, _g"
    link = "{py:obj}`f() <specialize_nb.toy.f>`"
    assert about["source"] == f"## About `f`\n\nCall {link}, then `f` or `specialize_nb.toy.f`."  # the first mention
    qualified = pages.Linker([made])("of `toy.f` and `nowhere.f`")
    assert qualified == "of {py:obj}`toy.f <specialize_nb.toy.f>` and `nowhere.f`"
    assert lesson["source"] == "f(1)" and lesson["metadata"]["tags"] == []
    assert more["source"] == "## More\n\n{py:obj}`f <specialize_nb.toy.f>` again"
    assert figure["source"] == "plot()" and figure["metadata"]["tags"] == ["remove-input"]
    assert figure["metadata"]["mystnb"]["figure"] == dict(caption="See {numref}`fig-a`", name="fig-a")


def test_a_shell_command_is_shown_as_one(tmp_path, monkeypatch):
    made = page(tmp_path, monkeypatch, cell("# toy", "markdown"), cell("!ls a \\\n   b", outputs=["kept"]))
    _, command, output = pages.convert(made, pages.Linker([made]))
    assert command == dict(cell_type="markdown", metadata={}, source="```sh\nls a \\\n   b\n```")
    assert output["metadata"]["tags"] == ["remove-input"] and "outputs" in output


def test_checks_are_folded(tmp_path, monkeypatch):
    made = page(
        tmp_path,
        monkeypatch,
        cell("# toy", "markdown"),
        cell("## Checks\n\nWhat holds.", "markdown"),
        cell("#| test setup\nx = 1"),
        cell("#| test f\nassert x"),
        cell("### More\n\ntext", "markdown"),
        cell("#| test f\nassert f(1)"),
        cell("#| test g h\nassert g(1)"),
    )
    sources = [one["source"] for one in pages.convert(made, pages.Linker([made]))]
    told = "2 tests of what this page says; they run with every change"
    assert sources == [
        "# toy",
        "## Checks",
        f'```{{raw}} html\n<details class="checks"><summary>{told}</summary>\n```',
        "What holds.",
        "x = 1",
        "assert x",
        "```{rubric} More\n```\n\ntext",  # a section would reach out of the fold
        "assert f(1)",
        "assert g(1)",
        "```{raw} html\n</details>\n```",
    ]


def toy_package(root, **modules):
    """A package `toy` of the wings `low` and `high`; `high__a="..."` is the source of `toy.high.a`."""
    for folder in ("toy", "toy/low", "toy/high"):
        (root / folder).mkdir(parents=True)
        (root / folder / "__init__.py").write_text(f'"""The {folder[4:]} wing."""')
    for name, source in modules.items():
        (root / "toy" / f"{name.replace('__', '/')}.py").write_text(source)
    return plans.House(root / "toy", ("low", "high"))


def test_the_house_is_drawn_from_the_code(tmp_path):
    house = toy_package(
        tmp_path,
        low__a='"""A | B."""\nfrom .b import g\n\n\ndef f():\n    """F?"""\n',
        low__b='"""B."""\n\n\ndef g():\n    """G?"""\n',
        high__c='"""C."""\nfrom toy.low import b\nfrom toy.low.a import f, h\n',
    )
    text = drawing.page(house, {"toy.low.a": "modules/low_a.md"}, ["modules/low_a"])
    assert "| [low](#low) | The low wing |  |\n| [high](#high) | The high wing | `low` |" in text
    assert "## low\n\nThe low wing.\n" in text
    assert "| `b` | B |  |\n| [a](modules/low_a.md) | A \\| B | `low.b` |" in text  # after what it imports
    assert "| `c` | C | `low.b`, `low.a` |" in text
    assert text.count('class="use"') == 3 and text.count('class="wing"') == 2
    assert "<title>high.c imports from low.a: f, h</title>" in text
    squares = re.findall(r'class="use" x="(\d+)" y="(\d+)"', text)
    assert all(int(x) < int(y) for x, y in squares)  # below the diagonal
    files = {f"toy.low.{name}": f"modules/low_{name}.md" for name in "ab"}
    names = pages.all_names(house, files, pages.plain_entries(house))
    assert names.index("## [toy.low.a](modules/low_a.md)\n\nA | B.") < names.index("{py:obj}`f <toy.low.a.f>` | F? |")


def test_contents_follow_the_sidebar(tmp_path, monkeypatch):
    made = page(tmp_path, monkeypatch, cell("# toy", "markdown"))
    sidebar = (
        "website:\n  sidebar:\n    contents:\n      - section: Rooms\n        contents:\n          - 03_toy.ipynb\n"
    )
    (tmp_path / "sidebar.yml").write_text(sidebar)
    assert ":caption: Rooms\n\ntoy\n```" in pages.contents([made])
    (tmp_path / "sidebar.yml").write_text(sidebar.replace("03_toy", "04_gone"))
    with pytest.raises(KeyError, match="04_gone"):
        pages.contents([made])


def test_a_folder_of_notebooks(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "NOTEBOOKS", tmp_path / "nbs")
    (tmp_path / "nbs" / "studies").mkdir(parents=True)
    for wing in plans.WINGS:
        (tmp_path / "specialize_nb" / wing).mkdir(parents=True)
        (tmp_path / "specialize_nb" / wing / "__init__.py").write_text(f'"""The wing {wing}."""')
    (tmp_path / "specialize_nb" / "base" / "one.py").write_text('"""One."""\n\n\ndef f():\n    """What?"""\n')
    for name in pages.ALONG:
        (tmp_path / name).touch()
    for name in ("index", "studies/one"):
        cells = [cell("# toy\n\n> Small\n\n[a](one.csv)", "markdown")]
        (tmp_path / "nbs" / f"{name}.ipynb").write_text(json.dumps(dict(cells=cells)))
    (tmp_path / "nbs" / "studies" / "one.csv").write_text("a\n1\n")
    (tmp_path / "nbs" / "studies" / "one.txt").touch()
    contents = "[index.ipynb, {section: Studies, contents: [studies/one.ipynb]}]"
    (tmp_path / "nbs" / "sidebar.yml").write_text(f"website: {{sidebar: {{contents: {contents}}}}}")
    pages.main("out")
    *_, tables = json.loads((tmp_path / "out" / "index.ipynb").read_text())["cells"]
    assert ":caption: Studies\n\nstudies/one\n```" in tables["source"]
    assert sorted(path.name for path in (tmp_path / "out" / "studies").iterdir()) == ["one.csv", "one.ipynb"]
    assert (tmp_path / "out" / "modules" / "base_one.md").read_text().startswith("# base.one\n\n{.lead}\nOne\n")
    assert "[one](modules/base_one.md)" in (tmp_path / "out" / "house.md").read_text()
    assert "{py:obj}`f <specialize_nb.base.one.f>` | What? |" in (tmp_path / "out" / "names.md").read_text()
