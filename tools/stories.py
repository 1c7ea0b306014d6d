"""The notebooks without their last section, *Checks*, whose cells are the tests that pytest runs.

    python tools/stories.py _stories    # copies nbs/, what lies beside the notebooks included

`make test` runs pytest and then these copies: each test once, and every cell of every story. `make notebooks` runs the
notebooks themselves, whole.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAST = re.compile(r"^## Checks\s*$", re.M)


def story(notebook: dict) -> dict:
    """A notebook up to its heading *Checks*; whole where it has none."""
    cells = notebook["cells"]
    texts = ["".join(cell["source"]) if cell["cell_type"] == "markdown" else "" for cell in cells]
    heads = [i for i, text in enumerate(texts) if LAST.search(text)]
    return notebook | {"cells": cells[: heads[0]] if heads else cells}


def main(folder: str) -> None:
    shutil.rmtree(ROOT / folder, ignore_errors=True)
    shutil.copytree(ROOT / "nbs", ROOT / folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for path in (ROOT / folder).rglob("*.ipynb"):
        path.write_text(json.dumps(story(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
