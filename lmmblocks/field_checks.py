"""What a field of a config dataclass may hold, from its annotation: mistakes are found before anything is computed with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any


def field_problems(config: Any) -> list[str]:
    """Return what is wrong with the fields annotated as plain values; other annotations are left alone.

    Args:
        config: a dataclass instance, of a module with ``from __future__ import annotations``. Numbers have to be positive.

    >>> from dataclasses import make_dataclass
    >>> field_problems(make_dataclass("Shape", [("dim", "int"), ("head_dim", "int | None")])("8", None))
    ["dim must be a whole number above 0, found '8'"]
    """
    problems = []
    for entry in fields(config):
        annotation, _, optional = str(entry.type).partition(" | ")
        value = getattr(config, entry.name)
        if annotation not in _CHECKS or (optional == "None" and value is None):
            continue
        holds, expected = _CHECKS[annotation]
        if not holds(value):
            problems.append(f"{entry.name} must be {expected}{' or None' if optional else ''}, found {value!r}")
    return problems


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda value: _whole(value) and value > 0, "a whole number above 0"),
    "float": (_positive, "a number above 0"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "str": (lambda value: isinstance(value, str), "a string"),
    "tuple[int, ...]": (lambda value: isinstance(value, tuple) and all(map(_whole, value)), "a tuple of whole numbers"),
    "tuple[float, ...]": (lambda value: isinstance(value, tuple) and all(map(_positive, value)), "a tuple of numbers above 0"),
}
