"""Does a page load anything over the network? `python tools/check_offline.py FILE_OR_FOLDER...`

Links that a reader may click are fine; scripts, styles, pictures, fonts and requests are not.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

REMOTE = r"(?:https?:)?//[\w.-]"
LOADS = {
    "a css url": rf"url\(\s*[\"']?{REMOTE}[^)]*",
    "a css import": rf"@import\s+[\"']{REMOTE}[^\"']*",
    "a request": r"(?:fetch|importScripts|import|\.open|EventSource|WebSocket)\(\s*[^)]*?[\"'`](?:ws|http)s?:[^\"'`]*",
}
FETCHED = {"stylesheet", "icon", "preload", "modulepreload", "prefetch"}


class Page(HTMLParser):
    """Collects what the tags of a page load."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "link" and not set(given.get("rel", "").split()) & FETCHED:
            return  # rel=canonical, next, license, ... name a page and load nothing
        names = ["src", "srcset", "data", "poster"] + (["href", "xlink:href"] if tag not in ("a", "area") else [])
        for name in names:
            if re.match(rf"\s*{REMOTE}", given.get(name, "")):
                self.found.append(f"<{tag} {name}={given[name][:100]!r}>")


def loads(path: Path) -> list[str]:
    """What a file would fetch from elsewhere."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = []
    if path.suffix == ".html":
        page = Page()
        page.feed(text)
        found = page.found
    return found + [f"{what}: {match[0][:100]}" for what, rule in LOADS.items() for match in re.finditer(rule, text)]


def main(names: list[str]) -> int:
    roots = [Path(name) for name in names]
    files = [file for root in roots for file in ([root] if root.is_file() else sorted(root.rglob("*.*")))]
    pages = [file for file in files if file.suffix in (".html", ".css", ".js") and "mathjax" not in file.parts]
    faults = [f"{page}: {fault}" for page in pages for fault in loads(page)]
    if not any(page.suffix == ".html" for page in pages):
        faults.append(f"no page in {' '.join(names)}")
    print("\n".join(faults) or f"{len(pages)} files load nothing over the network")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
