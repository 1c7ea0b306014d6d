"""Proves from the code how the house is built: run by `make check` and CI. Prints every fault, one a line.

A room imports from its own wing and from earlier ones; no imports run in a circle; what a module calls private
(`_name`) stays inside it; no module is shadowed by a name of the package around it; nothing but `dev` needs the tools
of the authors; the settings that list generated modules list exactly those. Each rule is a function that yields faults.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from house import PACKAGE, ROOT, Arrow, House, Module, called, cells, nodes

OUTSIDE = ("bench", "docs", "nbs", "tests", "tools")  # Where code that uses the package lies
TUPLES = ("_asdict", "_field_defaults", "_fields", "_make", "_replace")
TOOLS = ("nbdev", "fastcore", "execnb", "pytest", "hypothesis", "ruff")
Defined = dict[str, set[str]]  # Private name -> the modules that define it


def is_private(name: str) -> bool:
    """`_name`, but not what others may call by rule: `__name__`, `_repr_html_`, `_replace` of a named tuple."""
    return name.startswith("_") and not name.endswith("_") and name not in TUPLES


def where(arrow: Arrow) -> str:
    return f"{arrow.source}, line {arrow.line}"


def upward(house: House) -> Iterator[str]:
    """Every wing has its place in the order, and no import runs up it; the root is above all rooms."""
    wings = {module.wing for module in house.modules.values()} - {None}
    yield from (
        f"the wing {wing!r} has no place in the order of tools/house.py" for wing in sorted(wings - {*house.wings})
    )
    yield from (f"there is no wing {wing!r}, which tools/house.py lists" for wing in house.wings if wing not in wings)
    place = {wing: i for i, wing in enumerate(house.wings)}
    for arrow in house.arrows:
        source, target = house.modules[arrow.source].wing, house.modules[arrow.target].wing
        if source is None:
            continue
        if target is None and not (arrow.name or "").startswith("__"):
            yield f"{where(arrow)} imports from {arrow.target}, which stands above all wings: name the room"
        elif target is not None and place.get(source, 0) < place.get(target, 0):
            yield f"{where(arrow)} imports {arrow.target}: {target} comes after {source}"


def circles(house: House) -> Iterator[str]:
    """No imports run in a circle, those inside functions included."""
    graph: dict[str, set[str]] = {name: set() for name in house.modules}
    for arrow in house.arrows:
        graph[arrow.source].add(arrow.target)
    while True:
        try:
            TopologicalSorter(graph).prepare()
            return
        except CycleError as error:
            found = error.args[1][::-1]  # graphlib's arrows run from what is imported
            yield "imports run in a circle: " + " -> ".join(found)
            graph[found[0]].discard(found[1])


@cache
def defined(tree: ast.AST) -> set[str]:
    """Private names that a piece of code defines: functions, classes, arguments, variables, attributes it sets."""
    found = set()
    for node in nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.arg | ast.keyword):
            found.add(node.arg or "")
    return {name for name in found if is_private(name)}


def crossings(tree: ast.AST, arrows: list[Arrow], own: set[str], others: Defined) -> Iterator[tuple[str, int]]:
    """Private names of other modules in a piece of code: imported, or reached with a dot or `getattr`."""
    for arrow in arrows:
        if arrow.name and is_private(arrow.name) and arrow.target not in own:
            yield f"imports the private {arrow.name!r} of {arrow.target}", arrow.line
    mine = defined(tree)
    for node in nodes(tree):
        name = ""
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.Call) and called(node) in ("getattr", "setattr") and len(node.args) > 1:
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
        homes = others.get(name, set())
        if is_private(str(name)) and name not in mine and homes and not homes & own:
            yield f"reaches for {name!r}, which is private to {', '.join(sorted(homes))}", node.lineno


def private_names(house: House) -> dict[str, set[str]]:
    found: Defined = {}
    for module in house.modules.values():
        for name in defined(module.tree):
            found.setdefault(name, set()).add(module.name)
    return found


def private(house: House) -> Iterator[str]:
    """No private name crosses a module's wall."""
    names = private_names(house)
    for module in house.modules.values():
        arrows = [arrow for arrow in house.arrows if arrow.source == module.name]
        for fault, line in crossings(module.tree, arrows, {module.name}, names):
            yield f"{module.name}, line {line}, {fault}"


def own_module(path: Path, house: House) -> set[str]:
    """The module a test may look into: the one it is named after; for a test of several rooms, those of its wing."""
    stem = path.stem.removeprefix("test_")
    wing, _, room = stem.partition("_")
    if f"{house.name}.{wing}.{room}" in house.modules:
        return {f"{house.name}.{wing}.{room}"}
    return {module.name for module in house.modules.values() if module.wing == wing}


def outside(house: House, root: Path) -> Iterator[str]:
    """Tests and notebooks look into their own module only; benchmarks, studies and tools into none."""
    names = private_names(house)
    for folder in OUTSIDE:
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if text.startswith("# AUTOGENERATED"):  # its notebook is looked at
                continue
            tree = ast.parse(text)
            own = own_module(path, house) if folder == "tests" else set()
            for fault, line in crossings(tree, list(house.imports(tree, "")), own, names):
                yield f"{path.relative_to(root)}, line {line}, {fault}"
        for path in sorted((root / folder).rglob("*.ipynb")):
            if ".ipynb_checkpoints" not in path.parts:
                yield from (f"{path.relative_to(root)}: {fault}" for fault in of_notebook(path, house, names))


def of_notebook(path: Path, house: House, names: Defined) -> Iterator[str]:
    code = list(cells(path))
    exports = [re.search(r"^#\|\s*default_exp\s+(\S+)", source, re.M) for _, source, _ in code]
    own = {f"{house.name}.{found[1]}" for found in exports if found}
    local = set().union(*(defined(tree) for _, _, tree in code))
    others = {name: homes for name, homes in names.items() if name not in local}
    for cell, source, tree in code:
        if re.match(r"#\|\s*export", source):  # its module is looked at
            continue
        for fault, line in crossings(tree, list(house.imports(tree, "")), own, others):
            yield f"cell {cell.get('id')}, line {line}, {fault}"


def bound(module: Module) -> set[str]:
    """Names that a package binds at its top: definitions, assignments, imports; of the root also those of its stub."""
    stub = module.path.with_suffix(".pyi")
    found = set()
    for tree in [module.tree, *([ast.parse(stub.read_text(encoding="utf-8"))] if stub.exists() else [])]:
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                found |= {
                    one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
                }
            elif isinstance(node, ast.ImportFrom) and (node.module or not node.level):
                found |= {alias.asname or alias.name for alias in node.names}
    return found


def shadowed(house: House) -> Iterator[str]:
    """No package binds a name that one of its modules has, so a dotted path leads to the module that it names."""
    for package in house.modules.values():
        if package.is_package:
            prefix = f"{package.name}."
            within = {name.removeprefix(prefix).split(".")[0] for name in house.modules if name.startswith(prefix)}
            for name in sorted(within & bound(package)):
                yield f"{package.name} binds the name {name!r}, which shadows its module {prefix}{name}"


def needs(house: House) -> Iterator[str]:
    """The tools of authors are imported in `dev` alone, which is not installed."""
    for module in house.modules.values():
        for node in nodes(module.tree) if module.wing != "dev" else ():
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in sorted({name.split(".")[0] for name in names} & {*TOOLS}):
                yield f"{module.name}, line {node.lineno}, imports {name}, which only authors have"


def expanded(pattern: str) -> list[str]:
    """A glob without its braces: `{a,b}.py` is `a.py` and `b.py`; braces may stand in braces."""
    inner = re.search(r"\{([^{}]*)\}", pattern)
    if not inner:
        return [pattern]
    parts = [pattern[: inner.start()] + part + pattern[inner.end() :] for part in inner[1].split(",")]
    return [one for part in parts for one in expanded(part)]


def generated(house: House, root: Path) -> Iterator[str]:
    """pyproject.toml and .gitattributes name exactly the modules that notebooks export."""
    there = {module.path.relative_to(root).as_posix() for module in house.modules.values() if module.notebook}
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.findall(rf'"({house.name}/\S*\{{\S+\.py)"', text)
    if len(patterns) != 2:
        yield f"pyproject.toml lists generated modules in {len(patterns)} places; 2 are needed"
    found = {f"pyproject.toml, {pattern[:40]}...": covered(pattern, root) for pattern in patterns}
    names = "\n".join(module.path.relative_to(root).as_posix() for module in house.modules.values())
    command = ["git", "check-attr", "linguist-generated", "--stdin"]
    lines = subprocess.run(
        command, input=names, cwd=root, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found[".gitattributes"] = {line.split(": ")[0] for line in lines if line.endswith(": set")}
    for place, names in found.items():
        yield from (f"{place}: {name} is generated and not listed" for name in sorted(there - names))
        yield from (f"{place}: {name} is listed and not generated" for name in sorted(names - there))


def covered(pattern: str, root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for one in expanded(pattern) for path in root.glob(one)}


def main(root: Path = ROOT, package: Path = PACKAGE) -> int:
    house = House(package)
    rules = [upward(house), circles(house), private(house), outside(house, root), shadowed(house)]
    rules += [needs(house), generated(house, root)]
    faults = [fault for rule in rules for fault in rule]
    print("\n".join(faults) or f"{len(house.modules)} modules, {len(house.arrows)} imports, every wall stands")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
