"""What a field of a config dataclass may hold, from its annotation: mistakes are found before anything is computed with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import closest


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


@dataclass(frozen=True)
class AtLeast:
    """Bound of a number: ``Annotated[int, AtLeast(0)]``; without a bound numbers have to be above 0."""

    least: float

    def holds(self, value: Any) -> bool:
        """Whether a number keeps to it."""
        return value >= self.least

    def of(self, noun: str) -> str:
        """Say it of a noun."""
        return f"{noun} of at least {self.least}"


@dataclass(frozen=True)
class Within:
    """Bounds of a number: from ``least`` to ``most``, without the first where ``above`` is set, without the last where ``below`` is."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a number keeps to them."""
        return self.least <= value <= self.most and not (self.above and value == self.least) and not (self.below and value == self.most)

    def of(self, noun: str) -> str:
        """Say them of a noun."""
        if self.above:
            return f"{noun} above {self.least} and {'below' if self.below else 'at most'} {self.most}"
        return f"{noun} from {self.least} to {'below ' if self.below else ''}{self.most}"


class Filled:
    """Of a string, or of each string of a tuple: not empty. ``Annotated[str, Filled]``."""


def field_problems(config: Any, *, none: str = "None") -> list[str]:
    """Return what is wrong with the fields annotated as plain values, made plain first; other annotations are left alone.

    Numbers have to be above 0 unless ``Annotated`` says otherwise: ``Annotated[float, Within(0, 1)]``. A text beside a bound is told with it.

    Args:
        config: a dataclass instance.
        none: what ``None`` is called where it is allowed.

    >>> from dataclasses import make_dataclass
    >>> field_problems(make_dataclass("Shape", [("dim", int), ("head_dim", int | None), ("way", Literal["a", "b"])])("8", None, "c"))
    ["dim must be a whole number above 0, found '8'", "way must be one of a, b, found 'c'"]
    """
    make_plain(config)
    kind: Any = type(config)
    annotations = _annotations(kind)
    found = (problem(entry.name, getattr(config, entry.name), annotations[entry.name], none=none) for entry in fields(config))
    return [each for each in found if each]


def problem(name: str, value: Any, annotation: Any, *, none: str = "None") -> str | None:
    """Return what is wrong with one value, None if nothing is or the annotation says nothing about plain values.

    >>> problem("factor", 0, int), problem("seed", -1, Annotated[int, AtLeast(0)]), problem("seed", None, int | None)
    ('factor must be a whole number above 0, found 0', 'seed must be a whole number of at least 0, found -1', None)
    """
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    plain_kinds = [kind for kind in kinds if kind is not NoneType]
    check = _check_of(plain_kinds[0]) if len(plain_kinds) == 1 else None
    optional = NoneType in kinds
    if check is None or (optional and value is None) or check.holds(value):
        return None
    return f"{name} must be {check.expected}{f' or {none}' if optional else ''}, found {value!r}{closest(str(value), check.choices)}"


@dataclass(frozen=True)
class _Check:
    holds: Callable[[Any], bool]
    expected: str
    choices: tuple[str, ...] = ()


@cache
def _annotations(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _check_of(annotation: Any) -> _Check | None:
    kind, *rules = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    notes = "".join(f" ({rule})" for rule in rules if isinstance(rule, str))
    bound = next((rule for rule in rules if isinstance(rule, (AtLeast, Within))), None)
    filled = Filled in rules
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        one_of = lambda value: any(type(value) is type(choice) and value == choice for choice in choices)  # noqa: E731 - an array compares by parts
        return _Check(one_of, f"one of {', '.join(map(str, choices))}", tuple(map(str, choices)))
    if kind in _NUMBERS:
        return _number(kind, bound, notes)
    if kind is bool:
        return _Check(lambda value: isinstance(value, bool), "true or false")
    if kind is str:
        return _Check(lambda value: isinstance(value, str) and bool(value or not filled), "a non-empty string" if filled else "a string")
    return _tuple(get_args(kind), bound, filled) if get_origin(kind) is tuple else None


_NUMBERS: dict[Any, tuple[Callable[[Any], bool], str]] = {int: (is_whole, "a whole number"), float: (is_number, "a number")}


def _number(kind: type, bound: AtLeast | Within | None, notes: str = "") -> _Check:
    is_one, noun = _NUMBERS[kind]
    if bound is None:
        return _Check(lambda value: is_one(value) and value > 0, f"{noun} above 0{notes}")
    return _Check(lambda value: is_one(value) and bound.holds(value), bound.of(noun) + notes)


def _tuple(entries: tuple[Any, ...], bound: AtLeast | Within | None, filled: bool) -> _Check | None:
    """Tuples of one kind of entries; of a fixed number only strings, and numbers that are bounded."""
    kind, fixed = entries[0], 0 if entries[-1] is Ellipsis else len(entries)
    if kind is str:
        noun = "a pair of strings" if fixed == 2 else "strings that aren't empty" if filled else "a tuple of strings"
        return _Check(lambda value: _all(value, fixed, lambda entry: isinstance(entry, str) and bool(entry or not filled)), noun)
    if fixed == 0 and kind is int:
        return _Check(lambda value: _all(value, fixed, is_whole), "a tuple of whole numbers")
    if fixed == 0 and kind is float:
        return _Check(lambda value: _all(value, fixed, _number(float, None).holds), "a tuple of numbers above 0")
    if bound is None or kind is not float:
        return None
    return _Check(lambda value: _all(value, fixed, _number(float, bound).holds), bound.of(_COUNTED.get(fixed, f"{fixed} numbers")))


_COUNTED = {2: "two numbers", 3: "three numbers"}


def _all(value: Any, fixed: int, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and (not fixed or len(value) == fixed) and all(map(holds, value))
