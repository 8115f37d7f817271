"""A tokenizer's own chat template, as a function from messages to text, and what makes it unfit to be taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..spec import LmmError
from .messages import Message

_DATE = "strftime_now"
"""The function by which chat templates ask for today's date."""


class Unfit(Exception):
    """A chat template is no markup around contents; the message says why."""


class JinjaTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: a transformers tokenizer.

    Raises:
        LmmError: it has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.source = source_of(tokenizer)

    def __call__(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Render as `tokenizer.apply_chat_template`.

        Raises:
            Unfit: it refuses the conversation.
        """
        return self._render(self.source, messages, add_generation_prompt)

    def depends_on_date(self, messages: Sequence[Message]) -> bool:
        """Whether the text of a conversation changes with the day."""
        if _DATE not in self.source:
            return False
        days = ("first", "second")
        dated = [
            f"{{%- macro date_of_the_test(format) -%}}{day}{{%- endmacro -%}}{self.source.replace(_DATE, 'date_of_the_test')}"
            for day in days
        ]
        first, second = (self._render(source, messages, False) for source in dated)
        return first != second

    def _render(self, source: str, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template may do anything that Jinja can, and fail in any way
            raise Unfit(f"it refuses a conversation ({type(error).__name__}: {error})") from error


def source_of(tokenizer: Any) -> str:
    """Return the Jinja source of a tokenizer's chat template, of several the default one.

    Raises:
        LmmError: it has none.
    """
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("default")
    if not found:
        raise LmmError(
            f"{type(tokenizer).__name__} has no chat template to derive one from: choose a template by name, or set tokenizer.chat_template"
        )
    return found
