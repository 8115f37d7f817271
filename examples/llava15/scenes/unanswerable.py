"""Questions that about half of the time ask for something that isn't there, in the same words either way."""

from __future__ import annotations

import random
from collections.abc import Callable

from lmmblocks.chat.formats import with_format

from .describe import item_phrase, position
from .scene import Scene
from .turns import Turn, named_once, of_kind, unique
from .vocabulary import COLORS, SHAPES, WORDS
from .yes_no import absent_shape_pair

ANSWER = "Unanswerable"
_Form = Callable[[Scene, random.Random, bool], "tuple[str, str] | None"]


def unanswerable(scene: Scene, rng: random.Random) -> Turn | None:
    """A question that the scene may or may not answer."""
    form, present_share = rng.choice(_FORMS)
    found = form(scene, rng, rng.random() < present_share)
    return Turn("unanswerable", with_format(found[0], "unanswerable"), found[1], "short") if found else None


def _color(scene: Scene, rng: random.Random, present: bool) -> tuple[str, str] | None:
    shapes = of_kind(scene, "shape")
    answers = {item.shape: item.color or "" for item in unique(shapes, "shape")}
    if not present:
        shown = {item.shape for item in shapes}
        answers = {shape: ANSWER for shape in SHAPES if shape not in shown}
    return _ask("What color is the {}?", answers, rng)


def _shape(scene: Scene, rng: random.Random, present: bool) -> tuple[str, str] | None:
    coloured = [*of_kind(scene, "shape"), *of_kind(scene, "word")]
    answers = {item.color: item.shape or "" for item in unique(coloured, "color") if item.kind == "shape"}
    if not present:
        shown = {item.color for item in coloured}
        answers = {color: ANSWER for color in COLORS if color not in shown}
    return _ask("What is the shape of the {} object?", answers, rng)


def _position(scene: Scene, rng: random.Random, present: bool) -> tuple[str, str] | None:
    answers = {item_phrase(item): position(item) for item in named_once(scene)}
    if not present:
        shown = {item_phrase(item) for item in scene.items}
        pair = " ".join(absent_shape_pair(scene, rng))
        absent = (pair, pair, f"digit {rng.randrange(10)}", f"word {rng.choice(WORDS)}")
        answers = {phrase: ANSWER for phrase in (rng.choice(absent),) if phrase not in shown}
    return _ask("Where is the {}?", answers, rng)


def _digit(scene: Scene, rng: random.Random, present: bool) -> tuple[str, str] | None:
    question = rng.choice(("What digit is shown in the picture?", "Which digit is written in the picture?"))
    return _only_one(question, [str(item.digit) for item in of_kind(scene, "digit")], present)


def _word(scene: Scene, rng: random.Random, present: bool) -> tuple[str, str] | None:
    question = rng.choice(("What does the sign say?", "What word is written in the picture?"))
    return _only_one(question, [item.word or "" for item in of_kind(scene, "word")], present)


def _ask(question: str, answers: dict, rng: random.Random) -> tuple[str, str] | None:
    if not answers:
        return None
    subject = rng.choice(list(answers))
    return question.format(subject), answers[subject]


def _only_one(question: str, shown: list[str], present: bool) -> tuple[str, str] | None:
    if len(shown) != int(present):
        return None
    return question, shown[0] if present else ANSWER


_FORMS: tuple[tuple[_Form, float], ...] = (
    (_color, 0.53),
    (_shape, 0.55),
    (_position, 0.49),
    (_digit, 0.68),
    (_word, 0.68),
)
"""Form and how often it asks for something present: scenes with exactly one digit are rarer than without."""
