"""Evaluation: scorers as pure functions, and a runner that asks a model questions and counts."""

from .normalise import normalise_answer
from .questions import Question, blind, read_questions
from .run import Result, answer_questions, evaluate, summarise
from .scorers import KINDS, is_short, score

__all__ = [
    "KINDS",
    "Question",
    "Result",
    "answer_questions",
    "blind",
    "evaluate",
    "is_short",
    "normalise_answer",
    "read_questions",
    "score",
    "summarise",
]
