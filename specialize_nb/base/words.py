"""Words for messages: names that are close, what is allowed, numbers with their noun.

A plain module, not a notebook: mechanism without a story.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["check_choice", "counted", "near", "suggest"]


def near(name: Any, names: Iterable[str], *, most: int = 3) -> list[str]:
    """The names that are close to `name`, the closest first."""
    return difflib.get_close_matches(str(name), list(names), most, 0.4)


def suggest(name: Any, names: Sequence[str], noun: str = "layer") -> str:
    """The end of an error message: names close to `name`, or the first few."""
    if found := near(name, names):
        return "did you mean " + " or ".join(map(repr, found)) + "?"
    return f"its {counted(len(names), noun)} start {list(names[:3])}" if names else f"it has no {noun}"


def check_choice(option: str, given: Any, allowed: Iterable[str]) -> None:
    """Raises: `ValueError` if `given` is none of the names that are allowed."""
    allowed = list(allowed)
    if given not in allowed:
        found = near(given, allowed, most=1)
        hint = f"; did you mean {found[0]!r}?" if found else ""
        raise ValueError(f"got {option}={given!r}: allowed are {', '.join(map(repr, allowed))}{hint}")


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 unit`, `1,024 units`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
