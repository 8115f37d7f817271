"""What the decoder reads in its training: captions, conversations and drills about scenes, told in words or in rows of words."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from lmmblocks.chat import CaptionTemplate, Piece, Template, encode_chat, get_template, tokenize

from ..scenes.corpus import as_messages, corpus_messages, sample_turns
from ..scenes.describe import caption, caption_with_boxes
from ..scenes.questions import TASKS, compare
from ..scenes.scene import Scene, sample_scene
from ..scenes.turns import Turn
from .drills import facts_pieces
from .renaming import Renaming
from .word_rows import Document, word_rows

_DRILL_SHARE, _CAPTION_SHARE, _COMPARED_SHARE, _BARE_SHARE = 0.29, 0.06, 0.12, 0.33
_ROWS_SHARE = 0.8
_RENAMED_SHARE = 0.5
_NOT_PLAIN = ("chinese", "count", "json")  # they say colours and shapes in other words
_NOT_IN_ROWS = ("text", "box")  # rows say where an item is in words, not in numbers
_SLOW = ("letter", "letter", "letter", "yesno", "yesno", "yesno", "chinese", "chinese")  # learned last: asked more often

TEMPLATE = get_template("vicuna_v1")
assert isinstance(TEMPLATE, Template)
_BARE_TEMPLATE = replace(TEMPLATE, system="")
_CAPTIONS = get_template("plain")
assert isinstance(_CAPTIONS, CaptionTemplate)
_CAPTION_END = _CAPTIONS.end


def sample_document(rng: random.Random, tokenizer: Any) -> Document:
    """One training document: a drill, a caption, or a conversation with or without the system prompt; half of them renamed."""
    if rng.random() >= _RENAMED_SHARE:
        return _document(rng, tokenizer, plain=False)
    document, renaming = _document(rng, tokenizer, plain=True), _renaming(tokenizer)
    return renaming.renamed(document, rng) if renaming.applies_to(document) else document


def _document(rng: random.Random, tokenizer: Any, plain: bool) -> Document:
    draw, in_rows = rng.random(), rng.random() < _ROWS_SHARE
    if draw < _DRILL_SHARE:
        return _drill(rng, tokenizer, in_rows, plain)
    if draw < _DRILL_SHARE + _CAPTION_SHARE:
        return _caption(rng, tokenizer, in_rows)
    draw -= _DRILL_SHARE + _CAPTION_SHARE
    if draw < _COMPARED_SHARE:
        return _compared(rng, tokenizer)
    template = _BARE_TEMPLATE if draw < _COMPARED_SHARE + _BARE_SHARE else TEMPLATE
    if not in_rows and not plain:
        return Document(encode_chat(corpus_messages(rng), template, tokenizer))
    scene = sample_scene(rng, "train")
    names = [name for name in (*TASKS, *_SLOW) if name not in (_NOT_PLAIN if plain else ()) + _NOT_IN_ROWS]
    opening = "<image>" if in_rows else caption(scene, rng)
    messages = as_messages(f"{opening}\n", sample_turns(scene, rng, names, rng.randint(4, 8)))
    scenes = (word_rows(scene, rng, tokenizer),) if in_rows else ()
    return Document(encode_chat(messages, template, tokenizer), scenes)


@lru_cache(maxsize=4)
def _renaming(tokenizer: Any) -> Renaming:
    return Renaming.of(tokenizer)


def _drill(rng: random.Random, tokenizer: Any, in_rows: bool, plain: bool) -> Document:
    scene = max((sample_scene(rng, "train") for _ in range(2)), key=lambda scene: len(scene.items))
    facts = facts_pieces(scene, rng, plain)
    return _told(scene, rng, tokenizer, in_rows, facts, with_boxes=rng.random() < 0.2)


def _compared(rng: random.Random, tokenizer: Any) -> Document:
    """Two scenes in rows, and which of them shows what."""
    turns: dict[str, Turn] = {}
    while not turns:
        scenes = [sample_scene(rng, "train") for _ in range(2)]
        turns = {turn.question: turn for turn in (compare(*scenes, rng) for _ in range(6)) if turn is not None}
    messages = as_messages("<image>\n<image>\n", list(turns.values()))
    return Document(encode_chat(messages, _BARE_TEMPLATE, tokenizer), tuple(word_rows(scene, rng, tokenizer) for scene in scenes))


def _caption(rng: random.Random, tokenizer: Any, in_rows: bool) -> Document:
    """A scene, then its caption, as stage 1 will show it with a picture in place of the telling."""
    scene = sample_scene(rng, "train")
    said = Piece("text", caption(scene, rng) + _CAPTION_END, "assistant", train=True)
    return _told(scene, rng, tokenizer, in_rows, [said], with_boxes=True)


def _told(scene: Scene, rng: random.Random, tokenizer: Any, in_rows: bool, behind: list[Piece], with_boxes: bool) -> Document:
    if in_rows:
        pieces = [Piece("bos"), Piece("image", role="user"), *behind]
        return Document(tokenize(pieces, tokenizer), (word_rows(scene, rng, tokenizer),))
    text = caption_with_boxes(scene) if with_boxes else caption(scene, rng) + "\n"
    return Document(tokenize([Piece("bos"), Piece("text", text, "user"), *behind], tokenizer))


def heldout_questions(rng: random.Random, per_task: int, tokenizer: Any) -> Iterator[tuple[str, Document]]:
    """Validation questions: a held-out scene, one question, and the task's name; `per_task` of each.

    Every second scene is in rows, the others are told.
    """
    for name, task in TASKS.items():
        found = 0
        while found < per_task:
            scene = sample_scene(rng, "heldout")
            turn = task(scene, rng)
            if turn is None:
                continue
            found += 1
            in_rows = found % 2 and name not in _NOT_IN_ROWS
            told = caption_with_boxes(scene) if name in ("box", "region") else caption(scene, rng)
            opening = "" if name == "text" else "<image>\n" if in_rows else f"{told}\n"
            tokens = encode_chat(as_messages(opening, [turn]), TEMPLATE, tokenizer)
            yield name, Document(tokens, (word_rows(scene, rng, tokenizer),) if in_rows else ())
