"""Templates of markup: the words and tokens that stand around the contents of a conversation, and nothing else.

Motivation: chat formats differ in their markup, hardly ever in their shape. So one class renders them all, a format is a value (it can be
compared, saved as JSON and derived from a tokenizer), and a new one needs no code.

How it works: a conversation of two turns is

    opening  q1  to_answer  lead a1 ending  to_question  q2  to_answer  lead a2 ending  close

What the model says is learned: `lead`, the answer and `ending`. A generation prompt ends with `to_answer`. With a system prompt
`around_system[0] system around_system[1]` stands for `opening`; so a format that folds the system prompt into the first question is no exception.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from ..spec import ByKeywords, LmmError
from ..spec.fields import Filled
from .messages import Message, split_system
from .pieces import Piece, PieceKind, content_pieces
from .template_fields import refuse_wrong_fields

BOS, EOS = "{bos}", "{eos}"
"""Stand in markup for the tokenizer's own tokens; a tokenizer without a `bos` gives none."""

_KINDS: dict[str, PieceKind] = {BOS: "bos", EOS: "eos"}


@dataclass(frozen=True)
class MarkedTemplate(metaclass=ByKeywords):
    """Contents between fixed markup.

    Markup is text in which `{bos}`, `{eos}` and every string of `tokens` is one token; in the contents of messages they are ordinary text.

    Args:
        name: the registered name, or what to call it in messages.
        opening: markup before the first question of a conversation without a system prompt.
        to_answer: markup between a question and its answer.
        ending: markup that ends an answer, up to the token that does. Without one its text does.
        to_question: markup between the end of an answer and the next question.
        close: markup after the end of the last answer of a finished conversation.
        around_system: markup before a system prompt, and from there to the first question; None = no system prompt can be given.
        tokens: the special tokens in the markup, other than the tokenizer's own `bos` and `eos`.
        lead: text between the generation prompt and the answer, said by the model: the space where tokenizers join it to the next word.
        system: the system prompt of a conversation that brings none; "" = none.
        empty_system: whether an empty system message is a system prompt, or none.
        image: markup before and after every image.
        ends: tokens that end an answer besides, where a model states them; () = none but the tokenizer's own.
        stops: strings that end an answer besides, where a model states them.

    Raises:
        LmmError: nothing ends an answer, markup is not a string, or the system prompt holds an image.

    Example:
        >>> lines = MarkedTemplate("lines", opening="Q: ", to_answer="\\nA:", lead=" ", ending="{eos}", to_question="\\nQ: ")
        >>> [piece.text or piece.kind for piece in lines.render([{"role": "user", "content": "Why?"}], add_generation_prompt=True)]
        ['Q: ', 'Why?', '\\nA:']
    """

    name: str
    opening: str
    to_answer: str
    ending: str
    to_question: str
    close: str = ""
    around_system: tuple[str, str] | None = None
    tokens: Annotated[tuple[str, ...], Filled] = ()
    lead: str = ""
    system: str = ""
    empty_system: bool = True
    image: tuple[str, str] = ("", "")
    ends: Annotated[tuple[str, ...], Filled] = ()
    stops: Annotated[tuple[str, ...], Filled] = ()

    def __post_init__(self) -> None:
        refuse_wrong_fields(self, more=_own_tokens(self))
        refuse_wrong_fields(self, more=_problems_of_ending(self))

    @property
    def stop(self) -> tuple[str, ...]:
        """What ends an answer: the token of `ending`, or its text. The tokenizer's own end token always does."""
        kind, text = cut(self.ending, self.tokens)[-1]
        return () if kind == "eos" else (text,)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Piece]:
        """Render a conversation.

        Args:
            messages: see `split_system`.
            add_generation_prompt: end with what introduces an answer.

        Returns:
            Pieces; the answers and their ends are marked for training.

        Raises:
            LmmError: the conversation is malformed, or has a system message and the format no place for one.
        """
        system, turns = split_system(messages, add_generation_prompt=add_generation_prompt)
        pieces = self._opening(system)
        for index, turn in enumerate(turns):
            if turn["role"] == "user":
                pieces += self._markup(self.to_question, "user") if index else []
                pieces += self._content(turn["content"], "user")
                pieces += self._markup(self.to_answer, "assistant")
            else:
                pieces += self._answer(turn["content"])
        return pieces if add_generation_prompt else [*pieces, *self._markup(self.close, "assistant")]

    def _opening(self, system: str | None) -> list[Piece]:
        """Everything before the first question."""
        if system is None:
            system = self.system or None
        if system is None or not (system or self.empty_system):
            return self._markup(self.opening, "user")
        if self.around_system is None:
            raise LmmError(f"template {self.name!r} has no place for a system message: remove it, or put it into the first question")
        before, after = self.around_system
        return [
            *self._markup(before, "system"),
            *self._content(system, "system"),
            *self._markup(after, "user"),
        ]

    def _answer(self, content: str) -> list[Piece]:
        lead = [Piece("text", self.lead, "assistant", train=True)] if self.lead else []
        return [
            *lead,
            *self._content(content, "assistant", train=True),
            *self._markup(self.ending, "assistant", train=True),
        ]

    def _content(self, content: str, role: str, *, train: bool = False) -> list[Piece]:
        """A message with the text around its images."""
        pieces = content_pieces(content, role, train=train)
        if not any(self.image):
            return pieces
        before, after = (self._markup(markup, role, train=train) for markup in self.image)
        return [part for piece in pieces for part in ((*before, piece, *after) if piece.kind == "image" else (piece,))]

    def _markup(self, markup: str, role: str, *, train: bool = False) -> list[Piece]:
        return [Piece(kind, text, role, train) for kind, text in cut(markup, self.tokens)]


@lru_cache(1024)
def cut(markup: str, tokens: tuple[str, ...]) -> tuple[tuple[PieceKind, str], ...]:
    """Cut markup at its tokens, of which the longer is found first.

    >>> cut("{bos}<|user|>\\n", ("<|user|>",))
    (('bos', ''), ('special', '<|user|>'), ('text', '\\n'))
    """
    longest_first = sorted((*_KINDS, *tokens), key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", markup)
    kinds = (("text" if index % 2 == 0 else _KINDS.get(part, "special"), part) for index, part in enumerate(parts) if part)
    return tuple((kind, "" if kind in ("bos", "eos") else part) for kind, part in kinds)


def _own_tokens(template: MarkedTemplate) -> list[str]:
    taken = [mark for mark in _KINDS if isinstance(template.tokens, tuple) and mark in template.tokens]
    return [f"tokens holds {taken[0]!r}, which stands for the tokenizer's own in markup: leave it out"] if taken else []


def _problems_of_ending(template: MarkedTemplate) -> list[str]:
    parts = cut(template.ending, template.tokens)
    if not parts:
        return ["ending is empty, so a model would never learn to stop: give the token or the text that ends an answer"]
    if any(kind != "text" for kind, _ in parts[:-1]):
        return [f"ending {template.ending!r} goes on after the token that ends an answer: move the rest to to_question and close"]
    if template.system and template.around_system is None:
        return ["system is given without around_system, which says where it stands"]
    return []
