"""The task types of LLaVA-1.5's mix, asked of one scene each; `compare` is asked of two."""

from __future__ import annotations

import json
import random

from lmmblocks.chat.formats import FORMAT_PROMPTS, with_format

from .chinese import chinese
from .describe import box_text, caption, item_phrase, padded_box
from .scene import Item, Scene
from .text_only import text
from .turns import ASKS, Ask, Task, Turn, named_once, of_kind
from .unanswerable import unanswerable
from .vocabulary import COLORS, PLURALS, SHAPES
from .yes_no import sample_claim

_COUNT_WEIGHTS = {0: 0.5, 1: 0.5, 2: 1.4, 3: 2.6, 4: 3.6}
"""Scenes offer small counts more often; these weights level the answers."""


def _property_task(name: str) -> Task:
    """The short-answer task that asks for one property."""

    def ask_property(scene: Scene, rng: random.Random) -> Turn | None:
        asks = ASKS[name](scene, rng)
        if not asks:
            return None
        ask = rng.choice(asks)
        return Turn(name, with_format(ask.question, "short_answer"), ask.answer, "short")

    return ask_property


def count(scene: Scene, rng: random.Random) -> Turn:
    """How many objects, shapes of a colour, or shapes of a form there are."""
    shapes = of_kind(scene, "shape")
    questions = {"How many objects are in the picture?": len(scene.items)}
    questions |= {f"How many {c} shapes are there?": sum(item.color == c for item in shapes) for c in COLORS}
    questions |= {f"How many {PLURALS[s]} are there?": sum(item.shape == s for item in shapes) for s in SHAPES}
    answers = sorted(set(questions.values()))
    answer = rng.choices(answers, [_COUNT_WEIGHTS[value] for value in answers])[0]
    question = rng.choice([text for text, value in questions.items() if value == answer])
    return Turn("count", with_format(question, "short_answer"), str(answer), "short")


def yesno(scene: Scene, rng: random.Random) -> Turn | None:
    """A claim about the scene, true half of the time."""
    claim = sample_claim(scene, rng)
    if claim is None:
        return None
    return Turn("yesno", with_format(claim[0], "short_answer"), "yes" if claim[1] else "no", "short")


def letter(scene: Scene, rng: random.Random) -> Turn | None:
    """A question with four options, answered by the letter; the right one stands anywhere."""
    asks: list[Ask] = []
    for name in rng.sample(sorted(ASKS), len(ASKS)):
        asks = asks or ASKS[name](scene, rng)
    if not asks:
        return None
    ask = rng.choice(asks)
    options = rng.sample([option for option in ask.pool if option != ask.answer], 3)
    place = rng.randrange(4)
    options.insert(place, ask.answer)
    lines = [ask.question, *(f"{name}. {option}" for name, option in zip("ABCD", options))]
    return Turn("letter", with_format("\n".join(lines), "option_letter"), "ABCD"[place], "letter")


def box(scene: Scene, rng: random.Random) -> Turn | None:
    """From a description to its box, relative to the padded square."""
    items = named_once(scene)
    if not items:
        return None
    item = rng.choice(items)
    question = with_format(f"the {item_phrase(item)}", "region_box")
    return Turn("box", question, box_text(padded_box(scene, item)), "box")


def region(scene: Scene, rng: random.Random) -> Turn:
    """From a box to the short description of what is in it."""
    item = rng.choice(scene.items)
    question = with_format(box_text(padded_box(scene, item)), "region_description")
    return Turn("region", question, item_phrase(item), "short")


def json_list(scene: Scene, rng: random.Random) -> Turn:
    """All objects as a JSON list, in reading order."""
    question = rng.choice(("List all objects in the picture.", "What objects are in the picture?"))
    answer = json.dumps([json_object(item) for item in scene.items])
    return Turn("json", with_format(question, "json"), answer, "json")


def json_object(item: Item) -> dict[str, str | int | None]:
    """What the JSON task says about one item."""
    if item.kind == "shape":
        return {"color": item.color, "shape": item.shape}
    return {"digit": item.digit} if item.kind == "digit" else {"color": item.color, "word": item.word}


def one_sentence(scene: Scene, rng: random.Random) -> Turn:
    """A caption of one sentence."""
    return Turn("caption", FORMAT_PROMPTS["caption"], caption(scene, rng), "caption")


def compare(first: Scene, second: Scene, rng: random.Random) -> Turn | None:
    """Which of two pictures shows something that the other lacks."""
    scenes = [first, second]
    wanted = rng.randrange(2)
    others = {item_phrase(item) for item in scenes[1 - wanted].items}
    phrases = [item_phrase(item) for item in scenes[wanted].items if item_phrase(item) not in others]
    if not phrases:
        return None
    question = f"Which image shows the {rng.choice(phrases)}, the first or the second?"
    return Turn("compare", with_format(question, "short_answer"), ("first", "second")[wanted], "short")


TASKS: dict[str, Task] = {
    "caption": one_sentence,
    **{name: _property_task(name) for name in ASKS},
    "count": count,
    "yesno": yesno,
    "letter": letter,
    "unanswerable": unanswerable,
    "box": box,
    "region": region,
    "json": json_list,
    "chinese": chinese,
    "text": text,
}
"""Task -> a question about a scene, or None where the scene offers none."""
