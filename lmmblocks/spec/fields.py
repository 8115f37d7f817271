"""What a field of a config dataclass may hold, from its annotation: mistakes are found before anything is computed with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any


def plain(value: Any) -> Any:
    """Return a number of numpy or torch (a scalar, or an array without dimensions) as Python's own; anything else as it is.

    Lists, tuples and mappings are taken apart. What is left in a setting can be compared, printed and written as JSON.

    >>> import numpy as np
    >>> plain({"rate": np.float64(0.5), "sizes": (np.int32(3), "3")})
    {'rate': 0.5, 'sizes': (3, '3')}
    """
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        try:
            return value.item()
        except (RuntimeError, NotImplementedError):  # a tensor that holds nothing, such as one on the meta device
            return value
    return value


def make_plain(config: Any) -> None:
    """Make the numbers in the fields of a dataclass, frozen or not, Python's own."""
    for entry in fields(config):
        object.__setattr__(config, entry.name, plain(getattr(config, entry.name)))


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number; true and false are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; true and false are none, nor is ``3.0``."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def field_problems(config: Any) -> list[str]:
    """Return what is wrong with the fields annotated as plain values, made plain first; other annotations are left alone.

    Args:
        config: a dataclass instance, of a module with ``from __future__ import annotations``. Numbers have to be positive.

    >>> from dataclasses import make_dataclass
    >>> field_problems(make_dataclass("Shape", [("dim", "int"), ("head_dim", "int | None")])("8", None))
    ["dim must be a whole number above 0, found '8'"]
    """
    make_plain(config)
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


def _positive(value: Any) -> bool:
    return is_number(value) and value > 0


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda value: is_whole(value) and value > 0, "a whole number above 0"),
    "float": (_positive, "a number above 0"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "str": (lambda value: isinstance(value, str), "a string"),
    "tuple[int, ...]": (lambda value: isinstance(value, tuple) and all(map(is_whole, value)), "a tuple of whole numbers"),
    "tuple[float, ...]": (lambda value: isinstance(value, tuple) and all(map(_positive, value)), "a tuple of numbers above 0"),
}
