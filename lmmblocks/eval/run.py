"""Ask a model questions, score its answers, and count per task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .questions import Question
from .scorers import is_short, parse_json, score

if TYPE_CHECKING:
    from ..lmm import LMM

FORMATTED = ("short", "letter")
"""Kinds whose format prompt asks for a word, phrase or letter."""


@dataclass(frozen=True)
class Result:
    """An answer and its score between 0 and 1."""

    question: Question
    answer: str
    score: float


def answer_questions(
    model: LMM,
    questions: Sequence[Question],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 128,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """Return the model's greedy answers, in order.

    Args:
        model: an ``LMM``.
        questions: what to ask; each is a conversation of its own.
        batch_size: questions decoded side by side.
        max_new_tokens: longest answer.
        on_batch: called with the number of questions answered.
    """
    answers: list[str] = []
    for start in range(0, len(questions), batch_size):
        chunk = questions[start : start + batch_size]
        answers += model.generate([q.prompt for q in chunk], [list(q.images) for q in chunk], max_new_tokens=max_new_tokens)
        if on_batch is not None:
            on_batch(len(answers))
    return answers


def evaluate(model: LMM, questions: Sequence[Question], **options: Any) -> list[Result]:
    """Answer and score; options as for :func:`answer_questions`."""
    answers = answer_questions(model, questions, **options)
    return [Result(q, text, score(q.kind, text, q.answer)) for q, text in zip(questions, answers)]


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """Count per task and over all.

    Returns:
        ``tasks``: task -> ``questions``, ``kind`` (of the first), ``score``, ``majority`` (always giving the task's most frequent answer);
        ``short_answer``: mean score over all short and letter questions; ``short_answer_majority``: what the most frequent answer of each
        task's short and letter questions scores on them; ``format``: share of those answers that are one word, phrase or letter;
        ``json_parses``: share of JSON answers that parse; ``questions``: how many. A mean over no question is None.
    """
    short = [r for r in results if r.question.kind in FORMATTED]
    tasks, short_tasks = _by_task(results), _by_task(short)
    as_json = [r for r in results if r.question.kind == "json"]
    return {
        "tasks": {
            task: {"questions": len(rows), "kind": rows[0].question.kind, "score": _mean([r.score for r in rows]), "majority": _majority(rows)}
            for task, rows in tasks.items()
        },
        "short_answer": _mean([r.score for r in short]),
        "short_answer_majority": _mean([_majority(rows) for rows in short_tasks.values() for _ in rows]),
        "format": _mean([float(is_short(r.answer)) for r in short]),
        "json_parses": _mean([float(parse_json(r.answer) is not None) for r in as_json]),
        "questions": len(results),
    }


def _by_task(results: Sequence[Result]) -> dict[str, list[Result]]:
    tasks: dict[str, list[Result]] = {}
    for result in results:
        tasks.setdefault(result.question.task, []).append(result)
    return tasks


def _majority(rows: Sequence[Result]) -> float:
    answer = Counter(r.question.answer for r in rows).most_common(1)[0][0]
    return sum(score(r.question.kind, answer, r.question.answer) for r in rows) / len(rows)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
