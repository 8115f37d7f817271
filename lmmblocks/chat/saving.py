"""Templates as plain values, so that a model is saved with the template it was trained with, whoever made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from .. import registry
from ..spec import LmmError, closest
from .built_in import TEMPLATES, checked
from .marked import MarkedTemplate
from .prompted import PromptTemplate
from .templates import CaptionTemplate, ChatTemplate, Template

FORMS: Mapping[str, type] = {"marked": MarkedTemplate, "roles": Template, "caption": CaptionTemplate, "prompt": PromptTemplate}
"""The library's classes of templates by the name they have in JSON; others are `package.module:Class`."""


def template_to_dict(template: ChatTemplate) -> dict[str, Any]:
    """Return a template as its class and fields; `template_from_dict` makes an equal one of them.

    Args:
        template: a dataclass whose fields are plain values.

    Raises:
        LmmError: it is something else, or its class can't be found again.

    Example:
        >>> template_to_dict(CaptionTemplate("lines"))
        {'type': 'caption', 'name': 'lines', 'end': '\\n', 'ends': [], 'stops': []}
    """
    cls = type(template)
    kind = next((name for name, known in FORMS.items() if known is cls), registry.path_of(cls))
    if not is_dataclass(template):
        raise _unsaveable(template, f"its class {kind} is no dataclass, so its fields can't be told")
    values = {
        "type": kind,
        **{field.name: getattr(template, field.name) for field in fields(template) if field.init},
    }
    try:
        plain = json.loads(json.dumps(values))
        same = template_from_dict(plain) == template
    except (TypeError, ValueError) as error:  # LmmError included
        raise _unsaveable(template, str(error)) from error
    if not same:
        raise _unsaveable(template, "made again from its fields it is another")
    return plain


def template_from_dict(values: Mapping[str, Any]) -> ChatTemplate:
    """Make the template that `template_to_dict` wrote down.

    Raises:
        LmmError: an unknown class, unknown or missing fields, or values that make no template.
    """
    rest = dict(values)
    kind = rest.pop("type", None)
    if not isinstance(kind, str):
        raise LmmError(f"template is a dict without a 'type', expected one of {', '.join(FORMS)} or 'package.module:Class'")
    if kind not in FORMS and ":" not in kind:
        raise LmmError(f"unknown type of template {kind!r}{closest(kind, FORMS)}; known: {', '.join(FORMS)}, or 'package.module:Class'")
    cls = FORMS[kind] if kind in FORMS else registry.resolve("template", kind)
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise LmmError(f"template type {kind!r} is no dataclass, found {cls!r}")
    _check_fields(kind, cls, rest)
    made: Any = cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in rest.items()})
    return checked(made, f"template is a {cls.__name__}")


def _check_fields(kind: str, cls: type, values: Mapping[str, Any]) -> None:
    known = {field.name: field for field in fields(cls) if field.init}
    problems = [f"unknown field {name!r}{closest(name, known)}" for name in values if name not in known]
    problems += [
        f"no field {name!r}" for name, field in known.items() if name not in values and field.default is MISSING and field.default_factory is MISSING
    ]
    if problems:
        raise LmmError(f"template of type {kind!r}: {'; '.join(problems)}")


def _unsaveable(template: ChatTemplate, reason: str) -> LmmError:
    return LmmError(
        f"template {template.name!r} is not one of the library's ({', '.join(TEMPLATES)}) and can't be written down, so loading could not "
        f"find it again: {reason}: make it a dataclass of plain values, or name it by 'package.module:OBJECT' or lmmblocks.register"
    )
