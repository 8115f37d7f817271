"""The table of resources on the terminal."""

from __future__ import annotations

from dataclasses import fields

from .compile import Resources

_TITLES = {"registers": "regs", "spill_bytes": "spill B", "shared_bytes": "smem B", "ctas_per_sm": "CTA/SM", "loads_128": "ld128"}
_TITLES |= {"stores_128": "st128", "matrix_ops": "mma", "fp64_ops": "fp64"}
_NAMES = [field.name for field in fields(Resources)]
_KEY_WIDTH = 76


def print_title() -> None:
    """Print the head of the table."""
    print("kernel".ljust(_KEY_WIDTH) + "".join(_TITLES.get(name, name).rjust(8) for name in _NAMES))


def print_row(key: str, found: Resources) -> None:
    """Print one kernel."""
    print(key.ljust(_KEY_WIDTH) + "".join(str(getattr(found, name)).rjust(8) for name in _NAMES), flush=True)
