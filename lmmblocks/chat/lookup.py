"""Templates by name: the library's, registered ones, those of other packages, and the tokenizer's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import registry
from ..spec import LmmError
from .built_in import AUTO, TEMPLATES, checked
from .derive import from_tokenizer
from .saving import template_from_dict, template_to_dict
from .templates import ChatTemplate


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
        return template_from_dict(name)
    if not isinstance(name, str):
        return checked(name, f"template is a {type(name).__name__}")
    if name == AUTO:
        return _of_tokenizer(tokenizer)
    if name in TEMPLATES:
        return TEMPLATES[name]
    found = registry.resolve("template", name)
    return checked(found() if isinstance(found, type) else found, f"template {name!r} is a {type(found).__name__}")


def template_setting(template: ChatTemplate, given: Any = None) -> str | dict[str, Any]:
    """Return what a config says about a template: a name under which it is found again, else its fields.

    Args:
        template: the template.
        given: the name that it was asked for by, if any; it may be 'package.module:OBJECT'.

    Raises:
        LmmError: it has no such name, and fields that can't be written.
    """
    for name in (given, template.name):
        if isinstance(name, str) and _stands_for(name, template):
            return name
    return template_to_dict(template)


def missing_tokens(template: ChatTemplate, tokenizer: Any) -> list[str]:
    """Return the special tokens that a template writes and the tokenizer lacks."""
    tokens = getattr(template, "tokens", ())
    vocabulary = getattr(tokenizer, "backend_tokenizer", None)
    return [] if vocabulary is None else [token for token in tokens if vocabulary.token_to_id(token) is None]


def _stands_for(name: str, template: ChatTemplate) -> bool:
    """Whether a name finds this template, or one that is equal."""
    if ":" not in name and name not in registry.names("template"):
        return False
    found = get_template(name)
    return found is template or found == template


def _of_tokenizer(tokenizer: Any) -> ChatTemplate:
    if tokenizer is None:
        raise LmmError(
            "template='auto' is derived from the tokenizer's chat template, and there is no tokenizer: pass tokenizer=..., or choose a "
            f"template by name: {', '.join(TEMPLATES)}"
        )
    return from_tokenizer(tokenizer)
