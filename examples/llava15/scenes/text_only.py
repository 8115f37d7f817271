"""Turns that need no picture: spelling, small sums, opposites, and questions on a scene told in words."""

from __future__ import annotations

import random

from lmmblocks.chat.formats import with_format

from .describe import caption
from .scene import Scene
from .turns import ASKS, Turn
from .vocabulary import WORDS

OPPOSITES = (
    ("left", "right"), ("top", "bottom"), ("above", "below"), ("big", "small"), ("hot", "cold"),
    ("day", "night"), ("yes", "no"), ("open", "closed"), ("light", "dark"), ("fast", "slow"),
    ("first", "last"), ("in", "out"),
)  # fmt: skip


def text(scene: Scene, rng: random.Random) -> Turn:
    """A text-only turn; every second one tells the scene and asks about it."""
    ask = _told if rng.random() < 0.5 else rng.choice((_spelling, _letter, _sum, _opposite))
    question, answer = ask(scene, rng)
    return Turn("text", with_format(question, "short_answer"), answer, "text")


def _told(scene: Scene, rng: random.Random) -> tuple[str, str]:
    asks = [ask for make in ASKS.values() for ask in make(scene, rng)]
    if not asks:
        return _sum(scene, rng)
    ask = rng.choice(asks)
    return f"{caption(scene, rng)} {ask.question}", ask.answer


def _spelling(scene: Scene, rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return rng.choice(("How do you spell {}?", "Spell the word {}.")).format(word), " ".join(word)


def _letter(scene: Scene, rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    name, index = rng.choice((("first", 0), ("last", -1)))
    return f"What is the {name} letter of the word {word}?", word[index]


def _sum(scene: Scene, rng: random.Random) -> tuple[str, str]:
    first, second = rng.randrange(10), rng.randrange(10)
    if rng.random() < 0.5:
        return f"What is {first} plus {second}?", str(first + second)
    return f"What is {first + second} minus {second}?", str(first)


def _opposite(scene: Scene, rng: random.Random) -> tuple[str, str]:
    word, answer = rng.sample(rng.choice(OPPOSITES), 2)
    return f"What is the opposite of {word}?", answer
