"""What every preprocessing is told in numbers: sizes in whole pixels, and the means and deviations that pixels are normalised with."""

from __future__ import annotations

from typing import Any

from ..spec import LmmError
from ..spec.fields import field_problems, is_number, plain


def check_fields(preprocess: Any) -> None:
    """Make the numbers of a preprocessing Python's own, ``mean`` and ``std`` tuples of three, and refuse values that can't be meant.

    Args:
        preprocess: a frozen dataclass with ``mean`` and ``std``, per channel of values from 0 to 1.

    Raises:
        LmmError: everything that is wrong, in one message.
    """
    problems = field_problems(preprocess)
    for name, zero in (("mean", True), ("std", False)):
        values = _values(getattr(preprocess, name))
        if values is None or not all(0 <= value <= 1 and (zero or value) for value in values):
            found_there = f"found {getattr(preprocess, name)!r}{_of_bytes(values)}"
            problems.append(f"{name} must be three numbers {'from 0' if zero else 'above 0 and up'} to 1, {found_there}")
        else:
            object.__setattr__(preprocess, name, values)
    if problems:
        raise LmmError(f"image preprocessing: {'; '.join(problems)}")


def _values(given: Any) -> tuple[float, ...] | None:
    """Return three numbers as floats, None for anything else."""
    given = given.tolist() if hasattr(given, "tolist") else given
    values = tuple(map(plain, given)) if isinstance(given, (list, tuple)) else ()
    return tuple(map(float, values)) if len(values) == 3 and all(map(is_number, values)) else None


def _of_bytes(values: tuple[float, ...] | None) -> str:
    return ": divide them by 255, as pixels are" if values is not None and 1 < max(values) <= 255 else ""
