"""What a function takes, read from its source: names, types, defaults and what the comments say. Nothing is imported.

A plain module, not a notebook: mechanism without a story. The shell makes its options from it, so that `--help` needs
no PyTorch; the sections of parameters in docstrings are made from it too.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Parameter", "Signature", "assigned", "comments_of", "described", "parameters", "picked", "signature"]

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function, or a field of a dataclass.

    Attributes
    ----------
    name : str
        With its stars: 'model', '*graphs', '**running'
    annotation : str
        The type as it is written, without quotes around it; '' if there is none
    default : str | None
        As it is written; None if it must be given
    comment : str
        What the comment behind it says, or the comment lines just above it; '' if there is none
    keyword_only : bool
        Behind a `*`, or a field of a `kw_only` dataclass
    """

    name: str  # With its stars: 'model', '*graphs', '**running'
    annotation: str  # The type as it is written, without quotes around it; '' if there is none
    default: str | None  # As it is written; None if it must be given
    comment: str  # What the comment behind it says, or the comment lines just above it; '' if there is none
    keyword_only: bool  # Behind a `*`, or a field of a `kw_only` dataclass


@dataclass(frozen=True)
class Signature:
    """A function or class, from its source.

    Attributes
    ----------
    name : str
        'audit', 'UnitGraph', 'UnitGraph.block'
    parameters : tuple[Parameter, ...]
        Of a class: of its `__init__`, or else its fields; without self and cls
    returns : str
        The type of what comes back, as it is written; '' if none is given, and for a class
    returns_comment : str
        What the comment behind it says
    """

    name: str  # 'audit', 'UnitGraph', 'UnitGraph.block'
    parameters: tuple[Parameter, ...]  # Of a class: of its `__init__`, or else its fields; without self and cls
    returns: str  # The type of what comes back, as it is written; '' if none is given, and for a class
    returns_comment: str  # What the comment behind it says


def parameters(
    path: str | Path,  # Of the module's file
    name: str,  # Function, class, or 'Class.method'
) -> list[Parameter]:  # In the order they are written
    """What does a function or class of a module take?

    Parameters
    ----------
    path : str | Path
        Of the module's file
    name : str
        Function, class, or 'Class.method'

    Returns
    -------
    list[Parameter]
        In the order they are written

    Raises: `KeyError` if the module defines nothing of that name.
    """
    path = Path(path)
    return list(_read(path, path.stat().st_mtime_ns, name).parameters)


@cache
def _read(path: Path, changed: int, name: str) -> Signature:
    """Each once, until the file changes: the shell asks again and again."""
    source, tree = _parsed(path, changed)
    return _signature(source, tree, name)


@cache
def _parsed(path: Path, changed: int) -> tuple[str, ast.Module]:
    source = path.read_text(encoding="utf-8")
    return source, ast.parse(source)


def signature(
    source: str,  # Of a module or a cell
    name: str,  # Function, class, or 'Class.method'
) -> Signature:
    """What does a function or class take and give back?

    Parameters
    ----------
    source : str
        Of a module or a cell
    name : str
        Function, class, or 'Class.method'

    Returns
    -------
    Signature

    Raises: `KeyError` if the source defines nothing of that name.
    """
    return _signature(source, ast.parse(source), name)


def _signature(source: str, tree: ast.Module, name: str) -> Signature:
    body: list[ast.stmt] = tree.body
    node: Any = None
    for part in name.split("."):
        here = [one for one in body if isinstance(one, Function | ast.ClassDef) and one.name == part]
        if not here:
            raise KeyError(f"the source defines no {name!r}")
        node = here[-1]  # the one that counts if a name is defined twice
        body = node.body
    above = node.lineno - 1
    last = node.end_lineno if isinstance(node, ast.ClassDef) else max(node.body[0].lineno - 1, node.lineno)
    shown = "\n".join(source.splitlines()[above:last]) + "\n"  # reading the words of a whole module takes long
    comments = {line + above if line > 0 else line - above: text for line, text in comments_of(shown).items()}
    return described(node, comments, method="." in name)


def described(
    node: Function | ast.ClassDef,  # From the tree of the source
    comments: dict[int, str],  # Of the same source, from `comments_of`
    *,
    method: bool = False,  # Leave out the first parameter, unless it is a static method
) -> Signature:
    """What does the function or class of a syntax tree take and give back?

    Parameters
    ----------
    node : Function | ast.ClassDef
        From the tree of the source
    comments : dict[int, str]
        Of the same source, from `comments_of`
    method : bool, default False
        Leave out the first parameter, unless it is a static method

    Returns
    -------
    Signature
    """
    if isinstance(node, ast.ClassDef):
        return Signature(node.name, tuple(_of_class(node, comments)), "", "")
    taken = list(_of_function(node, comments))
    if method and not any(ast.unparse(one) == "staticmethod" for one in node.decorator_list):
        taken = taken[1:]
    if node.returns is None:
        return Signature(node.name, tuple(taken), "", "")
    return Signature(node.name, tuple(taken), _text(node.returns), comments.get(node.returns.end_lineno, ""))


def comments_of(
    source: str,  # Of a module or a cell
) -> dict[int, str]:  # Line, from 1 -> the comment that ends it; a line of its own belongs to the code below it
    """The comments of a source, without the marks that speak to tools.

    Parameters
    ----------
    source : str
        Of a module or a cell

    Returns
    -------
    dict[int, str]
        Line, from 1 -> the comment that ends it; a line of its own belongs to the code below it
    """
    found: dict[int, str] = {}
    waiting: list[str] = []  # lines of their own
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").strip()
            if text.startswith(("noqa", "type:", "|", "%%")):
                continue
            if token.line[: token.start[1]].strip():
                found[token.start[0]] = text
            else:
                waiting.append(text)
        elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            if waiting:
                found.setdefault(-token.start[0], " ".join(waiting))  # negative: stands above that line
            waiting = []
    return found


def _of_function(node: Function, comments: dict[int, str]) -> Iterator[Parameter]:
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
    for one, default in zip(positional, defaults, strict=True):
        yield _parameter(one.arg, one, default, comments, False)
    if given.vararg:
        yield _parameter(f"*{given.vararg.arg}", given.vararg, None, comments, False)
    for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield _parameter(one.arg, one, default, comments, True)
    if given.kwarg:
        yield _parameter(f"**{given.kwarg.arg}", given.kwarg, None, comments, True)


def _of_class(node: ast.ClassDef, comments: dict[int, str]) -> Iterator[Parameter]:
    for one in node.body:
        if isinstance(one, Function) and one.name == "__init__":
            yield from list(_of_function(one, comments))[1:]
            return
    keyword_only = any("kw_only=True" in ast.unparse(one) for one in node.decorator_list)
    for one in node.body:
        if not isinstance(one, ast.AnnAssign) or not isinstance(one.target, ast.Name):
            continue
        if _text(one.annotation).startswith("ClassVar"):
            continue
        yield _parameter(one.target.id, one, one.value, comments, keyword_only)


def _parameter(
    name: str, node: Any, default: ast.expr | None, comments: dict[int, str], keyword_only: bool
) -> Parameter:
    last = (default if default is not None else node).end_lineno
    comment = comments.get(last) or comments.get(-node.lineno, "")
    written = None if default is None else ast.unparse(default)
    return Parameter(name, _text(node.annotation), written, comment, keyword_only)


def _text(annotation: ast.expr | None) -> str:
    if annotation is None:
        return ""
    quoted = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    return annotation.value if quoted else ast.unparse(annotation)


def assigned(
    path: str | Path,  # Of the module's file
    name: str,  # Assigned at the top of the module, or imported there from a module beside it
) -> ast.expr | None:  # The expression; None if it is not there
    """What is a name of a module, as it is written where it is assigned?

    Parameters
    ----------
    path : str | Path
        Of the module's file
    name : str
        Assigned at the top of the module, or imported there from a module beside it

    Returns
    -------
    ast.expr | None
        The expression; None if it is not there
    """
    path = Path(path)
    for node in reversed(_parsed(path, path.stat().st_mtime_ns)[1].body):
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
            return node.value
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return node.value
        if isinstance(node, ast.ImportFrom):
            origin = next((one.name for one in node.names if (one.asname or one.name) == name), None)
            if origin and (there := _file_of(path, node)):
                return assigned(there, origin)
    return None


def picked(
    kind: type,  # A dataclass of options
    given: Mapping[str, Any],  # Everything that was given, by name
) -> Any:
    """The options of one kind, from all that were given to a function; fields marked "inner" are no options of it.

    Parameters
    ----------
    kind : type
        A dataclass of options
    given : Mapping[str, Any]
        Everything that was given, by name

    Returns
    -------
    Any
    """
    return kind(**{one.name: given[one.name] for one in fields(kind) if not one.metadata.get("inner")})


def _file_of(path: Path, node: ast.ImportFrom) -> Path | None:
    """The file that an import statement of `path` reads, if it belongs to the same package."""
    parts = (node.module or "").split(".")
    if node.level:
        folder = path.parents[node.level - 1]
    else:
        folder = next((one.parent for one in path.parents if one.name == parts[0]), None)
    file = folder and folder.joinpath(*parts).with_suffix(".py")
    return file if file and file.is_file() else None
