"""The table of resources on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

_KEY_WIDTH, _WIDTH = 76, 9


def print_title(resources: type, titles: Mapping[str, str]) -> None:
    """Print the head of the table: one column for each field of a dataclass."""
    print("kernel".ljust(_KEY_WIDTH) + "".join(titles.get(field.name, field.name).rjust(_WIDTH) for field in fields(resources)))


def print_row(key: str, found: Any) -> None:
    """Print one kernel."""
    cells = (getattr(found, field.name) for field in fields(found))
    print(key.ljust(_KEY_WIDTH) + "".join((f"{x:.2f}" if isinstance(x, float) else str(x)).rjust(_WIDTH) for x in cells), flush=True)
