"""The page of the house: wings, rooms, and who imports whom, drawn from the code as `tools/house.py` reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

from house import House, Module
from reference import bars

CELL, LABELS, HEAD = 10, 150, 130  # Pixels: of a square of the picture, left of it, above it
INTRO = """# The house
{.lead}
Where things are: the wings of the package, their rooms, and who imports whom

A *room* is a module, a *wing* is a folder of rooms. A room imports from its own wing and from the wings above it in the
list, never from those below, and never in a circle; `make check` proves it. This page is drawn from the code.
"""
CAPTION = """Each filled square is an import: the room of its row uses the room of its column. Rooms stand in the order
of the wings, and within a wing after those they use, so every square lies below the diagonal. Hover over a square to
see what is imported.
"""


def uses(house: House) -> dict[tuple[str, str], set[str]]:
    """(Room, room it imports from) -> what it imports."""
    found: dict[tuple[str, str], set[str]] = {}
    for arrow in house.arrows:
        if house.modules[arrow.source].wing and house.modules[arrow.target].wing:
            found.setdefault((arrow.source, arrow.target), set()).add(arrow.name or "the module")
    return found


def short(module: Module) -> str:
    """Without the package: `stats.tests`."""
    return module.name.partition(".")[2]


def picture(house: House) -> str:
    """A square for every pair of rooms that an import joins, as SVG."""
    rooms = [room for wing in house.wings for room in house.rooms(wing)]
    place = {room.name: i for i, room in enumerate(rooms)}
    side = CELL * len(rooms)
    lines = [f'<svg class="house" viewBox="0 0 {LABELS + side + 30} {HEAD + side}" role="img" aria-label="Imports">']
    lines += [f'<g transform="translate({LABELS} {HEAD})">']
    for wing in house.wings:
        own = [place[room.name] * CELL for room in house.rooms(wing)]
        if own:
            size = CELL * len(own)
            lines.append(f'<rect class="wing" x="{own[0]}" y="{own[0]}" width="{size}" height="{size}"/>')
            lines.append(f'<line x1="{-LABELS}" x2="{side}" y1="{own[0]}" y2="{own[0]}"/>')
    for i, room in enumerate(rooms):
        middle = (i + 0.75) * CELL
        name = escape(short(room))
        lines.append(f'<text x="-4" y="{middle:g}" text-anchor="end">{name}</text>')
        lines.append(f'<text transform="translate({middle:g} -4) rotate(-60)">{name}</text>')
    for (source, target), names in sorted(uses(house).items()):
        if source in place and target in place:
            told = escape(
                f"{short(house.modules[source])} imports from {short(house.modules[target])}: {listed(names)}"
            )
            x, y = place[target] * CELL + 1, place[source] * CELL + 1
            lines.append(f'<rect class="use" x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}">')
            lines.append(f"<title>{told}</title></rect>")
    return "\n".join([*lines, "</g></svg>"])


def listed(names: set[str]) -> str:
    return ", ".join(sorted(names, key=str.lower))


def of_wings(house: House) -> str:
    """Each wing, what it is for, and the wings it imports from."""
    lines = ["| Wing | What it is for | Imports from |", "| --- | --- | --- |"]
    found = {(house.modules[source].wing, house.modules[target].wing) for source, target in uses(house)}
    for wing in house.wings:
        below = [f"`{one}`" for one in house.wings if (wing, one) in found and one != wing]
        lines.append(
            f"| [{wing}](#{wing}) | {bars(house.modules[f'{house.name}.{wing}'].sentence)} | {', '.join(below)} |"
        )
    return "\n".join(lines)


def of_rooms(house: House, wing: str, pages: Mapping[str, str]) -> Iterator[str]:
    """A wing's rooms, what each answers, and the rooms it imports from."""
    used = uses(house)
    yield f"## {wing}\n\n{house.modules[f'{house.name}.{wing}'].sentence}.\n"
    yield "| Room | What it is for | Imports from |\n| --- | --- | --- |"
    for room in house.rooms(wing):
        targets = [house.modules[target] for source, target in used if source == room.name]
        below = ", ".join(f"`{short(one)}`" for one in sorted(targets, key=lambda one: house.order.index(one.name)))
        name = f"[{room.room}]({pages[room.name]})" if room.name in pages else f"`{room.room}`"
        yield f"| {name} | {bars(room.sentence)} | {below} |"
    yield ""


def page(house: House, pages: Mapping[str, str], plain: list[str]) -> str:
    """The page in MyST; `pages` says which file each module has on the site, `plain` which stand under this page."""
    tree = "```{toctree}\n:hidden:\n\n" + "\n".join(plain) + "\n```\n" if plain else ""
    parts = [INTRO, of_wings(house), f"\n```{{raw}} html\n{picture(house)}\n```\n", CAPTION, tree]
    for wing in house.wings:
        parts += of_rooms(house, wing, pages)
    return "\n".join(parts)
