"""The one colour that a PNG without alpha may declare transparent (its chunk ``tRNS``), in the depth that Pillow decodes to.

The file states it in its own depth. Pillow widens grey of 2 and 4 bits to 8, and narrows colours of 16 bits to 8, but keeps the key as it
stands, so that no pixel, or another one, would have it.
Source: PNG specification, third edition, 11.3.1.1: only the lowest bits of a key count, as many as a sample has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

_KEY = "transparency"
_BITS = {"L;2": 2, "L;4": 4, "L": 8, "I;16B": 16, "RGB": 8, "RGB;16B": 16}
"""Pillow's raw mode of a PNG that may have a key -> bits of a sample; the key of black and white it gives as its pixels."""


def bits_of_samples(image: Image.Image) -> int | None:
    """Return the bits of a sample of a PNG that was opened and not decoded yet, None for any other picture."""
    tiles = getattr(image, "tile", None)
    if image.format != "PNG" or not tiles:
        return None
    mode = tiles[0][3]
    return _BITS.get(mode[0] if isinstance(mode, tuple) else mode)


def keep_key_in_depth(image: Image.Image, bits: int | None) -> None:
    """State the key of a PNG, decoded since, in the depth of its pixels; the picture keeps it so, as it is decoded only once.

    Two colours of 16 bits that are the same in 8 can't be told apart any more: both have the key.
    """
    key: Any = image.info.get(_KEY)
    if bits is None or isinstance(key, bytes) or key is None:
        return
    values = [value & (2**bits - 1) for value in (key if isinstance(key, tuple) else (key,))]
    if image.mode == "RGB" and bits == 16:
        values = [value >> 8 for value in values]
    elif image.mode == "L":
        values = [value * 255 // (2**bits - 1) for value in values]
    image.info[_KEY] = tuple(values) if isinstance(key, tuple) else values[0]


def has_key(image: Image.Image) -> np.ndarray | None:
    """Return which pixels ``(H, W)`` of a picture of one channel have its key, None if it has none: ``convert`` leaves some such pictures opaque."""
    key = image.info.get(_KEY)
    if not isinstance(key, int):
        return None
    return np.asarray(image) == (bool(key) if image.mode == "1" else key)
