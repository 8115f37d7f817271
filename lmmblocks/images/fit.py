"""Another way to make a picture square, for every kind of preprocessing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..spec import LmmError


def with_fit(preprocess: Any, fit: str) -> Any:
    """Return the same preprocessing with another way to make a picture square.

    Raises:
        LmmError: an unknown fit, or a preprocessing that doesn't make squares.
    """
    if hasattr(preprocess, "with_fit"):
        return preprocess.with_fit(fit)
    if not hasattr(preprocess, "fit"):
        raise LmmError("the encoder's preprocessing has no fit: leave it out")
    return replace(preprocess, fit=fit)
