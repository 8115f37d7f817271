"""One question with its answer, and how questions single an item out without ambiguity."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from .describe import item_phrase, place_phrase, position
from .scene import Item, Scene
from .vocabulary import COLORS, POSITIONS, SHAPES, WORDS

Kind = Literal["short", "letter", "json", "box", "caption", "text"]


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Args:
        task: a key of `questions.TASKS`, or "compare".
        question: the whole user turn, with its response-format prompt, without `<image>`.
        answer: the only right answer.
        kind: how to score it. "short", "letter" and "text": equal; "json": equal once parsed; "box": overlap;
            "caption": free text.
    """

    task: str
    question: str
    answer: str
    kind: Kind


Task = Callable[[Scene, random.Random], Turn | None]


@dataclass(frozen=True)
class Ask:
    """A bare question about one property, before its format prompt: `pool` are the answers it could have."""

    question: str
    answer: str
    pool: tuple[str, ...]


def of_kind(scene: Scene, kind: str) -> list[Item]:
    """The scene's items of one kind."""
    return [item for item in scene.items if item.kind == kind]


def unique(items: Iterable[Item], attribute: str) -> list[Item]:
    """The items whose value of `attribute` no other of them shares."""
    found = list(items)
    values = [getattr(item, attribute) for item in found]
    return [item for item, value in zip(found, values) if values.count(value) == 1]


def named_once(scene: Scene) -> list[Item]:
    """The items that their phrase alone singles out."""
    phrases = [item_phrase(item) for item in scene.items]
    return [item for item, phrase in zip(scene.items, phrases) if phrases.count(phrase) == 1]


def color_asks(scene: Scene, rng: random.Random) -> list[Ask]:
    """Questions for a colour: of the only circle, of the shape in a place, of the only sign."""
    pool = tuple(COLORS)
    shapes, words = of_kind(scene, "shape"), of_kind(scene, "word")
    asks = [Ask(f"What color is the {item.shape}?", item.color or "", pool) for item in unique(shapes, "shape")]
    asks += [Ask(f"What is the color of the shape {place_phrase(item)}?", item.color or "", pool) for item in shapes]
    asks += [Ask(f"What color is the sign {place_phrase(item)}?", item.color or "", pool) for item in words]
    return asks


def shape_asks(scene: Scene, rng: random.Random) -> list[Ask]:
    """Questions for a shape: of the only red one, of the one in a place."""
    shapes = of_kind(scene, "shape")
    asks = [Ask(f"What shape is {place_phrase(item)}?", item.shape or "", SHAPES) for item in shapes]
    asks += [
        Ask(f"What is the shape of the {item.color} object?", item.shape or "", SHAPES)
        for item in unique([*shapes, *of_kind(scene, "word")], "color")
        if item.kind == "shape"
    ]
    return asks


def position_asks(scene: Scene, rng: random.Random) -> list[Ask]:
    """Questions for the place of an item."""
    pool = tuple(POSITIONS.values())
    opening = rng.choice(("Where is the", "In which part of the picture is the"))
    return [Ask(f"{opening} {item_phrase(item)}?", position(item), pool) for item in named_once(scene)]


def digit_asks(scene: Scene, rng: random.Random) -> list[Ask]:
    """Questions for a handwritten digit: the only one, or the one in a place."""
    pool = tuple(map(str, range(10)))
    digits = of_kind(scene, "digit")
    asks = [Ask(f"What digit is {place_phrase(item)}?", str(item.digit), pool) for item in digits]
    if len(digits) == 1:
        question = rng.choice(("What digit is shown in the picture?", "Which digit is written in the picture?"))
        asks.append(Ask(question, str(digits[0].digit), pool))
    return asks


def word_asks(scene: Scene, rng: random.Random) -> list[Ask]:
    """Questions for a printed word: the only one, on the only sign of a colour, or in a place."""
    words = of_kind(scene, "word")
    asks = [Ask(f"What word is written {place_phrase(item)}?", item.word or "", WORDS) for item in words]
    asks += [Ask(f"What does the {item.color} sign say?", item.word or "", WORDS) for item in unique(words, "color")]
    if len(words) == 1:
        question = rng.choice(("What does the sign say?", "What word is written in the picture?"))
        asks.append(Ask(question, words[0].word or "", WORDS))
    return asks


ASKS = {
    "color": color_asks,
    "shape": shape_asks,
    "position": position_asks,
    "digit": digit_asks,
    "word": word_asks,
}
"""Property -> every unambiguous question for it in a scene."""
