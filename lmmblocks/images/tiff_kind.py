"""What a TIFF holds that Pillow doesn't open: a sound file of rare pixels isn't called damaged."""

from __future__ import annotations

from typing import BinaryIO

from PIL import TiffImagePlugin

from .failures import DAMAGE
from .signatures import FileKind

TIFF_STARTS = (b"II*\0", b"MM\0*")
_WIDTH, _BITS, _CHANNELS, _FORMAT = 256, 258, 277, 339
_FORMATS = {1: "whole numbers", 2: "signed numbers", 3: "floats"}


def tiff_kind(file: BinaryIO) -> FileKind | None:
    """Return the pixels of a TIFF by its tags; None if they can't be read, or it is none."""
    file.seek(0)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        if _WIDTH not in tags or _BITS not in tags:
            return None
        channels, bits = tags.get(_CHANNELS, 1), max(tags[_BITS])
        numbers = _FORMATS.get(max(tags.get(_FORMAT, (1,))), "numbers of another format")
    except (OSError, *DAMAGE):
        return None
    return FileKind(f"a TIFF of {channels} channels of {bits} bits ({numbers})", "convert it to PNG of 8 or 16 bits")
