"""What is wrong with the fields of a template, in words: a template that can't be meant is refused where it is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..spec import LmmError
from .pieces import IMAGE_MARKER, count_markers


def refuse_wrong_fields(
    template: Any,
    *,
    texts: Sequence[str] = (),
    lists: Sequence[str] = (),
    pairs: Sequence[str] = (),
    optional: str = "",
    more: Sequence[str] = (),
) -> None:
    """Refuse a template with fields that can't be meant; lists, which JSON has, become tuples.

    Args:
        template: a frozen dataclass.
        texts: fields that are strings. One called `system` places no image: it stands in every conversation.
        lists: fields that are tuples of strings, none of them empty.
        pairs: fields that are two strings.
        optional: the one of these pairs that may be None.
        more: what else is wrong.

    Raises:
        LmmError: everything that is wrong.
    """
    for field in (*lists, *pairs):
        if isinstance(getattr(template, field), list):
            object.__setattr__(template, field, tuple(getattr(template, field)))
    problems = [*_texts(template, texts), *_lists(template, lists), *_pairs(template, pairs, optional), *more]
    if problems:
        raise LmmError(f"template {template.name!r}: {'; '.join(problems)}")


def _are_strings(values: Any) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, str) for value in values)


def _texts(template: Any, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        value = getattr(template, name)
        if not isinstance(value, str):
            yield f"{name} must be a string, found {value!r}"
        elif name == "system" and count_markers(value):
            yield f"system holds {IMAGE_MARKER}, which would be an image in every conversation: write \\{IMAGE_MARKER} for the word"


def _lists(template: Any, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        value = getattr(template, name)
        if not _are_strings(value) or "" in value:
            yield f"{name} must be strings that aren't empty, found {value!r}"


def _pairs(template: Any, names: Sequence[str], optional: str) -> Iterator[str]:
    for name in names:
        value = getattr(template, name)
        if not (_are_strings(value) and len(value) == 2) and not (value is None and name == optional):
            yield f"{name} must be a pair of strings{' or None' if name == optional else ''}, found {value!r}"
