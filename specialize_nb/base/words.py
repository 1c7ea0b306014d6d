"""Words for messages: names that are close, what is allowed, numbers with their noun.

A plain module, not a notebook: mechanism without a story.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["check_choice", "counted", "near", "suggest"]


def near(
    name: Any,  # What was given
    names: Iterable[str],  # What there is
    *,
    most: int = 3,  # Names at most
    alike: float = 0.4,  # How close at least, from 0 to 1
) -> list[str]:
    """The names that are close to `name`, the closest first.

    Parameters
    ----------
    name : Any
        What was given
    names : Iterable[str]
        What there is
    most : int, default 3
        Names at most
    alike : float, default 0.4
        How close at least, from 0 to 1

    Returns
    -------
    list[str]
    """
    return difflib.get_close_matches(str(name), list(names), most, alike)


def suggest(
    name: Any,  # What was given
    names: Sequence[str],  # What there is
    noun: str = "layer",  # What they are names of, in the singular
) -> str:
    """The end of an error message: names close to `name`, or the first few.

    Parameters
    ----------
    name : Any
        What was given
    names : Sequence[str]
        What there is
    noun : str, default 'layer'
        What they are names of, in the singular

    Returns
    -------
    str
    """
    if found := near(name, names):
        return "did you mean " + " or ".join(map(repr, found)) + "?"
    if not names:
        return f"it has no {noun}"
    return f"its {counted(len(names), noun)} {'is' if len(names) == 1 else 'start'} {list(names[:3])}"


def check_choice(
    option: str,  # Name of the parameter
    given: Any,  # What it was given
    allowed: Iterable[str],  # The names that it takes
) -> None:
    """Raises: `ValueError` if `given` is none of the names that are allowed.

    Parameters
    ----------
    option : str
        Name of the parameter
    given : Any
        What it was given
    allowed : Iterable[str]
        The names that it takes
    """
    allowed = list(allowed)
    if given not in allowed:
        found = near(given, allowed, most=1)
        hint = f"; did you mean {found[0]!r}?" if found else ""
        raise ValueError(f"got {option}={given!r}: allowed are {', '.join(map(repr, allowed))}{hint}")


def counted(
    number: int,  # At least 0
    noun: str,  # In the singular
) -> str:
    """A number with its noun: `1 unit`, `1,024 units`.

    Parameters
    ----------
    number : int
        At least 0
    noun : str
        In the singular

    Returns
    -------
    str
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
