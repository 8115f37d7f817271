"""Facts of a scene in few words, dense in look-ups: what a decoder needs before it can answer questions about a scene.

To find the one item that is asked for among several is the skill after nearly every answer, and a small
decoder finds out late when a document asks five questions in two hundred tokens. Here it is asked two dozen
times, in few words.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from lmmblocks.chat import Piece

from ..scenes.chinese import COLORS_ZH, NUMBERS_ZH, SHAPES_ZH
from ..scenes.describe import item_phrase, place_phrase, position
from ..scenes.scene import Scene
from ..scenes.turns import ASKS, named_once, of_kind, unique
from ..scenes.unanswerable import ANSWER as UNANSWERABLE
from ..scenes.vocabulary import COLORS, PLURALS, SHAPES
from ..scenes.yes_no import absent_shape_pair, sample_claim

Fact = tuple[str, str]
_FACTS = 24
_CLAIMS, _OPTIONS = 4, 3


def facts_pieces(scene: Scene, rng: random.Random, plain: bool = False) -> list[Piece]:
    """Facts of a scene in random order, each as a key and its answer, for after the telling.

    The answer follows the key's last word at once: the row of that word can look for its like among the rows
    of the scene, where a colon in between would first have to find out what was asked.

    Args:
        scene: what the facts are of.
        rng: source of the order, and of which facts where there are many.
        plain: leave out Chinese and plurals, which name colours and shapes in other words.
    """
    facts = [fact for fact in scene_facts(scene, rng) if not plain or _is_plain(fact)]
    pieces = []
    for key, answer in rng.sample(facts, min(_FACTS, len(facts))):
        pieces.append(Piece("text", f" {key}", "user"))
        pieces.append(Piece("text", f" {answer}", "assistant", train=True))
        pieces.append(Piece("eos", role="assistant", train=True))
    return pieces


def _is_plain(fact: Fact) -> bool:
    key, answer = fact
    return (key + answer).isascii() and not any(plural in key for plural in PLURALS.values())


def scene_facts(scene: Scene, rng: random.Random) -> Iterator[Fact]:
    """Unambiguous facts of a scene, each told by a key of few words."""
    for item in scene.items:
        yield place_phrase(item), item_phrase(item)
    for item in named_once(scene):
        yield item_phrase(item), position(item)
    yield from _property_facts(scene)
    yield from _count_facts(scene, rng)
    yield from _claim_facts(scene, rng)
    yield from _option_facts(scene, rng)


def _property_facts(scene: Scene) -> Iterator[Fact]:
    shapes, words, digits = (of_kind(scene, kind) for kind in ("shape", "word", "digit"))
    for item in unique(shapes, "shape"):
        yield f"color {item.shape}", f"{item.color}"
        yield f"{SHAPES_ZH[item.shape or '']}", COLORS_ZH[item.color or ""]
    for item in unique([*shapes, *words], "color"):
        if item.kind == "shape":
            yield f"shape {item.color}", f"{item.shape}"
            yield COLORS_ZH[item.color or ""], SHAPES_ZH[item.shape or ""]
    for item in unique(words, "color"):
        yield f"{item.color} sign", f"{item.word}"
    for item in words:
        yield f"color word {item.word}", f"{item.color}"
    if len(digits) < 2:
        yield "digit", f"{digits[0].digit}" if digits else UNANSWERABLE
    if len(words) < 2:
        yield "sign", f"{words[0].word}" if words else UNANSWERABLE


def _count_facts(scene: Scene, rng: random.Random) -> Iterator[Fact]:
    shapes = of_kind(scene, "shape")
    by_shape, by_color = Counter(item.shape for item in shapes), Counter(item.color for item in shapes)
    yield "objects", str(len(scene.items))
    yield "个形状", NUMBERS_ZH[len(shapes)]
    for shape in {*by_shape, rng.choice(SHAPES)}:
        yield f"{PLURALS[shape or '']}", str(by_shape[shape])
        yield f"个{SHAPES_ZH[shape or '']}", NUMBERS_ZH[by_shape[shape]]
    for color in {*by_color, rng.choice(list(COLORS))}:
        yield f"{color} shapes", str(by_color[color])


def _claim_facts(scene: Scene, rng: random.Random) -> Iterator[Fact]:
    """Claims, true or false, and something that may be missing."""
    claims = [sample_claim(scene, rng) for _ in range(_CLAIMS)]
    yield from {claim[0]: "yes" if claim[1] else "no" for claim in claims if claim is not None}.items()
    shapes = of_kind(scene, "shape")
    pairs = [(item.color or "", item.shape or "") for item in named_once(scene) if item.kind == "shape"]
    pair, there = absent_shape_pair(scene, rng), False
    if pairs and rng.random() < 0.5:
        pair, there = rng.choice(pairs), True
    yield f"{' '.join(pair)}?", "yes" if there else "no"
    yield f"{COLORS_ZH[pair[0]]}{SHAPES_ZH[pair[1]]}", "有" if there else "没有"
    if pair not in [(item.color, item.shape) for item in shapes]:
        yield " ".join(pair), UNANSWERABLE
        if pair[1] not in [item.shape for item in shapes]:
            yield f"color {pair[1]}", UNANSWERABLE


def _option_facts(scene: Scene, rng: random.Random) -> Iterator[Fact]:
    """Questions with two to four options, answered by the letter."""
    for name in rng.sample(sorted(ASKS), _OPTIONS):
        asks = ASKS[name](scene, rng)
        if not asks:
            continue
        ask = rng.choice(asks)
        options = rng.sample([option for option in ask.pool if option != ask.answer], rng.randint(1, 3))
        place = rng.randint(0, len(options))
        options.insert(place, ask.answer)
        lines = [f"{name}. {option}" for name, option in zip("ABCD", options)]
        yield "\n".join([ask.question, *lines]) + ":", "ABCD"[place]
