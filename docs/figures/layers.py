"""The layers of the package and who imports whom, read from its sources: ``layers.svg`` and ``imports.svg``.

The order of the layers is that of ``tests/test_import_direction.py``, which holds every import to it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from svg import FAINT, INK, TEXT_FILL, box, labelled, picture, text, width_of

ROOT = Path(__file__).resolve().parents[2]
DIRECTION = ROOT / "tests" / "test_import_direction.py"
SIZE, HEIGHT, GAP = 13, 28, 8
MOST_NAMED = 4
"""Modules of one folder that a layer may name before they are drawn as one."""

SAYS = {
    "root and kernels": "know nothing of what calls them",
    "spec": "contracts: grids, features, plans, errors",
    "plans": "the splice plan, made on the host",
    "ops": "specification first, then implementations",
    "what blocks are made with": "templates, pictures, files, names",
    "blocks": "one class a file",
    "composition": "do the parts fit?",
    "lmm": "encoder + projector + decoder",
    "weights of parts": "files of others, read both ways",
    "builder": "build()",
    "whole models": "load(), save(), inspect",
    "use": "data, training, answers, scores",
    "cli": "lmmblocks COMMAND",
}


def direction() -> ModuleType:
    """Return the test that owns the order of the layers."""
    spec = importlib.util.spec_from_file_location("import_direction", DIRECTION)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rooms_by_layer(owner: ModuleType) -> list[tuple[str, list[str]]]:
    """Return the layers bottom up, each with its rooms: what lies at the top of the package, or is named in the layer by itself."""
    found: list[tuple[str, set[str]]] = [(name, set()) for name, _ in owner.LAYERS]
    for module in owner.sources():
        place = owner.layer(module)
        assert place is not None, f"{module} has no layer"
        if module and not module.startswith("_"):
            found[place][1].add(room_of(module, place, owner))
    return [(name, sorted(rooms)) for name, rooms in found if rooms]


def room_of(module: str, place: int, owner: ModuleType) -> str:
    """Return the room of a module: the folder or file at the top, or below it where a folder is in several layers."""
    top, _, rest = module.partition(".")
    if not rest or owner.layer(top) == place:
        return top
    named = [entry for entry in owner.LAYERS[place][1] if entry.startswith(f"{top}.")]
    return f"{top}/*" if len(named) > MOST_NAMED else ".".join(module.split(".")[:2])


def layers_picture() -> str:
    """Return the picture of the layers, lowest at the bottom."""
    layers = rooms_by_layer(direction())
    left, width = 250, 940
    shapes, y = [], 16.0
    for name, rooms in reversed(layers):
        rows = wrapped(rooms, width - left - 24)
        height = len(rows) * (HEIGHT + GAP) + GAP
        shapes.append(box(8, y, width - 16, height, stroke="#d9dde2"))
        shapes.append(text(20, y + 22, name, size=SIZE, bold=True))
        shapes.append(text(20, y + 38, SAYS.get(name, ""), size=10.5, fill=FAINT) if height > 40 else "")
        for row, line in enumerate(rows):
            x = float(left)
            for room in line:
                wide = width_of(room, SIZE) + 18
                shapes.append(labelled(x, y + GAP + row * (HEIGHT + GAP), wide, HEIGHT, room, size=SIZE, fill=TEXT_FILL))
                x += wide + GAP
        y += height + 6
    shapes.append(
        text(
            8,
            y + 16,
            "A room imports rooms of lower layers and of its own, never of a higher one; inside a layer imports run in no circle.",
            size=11.5,
        )
    )
    return picture(
        width,
        y + 28,
        "The layers of lmmblocks, from the command line at the top to contracts and kernels at the bottom",
        filter(None, shapes),
    )


def wrapped(rooms: list[str], width: float) -> list[list[str]]:
    """Return rooms in rows that are no wider than ``width``, two rows at least high enough for the layer's name."""
    rows: list[list[str]] = [[]]
    used = 0.0
    for room in rooms:
        wide = width_of(room, SIZE) + 18 + GAP
        if rows[-1] and used + wide > width:
            rows.append([])
            used = 0.0
        rows[-1].append(room)
        used += wide
    return rows


def imports_picture() -> str:
    """Return the matrix of imports: a dot where the room of the row imports that of the column, below the diagonal or in a layer's square."""
    owner = direction()
    layers = rooms_by_layer(owner)
    rooms = [room for _, members in layers for room in members if room != "kernels"]
    places = {room: number for number, room in enumerate(rooms)}
    graph = owner.import_graph(owner.sources(), deferred=True)
    pairs = set()
    for module, targets in graph.items():
        for target in targets:
            ends = [room_of(one, owner.layer(one), owner) for one in (module, target) if one and owner.layer(one) is not None]
            if len(ends) == 2 and (module, target) not in owner.DEFERRED and set(ends) <= places.keys() and ends[0] != ends[1]:
                pairs.add((places[ends[0]], places[ends[1]]))
    return _matrix(rooms, [[room for room in members if room in places] for _, members in layers], pairs)


def _matrix(rooms: list[str], layers: list[list[str]], pairs: set[tuple[int, int]]) -> str:
    cell, left, top = 15, 150, 165
    side = cell * len(rooms)
    shapes = [box(left, top, side, side, stroke="#d9dde2")]
    start = 0
    for members in layers:
        if members:
            at, wide = start * cell, len(members) * cell
            shapes.append(f'<rect x="{left + at}" y="{top + at}" width="{wide}" height="{wide}" fill="{TEXT_FILL}"/>')
        start += len(members)
    for number, room in enumerate(rooms):
        middle = number * cell + cell / 2 + 4
        shapes.append(text(left - 6, top + middle, room, size=10, anchor="end"))
        shapes.append(f'<text transform="translate({left + middle:g},{top - 6}) rotate(-90)" font-size="10" fill="{INK}">{room}</text>')
        shapes.append(f'<line x1="{left}" y1="{top + number * cell}" x2="{left + side}" y2="{top + number * cell}" stroke="#eef0f3"/>')
    shapes += [f'<circle cx="{left + b * cell + cell / 2:g}" cy="{top + a * cell + cell / 2:g}" r="3.2" fill="{INK}"/>' for a, b in sorted(pairs)]
    shapes.append(text(8, 18, "A dot: the room of the row imports the room of the column.", size=12))
    shapes.append(
        text(
            8,
            36,
            "Shaded: rooms of one layer. Nothing above the shaded squares: no room imports one of a higher layer.",
            size=12,
        )
    )
    return picture(max(left + side + 20, 640), top + side + 16, "Which rooms of lmmblocks import which", shapes)


PICTURES = {"layers.svg": layers_picture, "imports.svg": imports_picture}
