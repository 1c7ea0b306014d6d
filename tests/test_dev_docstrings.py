"""Sections of parameters in docstrings: that they say what the comments say, stand in their place, and are complete."""

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

import specialize_nb
from specialize_nb.dev.docstrings import with_sections, without_sections

PACKAGE = Path(specialize_nb.__file__).parent


def doc(source, name="f"):
    """The docstring that `name` has, once the sections are in it."""
    made = with_sections(source)
    assert with_sections(made) == made  # twice changes nothing
    scope = {}
    exec("from __future__ import annotations\n" + made, scope)
    for part in name.split("."):
        scope = vars(scope[part]) if inspect.isclass(scope[part]) else scope[part]
    return inspect.cleandoc(scope["__doc__"] if isinstance(scope, dict | type(vars(int))) else scope.__doc__)


def test_order_of_a_docstring():
    source = '''def f(
    a: int,  # First, at least 1
    *rest: float,
    b: str | None = None,  # Second
) -> list[int]:  # Of all
    """Answers what?

    In detail.

    Raises: `ValueError`
    Source: a book
    """
'''
    assert (
        doc(source)
        == """Answers what?

In detail.

Parameters
----------
a : int
    First, at least 1
*rest : float
b : str | None, default None
    Second

Returns
-------
list[int]
    Of all

Raises: `ValueError`
Source: a book"""
    )


@pytest.mark.parametrize("quote", ['"""', "'''", '"', "'"])
def test_any_quotes(quote):
    assert doc(f"def f(\n    a,  # One\n):\n    {quote}What?{quote}") == "What?\n\nParameters\n----------\na\n    One"


def test_a_changed_comment_changes_its_section():
    made = with_sections('def f(\n    a,  # One\n):\n    """What?"""')
    assert doc(made.replace("# One", "# Two")).endswith("a\n    Two")
    gone = with_sections(made.replace("\n    a,  # One\n", ""))
    assert gone == 'def f():\n    """What?"""'


def test_a_docstring_that_starts_with_what_it_raises_keeps_its_first_line():
    assert doc('def f(\n    a,  # One\n):\n    """Raises: `ValueError`"""').startswith("Raises: `ValueError`\n\nPar")


def test_backslashes_and_quotes_in_comments():
    source = 'def f(\n    a,  # $\\\\nu$ or """\n):\n    """What is $\\\\mu$?"""'
    assert doc(source) == 'What is $\\mu$?\n\nParameters\n----------\na\n    $\\\\nu$ or """'
    raw = source.replace('    """', '    r"""').replace(' or """', "")
    assert "$\\\\nu$" in doc(raw) and "$\\\\mu$" in doc(raw)


def test_options_that_are_names_are_listed():
    source = "from typing import Literal\ndef f(\n    a: Literal['x', 'y'] = 'x',  # Which\n):\n    'What?'"
    assert "a : {'x', 'y'}, default 'x'\n    Which" in doc(source)


CLASSES = '''
from dataclasses import dataclass, field


@dataclass
class _Base:
    size: int  # Units


@dataclass
class Thing(_Base):
    """A thing."""

    parts: list = field(default_factory=list)  # Of it
    _hidden: int = 0  # Not told

    def grown(
        self,
        by: int,  # Units more
    ) -> Thing:
        """A larger one."""

    def told(self, more: bool = False) -> str:
        """In words."""

    @staticmethod
    def made(
        size: int,  # Units
    ) -> Thing:
        """One of that size."""


class Plain:
    """No dataclass."""

    def __init__(
        self,
        name: str,  # In one word
    ):
        self.name = name
'''


def test_classes():
    thing = doc(CLASSES, "Thing")
    assert thing == "A thing.\n\nAttributes\n----------\nsize : int\n    Units\nparts : list\n    Of it"
    assert doc(CLASSES, "Thing.grown").endswith(
        "Parameters\n----------\nby : int\n    Units more\n\nReturns\n-------\nThing"
    )
    assert doc(CLASSES, "Plain") == "No dataclass.\n\nParameters\n----------\nname : str\n    In one word"
    made = with_sections(CLASSES)
    assert made.count("Units more") == 2 and '"""In words."""' in made  # without comments there is nothing to say
    assert "size : int" in made.partition("def made")[2]


def test_only_docstrings_change():
    source = (PACKAGE / "base" / "results.py").read_text(encoding="utf-8")
    trees = [ast.parse(text) for text in (source, with_sections(source))]
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
                node.body[0].value.value = ""
    assert ast.dump(trees[0]) == ast.dump(trees[1])


def test_without_sections_is_the_way_back():
    text = "What?\n\nMore.\n\nRaises: `ValueError`"
    body = text.replace("\n\n", "\n\n    ")
    made = with_sections(f'def f(\n    a: int,  # One\n) -> int:\n    """{body}"""')
    written = inspect.cleandoc(ast.parse(made).body[0].body[0].value.value)
    assert "Returns" in made and without_sections(written) == text


def modules():
    names = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py"))]
    return [".".join(parts) for parts in names if parts[-1][0] != "_"]


def undocumented(owner, explained=""):
    """What a docstring does not name: parameters of a function, fields of a dataclass. `explained`: what must follow."""
    text = inspect.getdoc(owner) or ""
    if dataclasses.is_dataclass(owner):
        names = [one.name for one in dataclasses.fields(owner)]
    elif hasattr(owner, "_fields"):
        names = owner._fields
    elif inspect.isclass(owner):
        made = "__init__" in vars(owner) and not getattr(owner, "_is_protocol", False)  # nobody makes a protocol
        names = parameters(owner) if made else []
    else:
        names = parameters(owner)
    patterns = {name: rf"^{re.escape(name)}( : .+)?$\n{explained}" for name in names if name[0] != "_"}
    return [name for name, pattern in patterns.items() if not re.search(pattern, f"{text}\n", re.M)]


def parameters(function):
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [f"{stars.get(one.kind, '')}{one.name}" for one in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", modules())
def test_help_explains_every_parameter(name):
    module = importlib.import_module(name)
    own = {
        key: value
        for key, value in vars(module).items()
        if key[0] != "_" and (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == name
    }
    left = {key: found for key, value in own.items() if (found := undocumented(value))}
    assert not left
    assert [key for key, value in own.items() if not inspect.getdoc(value)] == []


def test_help_explains_every_name_of_the_root():
    names = [getattr(specialize_nb, name) for name in specialize_nb.__all__]
    assert len(names) > 20
    assert not {one.__name__: found for one in names if (found := undocumented(one, explained=" +\\S"))}
