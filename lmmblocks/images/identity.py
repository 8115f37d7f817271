"""What a picture is called where two runs are compared: the same for the same picture, however its folder is called."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
from PIL import Image


def picture_identity(source: Any) -> str:
    """Return a name of a picture: that of its file, or a hash of what it holds; of what is no picture, its type.

    >>> picture_identity("images/cat.jpg")
    'cat.jpg'
    """
    if isinstance(source, (str, os.PathLike)):
        return os.path.basename(os.fspath(source))
    if isinstance(source, Image.Image):
        return f"{source.mode} {source.size} {_hash(source.tobytes())}"
    if isinstance(source, np.ndarray):
        return f"{source.dtype} {source.shape} {_hash(np.ascontiguousarray(source).tobytes())}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _hash(bytes(source))
    if hasattr(source, "read") and hasattr(source, "seek"):
        source.seek(0)
        return _hash(source.read())
    return type(source).__name__  # what reads it says what is wrong with it


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
