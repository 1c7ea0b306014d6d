"""Parameters in the docstrings of plain modules: `python tools/docstrings.py` writes them, `--check` says what is old.

Those of exported modules are written by nbdev-export. Both come from the comments behind parameters and fields.
"""

from __future__ import annotations

import sys
from pathlib import Path

from house import House, Module

from specialize_nb.dev.docstrings import lookup_in, with_sections


def plain(house: House) -> list[Module]:
    return [module for module in house.modules.values() if not module.notebook]


def main(check: bool, house: House | None = None, only: tuple[str, ...] = ()) -> int:
    house = house or House()
    lookup, old = lookup_in(house.package.parent), 0
    for module in plain(house):
        path = module.path.relative_to(house.package.parent).as_posix()
        made = with_sections(module.text, lookup=lookup)
        if made == module.text or (only and path not in only):
            continue
        if check:
            print(f"{path}: its docstrings are not what the comments behind parameters say: run `make export`")
            old = 1
        else:
            Path(module.path).write_text(made, encoding="utf-8")
    return old


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main("--check" in given, only=tuple(one for one in given if not one.startswith("--"))))
