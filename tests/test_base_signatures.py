"""Signatures read from source, without importing it."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import specialize_nb
from specialize_nb.base.signatures import Parameter, assigned, comments_of, parameters, signature

PACKAGE = Path(specialize_nb.__file__).parent

SOURCE = '''
import absent_package
from typing import Literal

def graph(
    model: "absent_package.Model",  # In eval mode
    data,
    *others: int,  # More of them
    # How units are joined,
    # in words
    kind: Literal["a", "b"] = "a",
    pair: tuple[int, int] = (
        1,
        2,
    ),  # Two numbers
    seed: int = 0,  # noqa: X
    **running: object,  # What else
) -> list[int]:  # Of units
    """A graph."""

@dataclass(frozen=True, kw_only=True)
class Found:
    """Found."""

    size: int  # At least 1
    name: str = "x"  # In words
    kinds: ClassVar[int] = 3

    def cut(self, where: float, *, deep: bool = False) -> None:  # Nothing
        """Cut."""

    @staticmethod
    def make(where: float): ...

    @classmethod
    def load(cls, path: str): ...
'''


def test_function():
    found = signature(SOURCE, "graph")
    assert found.parameters == (
        Parameter("model", "absent_package.Model", None, "In eval mode", False),
        Parameter("data", "", None, "", False),
        Parameter("*others", "int", None, "More of them", False),
        Parameter("kind", "Literal['a', 'b']", "'a'", "How units are joined, in words", True),
        Parameter("pair", "tuple[int, int]", "(1, 2)", "Two numbers", True),
        Parameter("seed", "int", "0", "", True),
        Parameter("**running", "object", None, "What else", True),
    )
    assert (found.name, found.returns, found.returns_comment) == ("graph", "list[int]", "Of units")


def test_class():
    found = signature(SOURCE, "Found")
    assert [(one.name, one.default, one.comment, one.keyword_only) for one in found.parameters] == [
        ("size", None, "At least 1", True),
        ("name", "'x'", "In words", True),
    ]
    cut = signature(SOURCE, "Found.cut")
    assert [(one.name, one.keyword_only) for one in cut.parameters] == [("where", False), ("deep", True)]
    assert (cut.returns, cut.returns_comment) == ("None", "Nothing")
    assert [one.name for one in signature(SOURCE, "Found.make").parameters] == ["where"]
    assert [one.name for one in signature(SOURCE, "Found.load").parameters] == ["path"]


def test_nothing_of_that_name():
    with pytest.raises(KeyError, match=r"the source defines no .Found\.cot"):
        signature(SOURCE, "Found.cot")
    with pytest.raises(KeyError, match="no 'grpah'"):
        signature(SOURCE, "grpah")


def test_comments():
    assert comments_of("x = 1  # one\n# above\n\n# and more\ny = (  # open\n    2,\n)  # noqa: E1\n") == {
        1: "one",
        -5: "above and more",
        5: "open",
    }


def test_names_followed_through_imports(tmp_path):
    wing = tmp_path / "house" / "wing"
    wing.mkdir(parents=True)
    (tmp_path / "house" / "words.py").write_text("KINDS = {'a': 1}\nKIND: object = 'b'\n")
    (wing / "room.py").write_text(
        "from ..words import KINDS as TABLE\nfrom house.words import KIND\nimport os\nX = 3\n"
    )
    found = {name: assigned(wing / "room.py", name) for name in ("TABLE", "KIND", "X", "os", "Y")}
    assert {name: node and ast.unparse(node) for name, node in found.items()} == {
        "TABLE": "{'a': 1}",
        "KIND": "'b'",
        "X": "3",
        "os": None,
        "Y": None,
    }


@pytest.mark.parametrize("room", ["clusters.spectral", "layers.distances", "layers.segments", "stats.tests"])
def test_equal_to_what_python_sees(room):
    module = importlib.import_module(f"specialize_nb.{room}")
    checked = 0
    for name in module.__all__:
        function = getattr(module, name)
        if not inspect.isfunction(function):
            continue
        seen = inspect.signature(function).parameters.values()
        read = parameters(PACKAGE.joinpath(*room.split(".")).with_suffix(".py"), name)
        assert [one.name for one in read] == [str(one).split(":")[0].split("=")[0] for one in seen]
        for one, other in zip(read, seen, strict=True):
            assert one.keyword_only == (other.kind in (other.KEYWORD_ONLY, other.VAR_KEYWORD))
            assert (one.default is None) == (other.default is other.empty)
        checked += 1
    assert checked


def test_imports_nothing_heavy():
    code = "import sys, specialize_nb.base.signatures; print({'torch', 'numpy'} & set(sys.modules))"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert asked.stdout == "set()\n"
