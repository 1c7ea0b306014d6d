"""Entries of the reference, read from export cells: signature, docstring, table of what goes in.

The tables come from docments: the comment behind a parameter or a field says what it means. Where there are none, the
types stand in the signature instead.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from specialize_nb.base.signatures import Parameter, comments_of, described
from specialize_nb.dev.docstrings import docments, without_sections

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comments = dict[int, str]  # Line -> the comment that ends it
Targets = dict[str, str]  # Name that can be linked -> where to
Row = tuple[str, str, str]  # Name, type, meaning


@dataclass
class Member:
    """A field, property or method of a class, its private bases' included."""

    node: ast.stmt
    comments: Comments

    @property
    def name(self) -> str:
        return self.node.target.id if isinstance(self.node, ast.AnnAssign) else self.node.name


@dataclass
class Entry:
    """A public function or class."""

    node: ast.stmt
    module: str
    comments: Comments
    members: list[Member]

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def names(self) -> list[str]:
        """Its name, and for a class the names of its methods behind it."""
        return [self.name, *(f"{self.name}.{one.name}" for one in self.members if isinstance(one.node, Function))]

    @property
    def sentence(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join(docstring(self.node).split("\n\n")[0].split())

    def markdown(self, targets: Targets) -> str:
        """A description in MyST."""
        lines = self._class if isinstance(self.node, ast.ClassDef) else self._function
        return "\n".join(lines(targets)) + "\n"

    def _function(self, targets: Targets) -> Iterator[str]:
        yield f"::::{{py:function}} {signature(self.node, self.comments)}\n:module: {self.module}\n"
        yield from body(self.node, self.comments, targets)
        yield "::::"

    def fields(self) -> Iterator[Row]:
        """The fields of a class; without any, what it is made with."""
        fields = [one for one in self.members if isinstance(one.node, ast.AnnAssign)]
        for one in fields:
            shell = ast.ClassDef(name="", bases=[], keywords=[], body=[one.node], decorator_list=[])
            yield from map(row, described(shell, one.comments).parameters)
        if not fields and any(getattr(one, "name", "") == "__init__" for one in self.node.body):
            yield from map(row, described(self.node, self.comments).parameters)

    def _class(self, targets: Targets) -> Iterator[str]:
        yield f":::::{{py:class}} {self.name}\n:module: {self.module}\n\n{docstring(self.node)}\n"
        if bases := [targets[base] for base in map(ast.unparse, self.node.bases) if base in targets]:
            yield f"Also has what {' and '.join(f'{{py:obj}}`~{base}`' for base in bases)} has.\n"
        yield table("Field", list(self.fields()), targets)
        for one in self.members:
            if isinstance(one.node, Function):
                yield from method(one, self.module, targets)
        yield ":::::"


def method(one: Member, module: str, targets: Targets) -> Iterator[str]:
    kinds = {ast.unparse(decorator).split("(")[0] for decorator in one.node.decorator_list}
    if kinds & {"property", "cached_property"}:
        yield f"::::{{py:property}} {one.name}\n:module: {module}"
        if one.node.returns:
            yield f":type: {unparse(one.node.returns)}"
    else:
        yield f"::::{{py:method}} {signature(one.node, one.comments, skip_first='staticmethod' not in kinds)}"
        yield f":module: {module}"
    yield from (f":{kind}:" for kind in ("classmethod", "staticmethod") if kind in kinds)
    yield ""
    yield from body(one.node, one.comments, targets, method=True)
    yield "::::"


def entries(sources: Iterable[str], module: str) -> list[list[Entry]]:
    """The public functions and classes of each export cell of a notebook."""
    cells = [(ast.parse(source).body, comments_of(source)) for source in sources]
    nodes = [(node, comments) for body, comments in cells for node in body]
    classes = {node.name: (node, comments) for node, comments in nodes if isinstance(node, ast.ClassDef)}

    def members(node: ast.ClassDef, comments: Comments) -> Iterator[Member]:
        for base in map(ast.unparse, node.bases):
            if base.startswith("_") and base in classes:
                yield from members(*classes[base])
        for item in node.body:
            member = Member(item, comments)
            if isinstance(item, ast.AnnAssign | Function) and not member.name.startswith("_"):
                yield member

    def entry(node: ast.stmt, comments: Comments) -> Entry:
        found = {one.name: one for one in members(node, comments)} if isinstance(node, ast.ClassDef) else {}
        return Entry(node, module, comments, list(found.values()))

    kinds = Function | ast.ClassDef
    return [
        [entry(node, comments) for node in body if isinstance(node, kinds) and not node.name.startswith("_")]
        for body, comments in cells
    ]


def row(one: Parameter) -> Row:
    return one.name.lstrip("*"), one.annotation, one.comment


def unparse(annotation: ast.expr) -> str:
    """A type as it is written, without the quotes of a name that comes later."""
    quoted = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
    return annotation.value if quoted else ast.unparse(annotation)


def documented(node: Function, comments: Comments) -> bool:
    return any(one.comment for one in docments(node, comments).parameters)


def signature(node: Function, comments: Comments, skip_first: bool = False) -> str:
    """Names and defaults; types only if there is no table for them."""
    args = copy.deepcopy(node.args)
    if skip_first:
        (args.posonlyargs or args.args).pop(0)
    for one in ast.walk(args):
        if isinstance(one, ast.arg) and (one.annotation is None or documented(node, comments)):
            one.annotation = None
        elif isinstance(one, ast.arg):
            one.annotation = ast.Name(unparse(one.annotation))
    returns = unparse(node.returns) if node.returns else "None"
    return f"{node.name}({ast.unparse(args)})" + ("" if returns == "None" else f" -> {returns}")


def body(node: Function, comments: Comments, targets: Targets, method: bool = False) -> Iterator[str]:
    yield docstring(node) + "\n"
    if documented(node, comments):
        found = docments(node, comments, method=method)
        rows = [row(one) for one in found.parameters]
        if found.returns_comment:
            rows.append(("returns", found.returns, found.returns_comment))
        yield table("Parameter", rows, targets)


def docstring(node: ast.stmt) -> str:
    """The docstring, with `Raises:`, `Source:` and their like as paragraphs; parameters have a table of their own."""
    text = without_sections(ast.get_docstring(node) or "")
    return re.sub(r"\n*^(Raises|Returns|Source|Warns): ", r"\n\n**\1** ", text, flags=re.M)


def table(what: str, rows: list[Row], targets: Targets) -> str:
    lines = [f"| {what} | Type | Meaning |", "| --- | --- | --- |"]
    for name, kind, text in rows:
        shown = f"{{py:obj}}`{kind} <{targets[kind]}>`" if kind in targets else f"`{kind}`" if kind else ""
        lines.append(f"| `{name}` | {bars(shown)} | {bars(escape(text))} |")
    return "{.parameters}\n" + "\n".join(lines) + "\n" if rows else ""


def bars(text: str) -> str:
    return text.replace("|", "\\|")


def escape(text: str) -> str:
    """A comment as it stands, but for what is in backticks."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if i % 2 else re.sub(r"([*_<$\[\]\\])", r"\\\1", part) for i, part in enumerate(parts))
