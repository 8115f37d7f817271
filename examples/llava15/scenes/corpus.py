"""Text for a decoder that learns the language and the tasks before it sees a picture: scenes told in words.

Only combinations that training may see occur.
"""

from __future__ import annotations

import random

from lmmblocks.chat import get_template

from .describe import caption, caption_with_boxes
from .questions import TASKS
from .scene import Scene, sample_scene
from .turns import Turn

END_OF_SEQUENCE = "</s>"
_NEEDS_BOXES = ("box", "region")
Messages = list[dict[str, str]]


def corpus_messages(rng: random.Random) -> Messages:
    """A conversation without pictures.

    Returns:
        {"role": "user" | "assistant", "content": str} in turn. In nine of ten, the first user message begins
        with a scene told in words (half of them with boxes) and the questions are about it; the others are
        text-only turns.
    """
    scene = sample_scene(rng, "train")
    if rng.random() < 0.1:
        return as_messages("", [turn for turn in (TASKS["text"](scene, rng) for _ in range(rng.randint(2, 5))) if turn])
    boxes = rng.random() < 0.5
    told = caption_with_boxes(scene) if boxes else caption(scene, rng)
    names = [name for name in TASKS if name != "text" and (boxes or name not in _NEEDS_BOXES)]
    if boxes and rng.random() < 0.5:  # boxes are the longest answers: ask for them often
        names += [rng.choice(_NEEDS_BOXES)] * 2
    return as_messages(told + "\n", sample_turns(scene, rng, names, rng.randint(3, 6)))


def corpus_text(rng: random.Random) -> str:
    """One document: a conversation in the Vicuna prompt format (three of four), or captions, one a line."""
    if rng.random() < 0.25:
        return "\n".join(caption(sample_scene(rng, "train"), rng) for _ in range(rng.randint(1, 4)))
    pieces = get_template("vicuna_v1").render(corpus_messages(rng))
    return "".join({"bos": "", "eos": END_OF_SEQUENCE}.get(piece.kind, piece.text) for piece in pieces)


def sample_turns(scene: Scene, rng: random.Random, names: list[str], count: int) -> list[Turn]:
    """Up to `count` different questions about a scene, tried over `names` in random order."""
    turns: list[Turn] = []
    for name in rng.sample(names, len(names)):
        turn = TASKS[name](scene, rng) if len(turns) < count else None
        if turn is not None and turn.question not in [other.question for other in turns]:
            turns.append(turn)
    return turns


def as_messages(opening: str, turns: list[Turn]) -> Messages:
    """Turns as messages; `opening` goes before the first question."""
    messages: Messages = []
    for index, turn in enumerate(turns):
        messages.append({"role": "user", "content": (opening if index == 0 else "") + turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    return messages
