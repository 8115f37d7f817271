"""Arrays as pictures: height, width and channels in this order, and a dtype that says what white is."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ..spec import LmmError
from .rgb import unit_to_bytes

_CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def picture_of_array(array: np.ndarray) -> Image.Image:
    """Return an array as a PIL image of 8 bits.

    Args:
        array: ``(H, W)`` or ``(H, W, C)`` with 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels: uint8; uint16, of which the
            high byte counts; floats in [0, 1]; or bool.

    Raises:
        LmmError: another shape or dtype.
        ImageError: floats outside [0, 1], or NaN.
    """
    shape = f"{array.dtype} array of shape {array.shape}"
    if array.ndim == 3 and array.shape[2] not in _CHANNELS and array.shape[0] in _CHANNELS:
        raise LmmError(f"an image array is (height, width, channels), found a {shape}: turn it with array.transpose(1, 2, 0)")
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        raise LmmError(f"an image array is (height, width) or (height, width, 1 to 4 channels), found a {shape}: give one picture at a time")
    values = _bytes(array, shape)
    if values.ndim == 2 or values.shape[2] == 1:
        return Image.fromarray(np.ascontiguousarray(values.reshape(values.shape[:2])))
    return Image.fromarray(np.ascontiguousarray(values))


def _bytes(array: np.ndarray, shape: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind == "f":
        return unit_to_bytes(array, f"of a {shape}")
    raise LmmError(f"an image array is uint8, uint16, float in [0, 1] or bool, found a {shape}: scale it to one of them")


def refuse_source(source: Any) -> LmmError:
    """Return the refusal of what is no picture, with the way to make one of it."""
    takes = "an image is a path, a PIL image, the bytes of an image file or a numpy array (height, width, channels)"
    kind = type(source)
    if kind.__module__.partition(".")[0] in ("torch", "jax", "tensorflow") and hasattr(source, "shape"):
        how = "give tensor.permute(1, 2, 0).cpu().numpy() if its channels come first, tensor.cpu().numpy() if last"
        return LmmError(f"{takes}, found a {kind.__module__.partition('.')[0]} tensor of shape {tuple(source.shape)}: {how}")
    if source is None:
        return LmmError(f"{takes}, found None: leave it out")
    if isinstance(source, (list, tuple)):
        return LmmError(f"{takes}, found a {kind.__name__} of {len(source)}: give its pictures one by one")
    return LmmError(f"{takes}, found {kind.__name__}")
