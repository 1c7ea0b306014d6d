"""What no other tool checks about the notebooks: run by `make check` and CI. Prints every fault, one a line.

Each rule is a function that yields the faults of one notebook; `main` says which rules there are.
"""

from __future__ import annotations

import ast
import base64
import builtins
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from house import House

ROOT = Path(__file__).resolve().parent.parent
CHECKS, FOLDED = "Checks", "jp-MarkdownHeadingCollapsed"
MAX_LINES = 40  # of an export cell, blank ones not counted
MAX_NAMES = 12  # public names of a module
MAX_WORDS = 15  # of the sentence under the title
MAX_OUTPUT = 1_000_000  # bytes stored in a notebook
MAX_FIGURE = 100_000  # bytes of one picture
PATHS = r"(?<![\w.:/])/(?:home|root|work|tmp|Users|private|opt|usr|var|mnt)/|[A-Z]:\\\\"
TRACES = r"site-packages|ipykernel_|ipython-input-"
SHELL = {"make", "pip", "git", "python3"}  # commands, which prose may name as it likes
ADDRESS = r"\b0x[0-9a-f]{8,}\b"


@dataclass
class Notebook:
    path: Path

    @cached_property
    def cells(self) -> list[dict]:
        return json.loads(self.path.read_text(encoding="utf-8"))["cells"]

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def code(self) -> Iterator[tuple[dict, str, ast.Module]]:
        """Code cells: the cell, its source, its syntax tree (an empty one for shell lines and magics)."""
        for cell in self.cells:
            if cell["cell_type"] == "code":
                source = "".join(cell["source"])
                try:
                    tree = ast.parse(source)
                except SyntaxError:
                    tree = ast.Module([], [])
                yield cell, source, tree

    def prose(self) -> Iterator[str]:
        """Markdown cells without what is fenced or commented out in them."""
        for cell in self.cells:
            if cell["cell_type"] == "markdown":
                yield re.sub(r"^(`{3,}).*?^\1|<!--.*?-->", "", "".join(cell["source"]), flags=re.M | re.S)

    def module(self) -> str | None:
        """The module this notebook exports."""
        found = [re.search(r"^#\|\s*default_exp\s+(\S+)", source, re.M) for _, source, _ in self.code()]
        return next((match[1] for match in found if match), None)


def is_export(source: str) -> bool:
    return re.search(r"^#\|\s*export", source, re.M) is not None


def where(cell: dict) -> str:
    return f"cell {cell.get('id', '?')} ({''.join(cell['source']).strip().splitlines()[0][:50]!r})"


def title(notebook: Notebook) -> Iterator[str]:
    """The title is in words, and the sentence under it is short."""
    first = "".join(notebook.cells[0]["source"]) if notebook.cells else ""
    heading = re.match(r"# (.+)", first)
    if not heading:
        yield "the first cell is no `# title`"
    elif notebook.module() and heading[1] in (notebook.module(), notebook.module().rpartition(".")[2]):
        yield f"the title {heading[1]!r} is the name of the module: say in words what the page is about"
    summary = re.search(r"^> (.+)", first, re.M)
    if not summary:
        yield "no `> sentence` under the title says what it is for"
    elif len(summary[1].split()) > MAX_WORDS:
        yield f"the sentence under the title has {len(summary[1].split())} words; {MAX_WORDS} at most"


def place(notebook: Notebook) -> Iterator[str]:
    """The course is nbs/NN_*.ipynb, side rooms are nbs/rooms/<wing>_<room>.ipynb; in other folders no page exports."""
    path, module = notebook.path.relative_to(ROOT / "nbs"), notebook.module()
    exports = [cell for cell, source, _ in notebook.code() if is_export(source)]
    if exports and not module:
        yield f"{where(exports[0])} exports, and no `#| default_exp` says to which module"
    if module and module.count(".") != 1:
        yield f"exports {module!r}: a module is a room of a wing, `wing.room`"
    if path.parts[0] == "rooms" and path.stem != (module or "").replace(".", "_"):
        named = f"must be named {module.replace('.', '_')}.ipynb" if module else "defines no module, as side rooms do"
        yield f"{named}, after its module"
    elif len(path.parts) == 1 and path.stem != "index" and not re.match(r"\d\d_[a-z]", path.stem):
        yield "has no number: the course is nbs/NN_name.ipynb, other pages have folders"
    elif len(path.parts) > 1 and path.parts[0] != "rooms" and module:
        yield f"defines the module {module!r}: notebooks that do belong in the course or in nbs/rooms/"


def checks(notebook: Notebook) -> Iterator[str]:
    """`#| test` cells stand in the last section, `## Checks`, which JupyterLab folds; the set-up may be a lesson."""
    section, heading, last = None, None, ""
    for cell in notebook.cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and (found := re.search(r"^## (.+?)\s*$", source, re.M)):
            section = last = found[1]
            heading = cell if section == CHECKS else heading
        elif cell["cell_type"] == "code" and section != CHECKS and re.match(r"#\|\s*test\s+(?!setup\b)", source):
            yield f"{where(cell)} is a test outside the section {CHECKS!r}"
        elif cell["cell_type"] == "code" and section == CHECKS and is_export(source):
            yield f"{where(cell)} exports from the section {CHECKS!r}, which readers find folded"
    if heading and last != CHECKS:
        yield f"the section {last!r} comes after {CHECKS!r}, which must be the last"
    if heading and heading["metadata"].get(FOLDED) is not True:
        yield f"the heading {CHECKS!r} is not folded: its metadata must have {FOLDED!r}: true"


def export_cells(notebook: Notebook) -> Iterator[str]:
    """Export cells are short, imports have cells of their own, nothing exports from inside."""
    for cell, source, tree in notebook.code():
        lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#|")]
        holds_class = any(isinstance(node, ast.ClassDef) for node in tree.body)  # as long as its one job
        if is_export(source) and len(lines) > MAX_LINES and not holds_class:
            yield f"{where(cell)} exports {len(lines)} lines; {MAX_LINES} at most: a helper is missing"
        imports = sum(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)
        if 0 < imports < len(tree.body):
            yield f"{where(cell)} mixes imports with other code; give imports a cell of their own"
        if "nbdev_export" in source:
            yield f"{where(cell)} calls nbdev_export; `make export` does"


def texts(output: dict) -> Iterator[tuple[str, str]]:
    """(MIME type, text) of all that one output stores."""
    for kind, value in {**output.get("data", {}), "stream": output.get("text", "")}.items():
        yield kind, "".join(value) if isinstance(value, str | list) else json.dumps(value)


def output_faults(output: dict) -> Iterator[str]:
    if output["output_type"] == "error":
        yield f"stores an error: {output.get('ename')}"
    if output.get("name") == "stderr":
        yield f"stores what was written to stderr: {''.join(output['text'])[:80]!r}"
    elif found := re.search(r"\w+Warning: .*", "".join(output.get("text", ""))):
        yield f"stores a warning: {found[0][:80]!r}"
    for kind, text in texts(output):
        if kind in ("image/png", "image/jpeg"):
            size = len(base64.b64decode(text))
            if size > MAX_FIGURE:
                yield f"stores a picture of {size:,} bytes; {MAX_FIGURE:,} at most"
        elif found := re.search(f"{PATHS}|{TRACES}|{ADDRESS}", text):
            yield f"stores {text[max(0, found.start() - 20) : found.end() + 20]!r}"


def outputs(notebook: Notebook) -> Iterator[str]:
    """What cells show is stored, and holds no error, warning, path of one machine, or address of one run."""
    code = [cell for cell in notebook.code() if cell[1].strip()]
    for cell, source, tree in code:
        last = tree.body[-1] if tree.body else None
        shows = isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call | ast.Constant | ast.Await)
        shows = (shows and not source.rstrip().endswith(";")) or source.startswith("!")
        if shows and not cell["outputs"]:
            yield f"{where(cell)} shows something, and none of it is stored: run `make notebooks`"
        for output in cell["outputs"]:
            yield from (f"{where(cell)} {fault}" for fault in output_faults(output))
    total = sum(len(text) for cell, _, _ in code for output in cell["outputs"] for _, text in texts(output))
    if total > MAX_OUTPUT:
        yield f"{total:,} bytes of output are stored; {MAX_OUTPUT:,} at most"
    told = [cell for cell, source, _ in code if not re.match(r"#\|\s*(test|hide|export|default_exp)", source)]
    if told and not told[-1]["outputs"]:
        yield f"the last cell of the story shows nothing: {where(told[-1])}"


def public_names(notebook: Notebook) -> Iterator[str]:
    """A module has few public names."""
    if module := notebook.module():
        names = importlib.import_module(f"specialize_nb.{module}").__all__
        if len(names) > MAX_NAMES:
            yield f"{module} has {len(names)} public names; {MAX_NAMES} at most"


def words(tree: ast.AST) -> Iterator[str]:
    """Every identifier in a piece of code: names, attributes, arguments, imports, and strings that are one."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname", "module", "value"):
            value = getattr(node, field, None)
            if isinstance(value, str) and all(part.isidentifier() for part in value.split(".")):
                yield from value.split(".")


class Package:
    """What the names in the prose can refer to."""

    def __init__(self):
        self.modules: dict[str, ModuleType] = {"specialize_nb": importlib.import_module("specialize_nb")}
        self.words = SHELL | set(dir(builtins))
        for name, module in House(ROOT / "specialize_nb").modules.items():
            self.words |= set(words(module.tree)) | set(name.split("."))
            if not module.room.startswith("_"):
                imported = importlib.import_module(name)
                self.modules[name.removeprefix("specialize_nb.")] = imported
                if module.wing and not module.is_package:
                    self.modules.setdefault(module.room, imported)  # prose may leave out the wing
        self.public = {
            name: getattr(module, name) for module in self.modules.values() for name in getattr(module, "__all__", ())
        }

    def knows(self, name: str, local: set[str]) -> bool:
        """Can `name`, dotted or not, be found in the package, or in the code of the notebook?"""
        first, *rest = name.removeprefix("specialize_nb.").split(".")
        owners = [self.public[first]] if first in self.public else []
        owners += [self.modules[first]] if first in self.modules and first not in local else []
        if rest and (module := self.modules.get(f"{first}.{rest[0]}")):
            owners, rest = [module], rest[1:]
        if rest and owners:
            return rest == ["py"] or any(has(owner, rest[0]) for owner in owners)
        return all(part in self.words or part in local for part in (first, *rest))


def has(owner: Any, name: str) -> bool:
    """Is `name` an attribute of a module, class or function, or a field of a dataclass?"""
    fields = [vars(base).get("__annotations__", {}) for base in owner.__mro__] if inspect.isclass(owner) else []
    return hasattr(owner, name) or any(name in one for one in fields)


def names_in_prose(notebook: Notebook, package: Package) -> Iterator[str]:
    """Every name in backticks exists: in the package, or in the code of the notebook itself."""
    local = {word for _, _, tree in notebook.code() for word in words(tree)}
    for text in notebook.prose():
        for quoted in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
            match = re.fullmatch(r"\.?([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(.*\))?", quoted)
            if match and not package.knows(match[1], local):
                yield f"`{quoted}` in the prose is no name of the package or of this notebook"


def sidebar(paths: list[Path]) -> Iterator[str]:
    """The sidebar names every notebook, and none that is not there."""
    text = (ROOT / "nbs" / "sidebar.yml").read_text(encoding="utf-8")
    listed, there = (
        set(re.findall(r"[\w/]+\.ipynb", text)),
        {path.relative_to(ROOT / "nbs").as_posix() for path in paths},
    )
    yield from (f"nbs/sidebar.yml: {name} is missing from it" for name in sorted(there - listed))
    yield from (f"nbs/sidebar.yml: there is no {name}" for name in sorted(listed - there))


def main() -> int:
    paths = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if not re.search(r"/[._]", path.as_posix()))
    package, faults, exported = Package(), list(sidebar(paths)), {}
    for notebook in map(Notebook, paths):
        rules = [title(notebook), place(notebook), checks(notebook), export_cells(notebook), outputs(notebook)]
        for rule in [*rules, public_names(notebook), names_in_prose(notebook, package)]:
            faults += [f"{notebook.name}: {fault}" for fault in rule]
        if module := notebook.module():
            if module in exported:
                faults.append(f"{notebook.name}: {exported[module]} exports {module!r} already")
            exported[module] = notebook.name
    print("\n".join(faults) or f"{len(paths)} notebooks, nothing to say against them")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
