"""Text of a terminal: how wide it is, and lines that are wrapped under the word that introduces them."""

from __future__ import annotations

import shutil
import textwrap

NARROWEST, WIDEST = 80, 120
"""Columns of a report, whatever the terminal has."""


def columns() -> int:
    """Return the columns of a report: the terminal's, within bounds."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, NARROWEST), WIDEST)


def wrapped(value: str, first: str, rest: str, width: int) -> list[str]:
    """Return lines of at most ``width`` columns but for longer words; ``first`` introduces the first one, ``rest`` the others."""
    wrapper = textwrap.TextWrapper(width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(value) or [first.rstrip()]


def listed(facts: list[tuple[str, str]], width: int) -> list[str]:
    """Return names and what is said of them, in two columns."""
    column = max(len(name) for name, _ in facts) + 2
    return [line for name, value in facts for line in wrapped(value, name.ljust(column), " " * column, width)]
