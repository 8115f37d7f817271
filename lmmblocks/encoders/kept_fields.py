"""What of an encoder's config is the user's choice and not a property of its weights: selection, image size.

A config class names these fields in ``choices``. They stay what they are when the rest is read from a checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..images.native import NativePreprocess
from ..images.preprocess import ImagePreprocess


def keep_choices(read: Any, wanted: Any) -> Any:
    """Return the config that was read with the choices of ``wanted``; of another kind of encoder only the selection is kept."""
    names = read.choices if type(read) is type(wanted) else ("select",)
    return replace(read, **{name: getattr(wanted, name) for name in names})


def sized(config: Any, preprocess: Any) -> Any:
    """Return the config for images as the preprocessing makes them, where the encoder takes any size."""
    if "image_size" in getattr(config, "choices", ()) and isinstance(preprocess, ImagePreprocess):
        return replace(config, image_size=preprocess.size_px)
    if isinstance(preprocess, NativePreprocess):
        return replace(config, max_patches=preprocess.max_patches)
    return config


def preprocess_for(config: Any, preprocess: Any) -> Any:
    """Return the preprocessing for images as the config asks for them; a margin that is cut off grows with the size."""
    if isinstance(preprocess, NativePreprocess):
        return replace(preprocess, max_patches=config.max_patches)
    if not isinstance(preprocess, ImagePreprocess) or config.image_size in (None, preprocess.size_px):
        return preprocess
    short_px = preprocess.resize_px and round(preprocess.resize_px * config.image_size / preprocess.size_px)
    return replace(preprocess, size_px=config.image_size, resize_px=short_px)
