"""Another way to make a picture square, or to read it, for every kind of preprocessing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..spec import LmmError
from .constants import EXIF, TRANSPARENT

CHOICES = ("image_fit", "exif", "transparent")
"""What a model, and a stage of its training, choose about pictures, by the names they give it."""


def with_choices(preprocess: Any, *, image_fit: str | None = None, exif: str | None = None, transparent: str | None = None) -> Any:
    """Return the same preprocessing with other choices; None = as it is.

    Args:
        preprocess: of an encoder, such as ``model.encoder.preprocess``.
        image_fit: ``pad``, ``crop`` or ``squash``.
        exif: see ``with_reading``.
        transparent: see ``with_reading``.

    Raises:
        LmmError: an unknown value, or a preprocessing that has no such setting.
    """
    fitted = preprocess if image_fit is None else with_fit(preprocess, image_fit)
    return fitted if exif is None and transparent is None else with_reading(fitted, exif=exif, transparent=transparent)


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


def with_reading(preprocess: Any, *, exif: str | None = None, transparent: str | None = None) -> Any:
    """Return the same preprocessing with another way to read EXIF orientations and transparency; None = as it is.

    Args:
        preprocess: of an encoder, such as ``model.encoder.preprocess``.
        exif: ``ignore`` (LLaVA's) or ``rotate``.
        transparent: ``drop`` (LLaVA's), ``black`` or ``white``.

    Raises:
        LmmError: an unknown value, or a preprocessing that has no such setting.
    """
    changes = {name: value for name, value in (("exif", exif), ("transparent", transparent)) if value is not None}
    if hasattr(preprocess, "with_reading"):
        return preprocess.with_reading(**changes)
    lacking = [name for name in changes if not hasattr(preprocess, name)]
    if lacking:
        raise LmmError(f"the encoder's preprocessing, {type(preprocess).__name__}, has no {lacking[0]}: leave it out")
    return replace(preprocess, **changes)


def reading_of(preprocess: Any) -> dict[str, Any]:
    """Return how a preprocessing reads pictures, as keyword arguments of ``load_image``; one without the settings reads as LLaVA."""
    return {
        "exif": getattr(preprocess, "exif", EXIF[0]),
        "transparent": getattr(preprocess, "transparent", TRANSPARENT[0]),
    }
