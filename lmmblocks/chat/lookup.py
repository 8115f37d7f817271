"""Templates by name: the library's, registered ones, those of other packages, and the tokenizer's own."""

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


def get_template(name: str | Mapping[str, Any] | ChatTemplate, tokenizer: Any = None) -> ChatTemplate:
    """Look a template up.

    Args:
        name: a key of `TEMPLATES`; a name registered with `lmmblocks.register("template", name)`; "package.module:OBJECT"; "auto" for the
            tokenizer's own; the fields of a template as `template_to_dict` gives them; or a template object, which is returned as it is.
        tokenizer: what "auto" derives from.

    Returns:
        The template.

    Raises:
        LmmError: the name is unknown, the object has no `name`, `stop` and `render`, or nothing can be derived from the tokenizer.
    """
    if isinstance(name, Mapping):
        from .saving import template_from_dict

        return template_from_dict(name)
    if not isinstance(name, str):
        return _checked(name, f"template is a {type(name).__name__}")
    if name == AUTO:
        return _of_tokenizer(tokenizer)
    if name in TEMPLATES:
        return TEMPLATES[name]
    found = registry.resolve("template", name)
    return _checked(
        found() if isinstance(found, type) else found, f"template {name!r} is a {type(found).__name__}"
    )


def missing_tokens(template: ChatTemplate, tokenizer: Any) -> list[str]:
    """Return the special tokens that a template writes and the tokenizer lacks."""
    tokens = getattr(template, "tokens", ())
    vocabulary = getattr(tokenizer, "backend_tokenizer", None)
    return [] if vocabulary is None else [token for token in tokens if vocabulary.token_to_id(token) is None]


def _checked(template: Any, found: str) -> ChatTemplate:
    if not isinstance(template, ChatTemplate):
        raise LmmError(
            f"{found}, expected one of {', '.join(TEMPLATES)}, 'auto', or an object with `name`, `stop` and "
            "`render(messages, *, add_generation_prompt=False)`"
        )
    return template


def _of_tokenizer(tokenizer: Any) -> ChatTemplate:
    if tokenizer is None:
        raise LmmError(
            "template='auto' is derived from the tokenizer's chat template, and there is no tokenizer: pass tokenizer=..., or choose a "
            f"template by name: {', '.join(TEMPLATES)}"
        )
    from .derive import from_tokenizer

    return from_tokenizer(tokenizer)
