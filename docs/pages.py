"""Notebooks, written in quarto's dialect, as pages for Sphinx: `python docs/pages.py _proc`.

What changes on the way:
- export cells become entries of the reference, with the source folded under them; hidden cells go;
- `#|` options become cell tags; callouts, `@fig-`, `@eq-` and `@sec-` become MyST; names of the package become links;
- the section "Checks" is folded: a click opens it;
- nbs/sidebar.yml becomes the table of contents, the page `names` lists every public name, the page `house` draws the
  wings and rooms, and plain modules have a page each in `modules/`;
- CONTRIBUTING.md and CHANGELOG.md come along, and so do the programs and tables beside a notebook, for it to link to.
Nothing is imported or run: all is read from the notebooks.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from reference import Entry, entries

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import drawing  # noqa: E402
from house import House, Module  # noqa: E402

NOTEBOOKS = ROOT / "nbs"
ALONG = ("CONTRIBUTING.md", "CHANGELOG.md")
BESIDE = (".py", ".csv")  # What a notebook may link to in its folder
CALLOUTS = ("note", "tip", "warning", "important", "caution")
EXPORTS = {"export", "exports", "exporti"}
ROLES = {"fig": "numref", "tbl": "numref", "eq": "eq", "sec": "ref"}


@dataclass
class Page:
    path: Path
    cells: list[dict]
    module: str | None = None  # Dotted name of the module it exports
    title: str = ""
    summary: str = ""
    entries: dict[str, list[Entry]] = field(default_factory=dict)  # Cell id -> what the cell exports

    @property
    def tests(self) -> int:
        """How many tests its cells make."""
        return len({cell["options"]["test"] for cell in self.cells if "test" in cell["options"]} - {"setup"})

    @property
    def docname(self) -> str:
        """Like nbdev's: without the number in front."""
        path = self.path.relative_to(NOTEBOOKS)
        return path.with_name(unnumbered(path.stem)).as_posix()


def unnumbered(name: str) -> str:
    return re.sub(r"^\d+\w?_", "", name)


def options(source: str) -> tuple[dict[str, str], str]:
    """The `#|` options at the head of a cell, and the rest of it."""
    found, lines = {}, source.splitlines()
    while lines and (match := re.match(r"#\|\s*([\w-]+):?\s*(.*)", lines[0])):
        found[match[1]] = match[2].strip().strip("\"'")
        lines.pop(0)
    return found, "\n".join(lines).strip("\n")


def read(path: Path) -> Page:
    page = Page(path, json.loads(path.read_text(encoding="utf-8"))["cells"])
    for cell in page.cells:
        cell["options"], cell["source"] = options("".join(cell["source"]))
        if "default_exp" in cell["options"]:
            page.module = f"specialize_nb.{cell['options']['default_exp']}"
    first = page.cells[0]["source"]
    page.title = re.search(r"^# (.+)", first, re.M)[1]
    page.summary = " ".join(re.findall(r"^> (.+)", first, re.M))
    exports = [cell for cell in page.cells if cell["cell_type"] == "code" and EXPORTS & cell["options"].keys()]
    for cell, found in zip(exports, entries([cell["source"] for cell in exports], page.module), strict=True):
        page.entries[cell["id"]] = [] if "exporti" in cell["options"] else found
    return page


# --- prose ------------------------------------------------------------------------------------------------------------


def outside_code(text: str, change) -> str:
    """`text` with `change` applied to all but fenced blocks and inline code."""
    parts = re.split(r"(^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[ \t]*$|`[^`\n]+`)", text, flags=re.M | re.S)
    return "".join(part if i % 3 else change(part) for i, part in enumerate(parts) if i % 3 != 2)


def myst(text: str) -> str:
    """Quarto's markdown as MyST's."""
    text = re.sub(r"^(#+ .+?)\s*\{#(sec-[\w-]+)\}[ \t]*$", r"(\2)=\n\1", text, flags=re.M)
    text = re.sub(r"^\$\$\s*\{#(eq-[\w-]+)\}[ \t]*$", r"$$ (\1)", text, flags=re.M)
    text = outside_code(text, lambda part: re.sub(r"\[?@(fig|tbl|eq|sec)-([\w-]*\w)\]?", reference, part))
    text = outside_code(text, lambda part: re.sub(r"\]\(([\w/.]*?)(\w+)\.ipynb", link, part))
    text = outside_code(text, lambda part: re.sub(rf"\]\(((?:\.\./)*)\.\./({'|'.join(ALONG)})", r"](\1\2", part))
    return callouts(text)


def reference(match: re.Match) -> str:
    return f"{{{ROLES[match[1]]}}}`{match[1]}-{match[2]}`"


def link(match: re.Match) -> str:
    return f"]({match[1]}{unnumbered(match[2])}.ipynb"


def callouts(text: str) -> str:
    """`::: {.callout-note title="..."}` as an admonition; a heading on its first line is its title, too."""
    pattern = rf"^(:{{3,}})\s*\{{\.callout-({'|'.join(CALLOUTS)})([^}}\n]*)\}}\s*\n(.*?)^\1[ \t]*$"

    def admonition(match: re.Match) -> str:
        kind, title, body = match[2], re.search(r'title="([^"]*)"', match[3]), match[4]
        heading = re.match(r"\s*#+ (.+)\n", body)
        body = body[heading.end() :] if heading else body
        name = title[1] if title else heading[1] if heading else kind.capitalize()
        return f"{match[1]}{{admonition}} {name}\n:class: {kind}\n\n{body.strip()}\n{match[1]}"

    return re.sub(pattern, admonition, text, flags=re.M | re.S)


class Linker:
    """Links a name of the package where a section first mentions it."""

    def __init__(self, pages: list[Page], plain: list[Entry] | None = None):
        found = [entry for page in pages for cell in page.entries.values() for entry in cell] + (plain or [])
        self.targets: dict[str, str] = {}
        for entry in found:
            for name in entry.names:
                self.targets.setdefault(name, f"{entry.module}.{name}")
        self.whole = {f"{entry.module}.{name}" for entry in found for name in entry.names}
        self.seen: set[str] = set()

    def __call__(self, text: str) -> str:
        return "\n".join(map(self.line, text.split("\n"))) if "```" not in text else text

    def line(self, line: str) -> str:
        if line.startswith("#"):
            self.seen = set()
            return line
        return re.sub(r"(?<![`\[}])`([A-Za-z_][\w.]*)(\(\))?`(?!`)", self.name, line)

    def name(self, match: re.Match) -> str:
        name = match[1].removeprefix("specialize_nb.")
        target = self.targets.get(name) or (full if (full := f"specialize_nb.{name}") in self.whole else None)
        if not target or target in self.seen:
            return match[0]
        self.seen.add(target)
        return f"{{py:obj}}`{match[1]}{match[2] or ''} <{target}>`"


# --- cells ------------------------------------------------------------------------------------------------------------


def imports_only(source: str) -> bool:
    return all(re.match(r"import |from |\s|\)|$", line) for line in source.splitlines())


def code_cell(cell: dict, source: str, *tags: str, **settings) -> dict:
    metadata = {"tags": list(tags)} | ({"mystnb": settings} if settings else {})
    return {**{key: cell[key] for key in ("outputs", "execution_count")}, "cell_type": "code"} | dict(
        metadata=metadata, source=source
    )


def markdown_cell(source: str) -> dict:
    return dict(cell_type="markdown", metadata={}, source=source)


def convert(page: Page, linker: Linker) -> list[dict]:
    """The cells of the page."""
    start = next((i for i, cell in enumerate(page.cells) if is_checks(cell)), len(page.cells))
    cells = converted(page, page.cells[:start], linker)
    checks = converted(page, page.cells[start:], linker)
    return cells + (fold(checks, page.tests) if checks else [])


def is_checks(cell: dict) -> bool:
    return cell["cell_type"] == "markdown" and re.match(r"## Checks\s*$", cell["source"], re.M) is not None


def fold(cells: list[dict], n_tests: int) -> list[dict]:
    """The section of checks behind a click. Its headings become titles: a section cannot begin in a fold."""
    heading, *rest = cells
    inside = [
        one | dict(source=re.sub(r"^##+ (.+)$", r"```{rubric} \1\n```", one["source"], flags=re.M))
        if one["cell_type"] == "markdown"
        else one
        for one in rest
    ]
    title, text = heading["source"].partition("\n")[::2]
    told = f"{n_tests} test{'' if n_tests == 1 else 's'} of what this page says; they run with every change"
    start = f'```{{raw}} html\n<details class="checks"><summary>{told}</summary>\n```'
    end = "```{raw} html\n</details>\n```"
    parts = [title, start, *([text.strip()] if text.strip() else [])]
    return [*map(markdown_cell, parts), *inside, markdown_cell(end)]


def converted(page: Page, given: list[dict], linker: Linker) -> list[dict]:
    cells = []
    for cell in given:
        options, source = cell["options"], cell["source"]
        if not source or {"hide", "default_exp"} & options.keys() or options.get("include") == "false":
            continue
        if cell["cell_type"] == "markdown":
            cells.append(markdown_cell(lead(linker(myst(source)))))
        elif not EXPORTS & options.keys():
            cells += lesson(cell)
        elif not imports_only(source):
            found = page.entries[cell["id"]]
            cells += [markdown_cell(entry.markdown(linker.targets)) for entry in found]
            if not found and cells and "hide-input" in cells[-1]["metadata"].get("tags", ()):
                source = f"{cells.pop()['source']}\n\n\n{source}"  # helpers join the fold before them
            cells.append(folded(cell, source))
    return cells


def lead(text: str) -> str:
    """The sentence under the title, set larger."""
    return re.sub(r"\A(# .+\n+)> (.+(?:\n> .+)*)", lambda m: f"{m[1]}{{.lead}}\n{m[2].replace('> ', '')}", text)


def folded(cell: dict, source: str) -> dict:
    """Source that opens on a click, under the names it defines."""
    names = re.findall(r"^(?:(?:async )?def |class )?(\w+)(?=\(|:| =)", source, re.M)
    prompt = f"Source of {', '.join(names)}"
    settings = dict(code_prompt_show=prompt, code_prompt_hide=prompt)
    return code_cell(cell, source, "hide-input", **settings) | dict(outputs=[])


def lesson(cell: dict) -> list[dict]:
    """A cell the reader sees as it is, with the tags its options ask for; a shell command as a shell has it."""
    given, tags, settings = cell["options"], [], {}
    if cell["source"].startswith("!") and given.get("echo") != "false":
        command = re.sub(r"^!", "", cell["source"], flags=re.M)
        return [markdown_cell(f"```sh\n{command}\n```"), code_cell(cell, cell["source"], "remove-input")]
    tags += ["remove-input"] if given.get("echo") == "false" else []
    tags += ["remove-output"] if given.get("output") == "false" else []
    tags += ["hide-input"] if given.get("code-fold") == "true" else []
    if "code-summary" in given:
        settings["code_prompt_show"] = given["code-summary"]
    if "fig-cap" in given:
        settings["figure"] = dict(caption=myst(given["fig-cap"])) | (
            dict(name=given["label"]) if "label" in given else {}
        )
    if "fig-alt" in given:
        settings["image"] = dict(alt=given["fig-alt"])
    return [code_cell(cell, cell["source"], *tags, **settings)]


# --- the site ---------------------------------------------------------------------------------------------------------


def contents(pages: list[Page]) -> str:
    """nbs/sidebar.yml as tables of contents."""
    docnames = {page.path.relative_to(NOTEBOOKS).as_posix(): page.docname for page in pages}
    sidebar = yaml.safe_load((NOTEBOOKS / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    trees = []
    for part in sidebar:
        if isinstance(part, dict):
            listed = "\n".join(docnames[name] for name in part["contents"])
            trees.append(f"```{{toctree}}\n:hidden:\n:caption: {part['section']}\n\n{listed}\n```")
    last = "\n".join(["names", "house", *(Path(name).stem for name in ALONG)])
    return "\n\n".join([*trees, f"```{{toctree}}\n:hidden:\n:caption: Reference\n\n{last}\n```"])


def all_names(house: House, files: dict[str, str], found: dict[str, list[Entry]]) -> str:
    """The page that lists every public name, module by module in the order of the house."""
    text = ["# All names", "{.lead}\nEvery public name, by module, in the order of the rooms"]
    for room in (room for wing in house.wings for room in house.rooms(wing)):
        if listed := found.get(room.name):
            rows = [f"| {{py:obj}}`{e.name} <{e.module}.{e.name}>` | {e.sentence} |" for e in listed]
            text.append(f"## [{room.name}]({files[room.name]})\n\n{room.sentence}.")
            text.append("\n".join(["| Name | What it answers |", "| --- | --- |", *rows]))
    return "\n\n".join(text) + "\n"


def plain_page(module: Module, found: list[Entry], linker: Linker) -> str:
    """A plain module's docstring and names."""
    sentence, _, text = (ast.get_docstring(module.tree) or "").partition("\n\n")
    head = f"# {module.name.partition('.')[2]}\n\n{{.lead}}\n{sentence.removesuffix('.')}\n\n{linker(text)}\n"
    return "\n\n".join([head, *(entry.markdown(linker.targets) for entry in found)])


def plain_entries(house: House) -> dict[str, list[Entry]]:
    """Each plain module that has public names -> these."""
    rooms = [room for wing in house.wings for room in house.rooms(wing) if not room.notebook]
    return {room.name: found for room in rooms if (found := entries([room.text], room.name)[0])}


def reference_pages(pages: list[Page], house: House, plain: dict[str, list[Entry]], linker: Linker) -> dict[str, str]:
    """What is read from the code: name of the file -> text."""
    found = {page.module: [entry for cell in page.entries.values() for entry in cell] for page in pages if page.module}
    files = {page.module: f"{page.docname}.ipynb" for page in pages if page.module}
    places = {name: f"modules/{name.partition('.')[2].replace('.', '_')}" for name in plain}
    made = {f"{places[name]}.md": plain_page(house.modules[name], plain[name], linker) for name in plain}
    files |= {name: f"{place}.md" for name, place in places.items()}
    made["names.md"] = all_names(house, files, found | plain)
    made["house.md"] = drawing.page(house, files, list(places.values()))
    return made


def neighbours(page: Page) -> list[Path]:
    """The programs and tables in the folder of a notebook."""
    return sorted(path for path in page.path.parent.iterdir() if path.suffix in BESIDE)


def main(target: str) -> None:
    out = ROOT / target
    paths = sorted(path for path in NOTEBOOKS.rglob("*.ipynb") if not re.search(r"/[._]", path.as_posix()))
    pages = [read(path) for path in paths]
    house = House(ROOT / "specialize_nb")
    plain = plain_entries(house)
    linker = Linker(pages, [entry for found in plain.values() for entry in found])
    shutil.rmtree(out, ignore_errors=True)
    for page in pages:
        cells = convert(page, linker)
        if page.docname == "index":
            cells.append(markdown_cell(contents(pages)))
        path = out / f"{page.docname}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        language = dict(name="python", pygments_lexer="ipython3")  # knows `!shell` lines
        kernel = dict(kernelspec=dict(name="python3", display_name="python3"), language_info=language)
        path.write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=4)), encoding="utf-8")
        for beside in neighbours(page):
            shutil.copy(beside, path.parent)
    for name, text in reference_pages(pages, house, plain, linker).items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    for name in ALONG:
        text = (ROOT / name).read_text(encoding="utf-8")
        (out / name).write_text(text.replace("*The house*", "[The house](house.md)"), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
