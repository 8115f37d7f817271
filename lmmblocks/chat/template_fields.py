"""What is wrong with the fields of a template, in words: a template that can't be meant is refused where it is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from ..spec import LmmError
from ..spec.fields import field_problems
from .pieces import IMAGE_MARKER, count_markers


def refuse_wrong_fields(template: Any, *, more: Sequence[str] = ()) -> None:
    """Refuse a template with fields that can't be meant; lists, which JSON has, become tuples.

    Args:
        template: a frozen dataclass. A string called `system` places no image: it stands in every conversation.
        more: what else is wrong.

    Raises:
        LmmError: everything that is wrong.
    """
    for field in fields(template):
        if isinstance(getattr(template, field.name), list):
            object.__setattr__(template, field.name, tuple(getattr(template, field.name)))
    problems = [*field_problems(template), *_image_in_system(template), *more]
    if problems:
        raise LmmError(f"template {template.name!r}: {'; '.join(problems)}")


def _image_in_system(template: Any) -> Iterator[str]:
    system = getattr(template, "system", None)
    if isinstance(system, str) and count_markers(system):
        yield f"system holds {IMAGE_MARKER}, which would be an image in every conversation: write \\{IMAGE_MARKER} for the word"
