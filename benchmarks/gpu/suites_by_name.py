"""The suites, what matters most first, should the time run out."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from .case import Suite

FIRST = ("splice", "attention_decode", "paged_attention", "attention")
"""Those with CUDA kernels, the simplest first."""

SUITES = (*FIRST, *sorted(path.stem for path in (Path(__file__).parent / "suites").glob("*.py") if path.stem not in FIRST))


def loaded(names: Iterable[str]) -> dict[str, Suite]:
    """Import suites."""
    return {name: import_module(f"{__package__}.suites.{name}").SUITE for name in names}
