"""README.md from nbs/index.ipynb: `python tools/readme.py` writes it, `--check` says whether it is in sync."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"
NOTE = "<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook, then run `make export`. -->"


def markdown(source: str) -> str:
    """Quarto's markdown as GitHub's: plain headings, callouts as quotes, links that start at the root."""
    source = re.sub(r"\A(#\|.*\n)+", "", source)
    source = re.sub(r"^(#+ .+?)\s*\{#[\w-]+\}[ \t]*$", r"\1", source, flags=re.M)
    source = re.sub(r"\]\((?![a-z]+:|[/#])([^)\s]+)", r"](nbs/\1", source).replace("](nbs/../", "](")
    pattern = r"^(:{3,})\s*\{\.callout-(\w+)[^}\n]*\}\s*\n(.*?)^\1[ \t]*$"
    return re.sub(pattern, lambda m: quote(m[2], m[3].strip()), source, flags=re.M | re.S)


def quote(kind: str, text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in [f"[!{kind.upper()}]", *text.splitlines()])


def code(cell: dict) -> Iterator[str]:
    """A cell and the text it shows, unless its options hide them."""
    source = "".join(cell["source"])
    given = dict(re.findall(r"^#\|\s*([\w-]+):?\s*(.*)$", source, re.M))
    source = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
    if not source or "hide" in given or given.get("include") == "false":
        return
    if given.get("echo") != "false":
        shell = source.startswith("!")
        yield fenced(re.sub(r"^!", "", source, flags=re.M) if shell else source, "sh" if shell else "python")
    if given.get("output") != "false":
        for output in cell["outputs"]:
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            if "image/png" not in output.get("data", {}) and (text := "".join(text).rstrip()):
                yield fenced(text, "text")


def fenced(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"


def readme() -> str:
    parts = [NOTE]
    for cell in json.loads(INDEX.read_text(encoding="utf-8"))["cells"]:
        parts += [markdown("".join(cell["source"]).strip())] if cell["cell_type"] == "markdown" else code(cell)
    return "\n\n".join(parts) + "\n"


def main(check: bool) -> int:
    text = readme()
    if check and README.read_text(encoding="utf-8") != text:
        print("README.md is not what nbs/index.ipynb gives: run `make export` and commit it")
        return 1
    if not check:
        README.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
