"""Questions with known answers, read from LLaVA records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..data.records import Records
from ..images.load import load_image
from ..spec import LmmError, Sample, closest
from .scorers import score

_NAMED = 5  # refused records that one message names
_KEYS = ("tasks", "kinds")
_ALIKE = 0.85


@dataclass(frozen=True)
class Question:
    """One thing to ask.

    Attributes:
        id: of the record.
        task: what it belongs to in the summary.
        kind: how it is scored, a key of ``scorers.KINDS``.
        prompt: the user's turn with its ``<image>`` markers and its format prompt.
        images: paths or PIL images, in the order of the markers.
        answer: the right answer.
    """

    id: Any
    task: str
    kind: str
    prompt: str
    images: tuple[Any, ...]
    answer: str


def read_questions(records: Records) -> list[Question]:
    """Turn single-turn records into questions; ``tasks`` and ``kinds`` of a record name its one turn (default: one task, short).

    Raises:
        LmmError: records that aren't questions, see ``question_of``; the first are named.
    """
    questions, wrong = [], []
    for index in range(len(records)):
        try:
            questions.append(question_of(records[index], records.raw(index)))
        except LmmError as error:
            wrong.append(str(error))
    if wrong:
        more = f" (and {len(wrong) - _NAMED} more: lmmblocks data check --questions lists them)" if len(wrong) > _NAMED else ""
        raise LmmError("; ".join(wrong[:_NAMED]) + more)
    return questions


def question_of(sample: Sample, raw: Mapping[str, Any]) -> Question:
    """Return a record as a question.

    Args:
        sample: of the record.
        raw: the record itself, with ``tasks`` and ``kinds``.

    Raises:
        LmmError: several turns, a system message, an unknown kind, an answer that is none of its kind, or a key that is nearly one of ours.
    """
    name = f"record {sample.id!r}"
    roles = [message["role"] for message in sample.messages]
    if roles != ["user", "assistant"]:
        system = ", the first of the system" if roles[:1] == ["system"] else ""
        raise LmmError(f"{name} has {len(roles)} messages{system}: evaluation asks one question and knows one answer")
    for key in raw:
        if key not in _KEYS and (meant := closest(key, _KEYS, cutoff=_ALIKE)):
            raise LmmError(f"{name} has the key {key!r}, which isn't read{meant}")
    question, answer = (message["content"] for message in sample.messages)
    task, kind = (_only(raw, key, default) for key, default in (("tasks", "all"), ("kinds", "short")))
    try:
        sound = score(kind, answer, answer) == 1
    except LmmError as error:
        raise error.at(name) from error
    if not sound:
        raise LmmError(f"{name}: the right answer {answer!r} doesn't score as one of kind {kind!r}: correct one of them")
    return Question(sample.id, task, kind, question, tuple(sample.images), answer)


def _only(raw: Mapping[str, Any], key: str, default: str) -> str:
    """Return the one entry of a record's list ``key``."""
    values = raw.get(key, [default])
    if not isinstance(values, list) or len(values) != 1 or not isinstance(values[0], str):
        raise LmmError(f"record {raw.get('id')!r} has {key} {values!r}: expected a list with one name, for its one turn")
    return values[0]


def blind(questions: Sequence[Question], cover: Callable[[Any], Any]) -> list[Question]:
    """Return the questions with every image covered: what a model can score without seeing.

    Args:
        questions: with images.
        cover: from a PIL image to the one shown instead, such as a grey one of the same size.
    """
    return [replace(q, images=tuple(cover(load_image(image)) for image in q.images)) for q in questions]
