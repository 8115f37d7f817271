"""Yes/no questions: each is asked only of a scene that could make it true, then half are made false."""

from __future__ import annotations

import random

from .describe import item_phrase
from .scene import Scene, split_of
from .turns import named_once, of_kind, unique
from .vocabulary import HELDOUT_SHAPE_PAIRS, SHAPE_PAIRS, TRAIN_SHAPE_PAIRS, WORDS

Claim = tuple[str, bool]


def absent_shape_pair(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A (colour, shape) the scene does not show but could; at least half share one of the two with an item.

    Questions about train scenes never name a held-out pair; those about held-out scenes name them about as
    often as the scenes show them.
    """
    shown = {(item.color, item.shape) for item in of_kind(scene, "shape")}
    allowed: tuple[tuple[str, str], ...] = TRAIN_SHAPE_PAIRS
    if split_of(scene) == "heldout":
        allowed = tuple(sorted(HELDOUT_SHAPE_PAIRS)) if rng.random() < 0.6 else SHAPE_PAIRS
    pairs = [pair for pair in allowed if pair not in shown]
    near = [pair for pair in pairs if any(pair[0] == color or pair[1] == shape for color, shape in shown)]
    return rng.choice(near if near and rng.random() < 0.5 else pairs)


def _pair_claim(scene: Scene, rng: random.Random, truth: bool) -> str | None:
    shapes = of_kind(scene, "shape")
    if not shapes:
        return None
    item = rng.choice(shapes)
    color, shape = (item.color, item.shape) if truth else absent_shape_pair(scene, rng)
    return rng.choice(("Is there a {} {} in the picture?", "Does the picture show a {} {}?")).format(color, shape)


def _color_claim(scene: Scene, rng: random.Random, truth: bool) -> str | None:
    candidates = unique(of_kind(scene, "shape"), "shape")
    if not candidates:
        return None
    item = rng.choice(candidates)
    allowed = TRAIN_SHAPE_PAIRS if split_of(scene) == "train" else SHAPE_PAIRS
    wrong = [color for color, shape in allowed if shape == item.shape and color != item.color]
    return f"Is the {item.shape} {item.color if truth else rng.choice(wrong)}?"


def _relation_claim(scene: Scene, rng: random.Random, truth: bool) -> str | None:
    pairs = [
        (first, second, axis)
        for first in named_once(scene)
        for second in named_once(scene)
        for axis in (0, 1)
        if first.cell[axis] < second.cell[axis]
    ]
    if not pairs:
        return None
    first, second, axis = rng.choice(pairs)
    forward, backward = (("above", "below"), ("to the left of", "to the right of"))[axis]
    if rng.random() < 0.5:
        first, second, forward, backward = second, first, backward, forward
    return f"Is the {item_phrase(first)} {forward if truth else backward} the {item_phrase(second)}?"


def _digit_claim(scene: Scene, rng: random.Random, truth: bool) -> str | None:
    shown = [item.digit for item in of_kind(scene, "digit")]
    if not shown:
        return None
    digit = rng.choice(shown if truth else [digit for digit in range(10) if digit not in shown])
    return f"Is there a digit {digit} in the picture?"


def _word_claim(scene: Scene, rng: random.Random, truth: bool) -> str | None:
    shown = [item.word for item in of_kind(scene, "word")]
    if not shown:
        return None
    word = rng.choice(shown if truth else [word for word in WORDS if word not in shown])
    return f"Is the word {word} written in the picture?"


_CLAIMS = (_pair_claim, _color_claim, _relation_claim, _digit_claim, _word_claim)


def sample_claim(scene: Scene, rng: random.Random) -> Claim | None:
    """A yes/no question and whether it holds."""
    truth = rng.random() < 0.5
    for claim in rng.sample(_CLAIMS, len(_CLAIMS)):
        question = claim(scene, rng, truth)
        if question is not None:
            return question, truth
    return None
