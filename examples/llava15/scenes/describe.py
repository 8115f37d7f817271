"""A scene in words and boxes."""

from __future__ import annotations

import random

from .scene import Item, Scene
from .vocabulary import POSITIONS

Box = tuple[float, float, float, float]


def item_phrase(item: Item) -> str:
    """The shortest description: "red circle", "digit 7", "word sun"."""
    if item.kind == "shape":
        return f"{item.color} {item.shape}"
    return f"digit {item.digit}" if item.kind == "digit" else f"word {item.word}"


def item_description(item: Item) -> str:
    """All about an item but its place: "a red circle", "the digit 7", "the word sun on a blue sign"."""
    if item.kind == "shape":
        return f"{article(item.color or '')} {item_phrase(item)}"
    if item.kind == "digit":
        return f"the {item_phrase(item)}"
    return f"the {item_phrase(item)} on {article(item.color or '')} {item.color} sign"


def article(word: str) -> str:
    """The indefinite article a word takes."""
    return "an" if word[0] in "aeiou" else "a"


def position(item: Item) -> str:
    """The name of an item's place: "top left", "center", ..."""
    return POSITIONS[item.cell]


def place_phrase(item: Item) -> str:
    """An item's place with its preposition: "at the top left", "in the center", "on the right"."""
    name = position(item)
    return f"{ {'center': 'in', 'left': 'on', 'right': 'on'}.get(name, 'at') } the {name}"


def caption(scene: Scene, rng: random.Random) -> str:
    """One sentence that names every item, with colour and place, in one of several wordings."""
    placed = [f"{item_description(item)} {place_phrase(item)}" for item in scene.items]
    style = rng.randrange(5)
    if style == 4:
        inverted = [f"{place_phrase(item)} is {item_description(item)}" for item in scene.items]
        return _sentence(_joined(inverted))
    opening = ("", "There is ", "The picture shows ", "You can see ")[style]
    return _sentence(opening + _joined(placed))


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def regions(scene: Scene) -> list[tuple[str, Box]]:
    """Each item's phrase and its box in pixels of the unpadded picture (x0, y0, x1, y1)."""
    return [(item_phrase(item), tuple(map(float, item.box_px))) for item in scene.items]  # type: ignore[misc]


def padded_box(scene: Scene, item: Item) -> Box:
    """An item's box, 0..1 of the square the picture is padded to (centred, offset rounded down).

    Source: the convention of LLaVA-1.5's region data, as its author states it (haotian-liu/LLaVA, 606).
    """
    side = max(scene.width_px, scene.height_px)
    dx, dy = (side - scene.width_px) // 2, (side - scene.height_px) // 2
    x0, y0, x1, y1 = item.box_px
    return (x0 + dx) / side, (y0 + dy) / side, (x1 + dx) / side, (y1 + dy) / side


def box_text(box: Box) -> str:
    """A padded-relative box as LLaVA writes it, with two decimals.

    >>> box_text((0.0, 0.635, 0.3, 0.76))
    '[0.00, 0.64, 0.30, 0.76]'
    """
    return f"[{', '.join(f'{value:.2f}' for value in box)}]"


def caption_with_boxes(scene: Scene) -> str:
    """A sentence that also gives every item's padded-relative box, for learning from text alone."""
    placed = [f"{item_description(i)} {place_phrase(i)} {box_text(padded_box(scene, i))}" for i in scene.items]
    return _sentence(_joined(placed))
