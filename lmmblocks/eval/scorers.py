"""Scores of one answer, each a pure function of the predicted and the true text, between 0 and 1."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..images.boxes import parse_box
from ..spec import LmmError, closest
from .normalise import normalise_answer

SHORT_WORDS = 3
"""Most words of what still counts as "a single word or phrase"."""


def exact(prediction: str, truth: str) -> float:
    """1 when the answers are equal after VQA normalisation (case, articles, punctuation, number words).

    >>> exact("The red.", "red")
    1.0
    """
    return float(normalise_answer(prediction) == normalise_answer(truth))


def letter(prediction: str, truth: str) -> float:
    """1 when the answer is the option's letter itself, as SEED-Bench counts (string equality)."""
    return float(prediction.strip() == truth.strip())


def same_json(prediction: str, truth: str) -> float:
    """1 when both parse to the same value; lists count as equal in any order.

    >>> same_json('[{"a": 1}, {"b": 2}]', '[{"b":2},{"a":1}]')
    1.0
    """
    found, wanted = parse_json(prediction), parse_json(truth)
    if wanted is None:
        raise LmmError(f"the right answer {truth[:80]!r} is not JSON: correct it, or the kind of its question")
    return float(found is not None and _canonical(found) == _canonical(wanted))


def parse_json(text: str) -> Any | None:
    """Return the value of a text that is JSON as a whole, else None (also for ``null``)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _canonical(value: Any) -> Any:
    if isinstance(value, list):
        return sorted((_canonical(entry) for entry in value), key=repr)
    if isinstance(value, dict):
        return {key: _canonical(entry) for key, entry in sorted(value.items())}
    return (bool, value) if isinstance(value, bool) else value  # to Python, True == 1


def overlap(prediction: str, truth: str) -> float:
    """1 when the predicted box overlaps the true one with IoU >= 0.5, as RefCOCO counts."""
    wanted = parse_box(truth)
    try:
        return float(parse_box(prediction).iou(wanted) >= 0.5)
    except LmmError:
        return 0.0


def word_f1(prediction: str, truth: str) -> float:
    """F1 of the two bags of words, lower-cased, commas and full stops removed.

    >>> word_f1("a red circle", "A red square.")
    0.6666666666666666
    """
    found, wanted = (Counter(text.lower().replace(",", " ").replace(".", " ").split()) for text in (prediction, truth))
    shared = sum((found & wanted).values())
    return 2 * shared / (found.total() + wanted.total()) if shared else 0.0


KINDS: dict[str, Callable[[str, str], float]] = {
    "short": exact,
    "letter": letter,
    "text": exact,
    "json": same_json,
    "box": overlap,
    "caption": word_f1,
}
"""How an answer is scored, by the kind of its question."""


def score(kind: str, prediction: str, truth: str) -> float:
    """Return the score of an answer.

    Args:
        kind: a key of ``KINDS``.
        prediction: what the model said.
        truth: the right answer.

    Raises:
        LmmError: an unknown kind, or a right answer that is none of that kind.
    """
    if kind not in KINDS:
        raise LmmError(f"unknown kind of question {kind!r}{closest(kind, KINDS)}; known: {sorted(KINDS)}")
    return KINDS[kind](prediction, truth)


def is_short(prediction: str) -> bool:
    """Return whether an answer is a single word, phrase or letter: at most three words on one line, not a sentence."""
    text = prediction.strip()
    return bool(text) and "\n" not in text and not text.endswith((".", "!", "?")) and len(text.split()) <= SHORT_WORDS
