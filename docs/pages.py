"""Notebooks, written in quarto's dialect, as pages for Sphinx: `python docs/pages.py _proc`.

What changes on the way:
- export cells become entries of the reference, with the source folded under them; hidden cells go;
- `#|` options become cell tags; callouts, `@fig-`, `@eq-` and `@sec-` become MyST; names of the package become links;
- nbs/sidebar.yml becomes the table of contents, the page `names` lists every public name;
- CONTRIBUTING.md and CHANGELOG.md come along, and so do the programs and tables beside a notebook, for it to link to.
Nothing is imported or run: all is read from the notebooks.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from reference import Entry, entries

ROOT = Path(__file__).resolve().parent.parent
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

    def __init__(self, pages: list[Page]):
        found = [entry for page in pages for cell in page.entries.values() for entry in cell]
        self.targets = {name: f"{entry.module}.{name}" for entry in found for name in entry.names}
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
        target = self.targets.get(name) or (name in self.targets.values() and name)
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
    cells = []
    for cell in page.cells:
        given, source = cell["options"], cell["source"]
        if not source or {"hide", "default_exp"} & given.keys() or given.get("include") == "false":
            continue
        if cell["cell_type"] == "markdown":
            cells.append(markdown_cell(lead(linker(myst(source)))))
        elif not EXPORTS & given.keys():
            cells.append(lesson(cell))
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


def lesson(cell: dict) -> dict:
    """A cell the reader sees as it is, with the tags its options ask for."""
    given, tags, settings = cell["options"], [], {}
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
    return code_cell(cell, cell["source"], *tags, **settings)


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
    last = "\n".join(["names", *(Path(name).stem for name in ALONG)])
    return "\n\n".join([*trees, f"```{{toctree}}\n:hidden:\n:caption: Reference\n\n{last}\n```"])


def all_names(pages: list[Page]) -> str:
    """The page that lists every public name."""
    text = ["# All names", "{.lead}\nEvery public name, by module, in the order of the rooms"]
    for page in pages:
        found = [entry for cell in page.entries.values() for entry in cell]
        if found:
            rows = [f"| {{py:obj}}`{e.name} <{e.module}.{e.name}>` | {e.sentence} |" for e in found]
            text.append(f"## [{page.module}]({page.docname}.ipynb)\n\n{page.summary}.")
            text.append("\n".join(["| Name | What it answers |", "| --- | --- |", *rows]))
    return "\n\n".join(text) + "\n"


def neighbours(page: Page) -> list[Path]:
    """The programs and tables in the folder of a notebook."""
    return sorted(path for path in page.path.parent.iterdir() if path.suffix in BESIDE)


def main(target: str) -> None:
    out = ROOT / target
    paths = sorted(path for path in NOTEBOOKS.rglob("*.ipynb") if not re.search(r"/[._]", path.as_posix()))
    pages = [read(path) for path in paths]
    linker = Linker(pages)
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
    (out / "names.md").write_text(all_names(pages), encoding="utf-8")
    for name in ALONG:
        shutil.copy(ROOT / name, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
