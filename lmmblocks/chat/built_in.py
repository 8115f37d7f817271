"""The library's templates by name, and what every template must have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from .. import registry
from ..spec import LmmError
from .templates import ChatTemplate

AUTO = "auto"
"""Stands for the template that is derived from the tokenizer's own; see `from_tokenizer`."""


class _BuiltIn(Mapping[str, ChatTemplate]):
    """The library's templates by name; each is imported when it is asked for."""

    def __getitem__(self, name: str) -> ChatTemplate:
        if name not in registry.built_in("template"):
            raise KeyError(name)
        return _of_library(name)

    def __iter__(self) -> Iterator[str]:
        return iter(registry.built_in("template"))

    def __len__(self) -> int:
        return len(registry.built_in("template"))


@cache
def _of_library(name: str) -> ChatTemplate:
    """Look it up once: conversations are rendered by name in a loop."""
    return registry.resolve("template", name)


TEMPLATES: Mapping[str, ChatTemplate] = _BuiltIn()


def checked(template: Any, found: str) -> ChatTemplate:
    """Return a template as it is.

    Args:
        template: anything.
        found: how the message names what was given.

    Raises:
        LmmError: it has no `name`, `stop` and `render`.
    """
    if not isinstance(template, ChatTemplate):
        raise LmmError(
            f"{found}, expected one of {', '.join(TEMPLATES)}, 'auto', or an object with `name`, `stop` and "
            "`render(messages, *, add_generation_prompt=False)`"
        )
    return template
