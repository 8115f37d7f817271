"""A tokenizer's own chat template, as a function from messages to text, and what makes it unfit to be taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..spec import LmmError

_DATE = "strftime_now"
"""The function by which chat templates ask for today's date."""


class Unfit(Exception):
    """A chat template is no markup around contents; the message says why."""


class Trims(Unfit):
    """The contents of messages are written without the whitespace around them."""


class JinjaTemplate:
    """A chat template.

    Args:
        tokenizer: a transformers tokenizer.
        source: the program; None = the tokenizer's own.
        parts: contents are given as lists of parts, ``[{"type": "text", "text": ...}]``, as processors do, and not as strings.

    Raises:
        LmmError: the tokenizer has no chat template and none is given.
    """

    def __init__(self, tokenizer: Any, source: str | None = None, *, parts: bool = False) -> None:
        self.tokenizer, self.parts = tokenizer, parts
        self.source = source_of(tokenizer) if source is None else source

    def __call__(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """Render as `tokenizer.apply_chat_template`.

        Raises:
            Unfit: it refuses the conversation.
        """
        return self._render(self.source, messages, add_generation_prompt)

    def _content(self, content: Any) -> Any:
        return [{"type": "text", "text": content}] if self.parts and isinstance(content, str) else content

    def depends_on_date(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the text of a conversation changes with the day."""
        if _DATE not in self.source:
            return False
        days = ("first", "second")
        dated = [f"{{%- macro date_of_the_test(format) -%}}{day}{{%- endmacro -%}}{self.source.replace(_DATE, 'date_of_the_test')}" for day in days]
        first, second = (self._render(source, messages, False) for source in dated)
        return first != second

    def _render(self, source: str, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                [{**message, "content": self._content(message["content"])} for message in messages],
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
