"""Open an image safely: every way it can be broken becomes one sentence that names it.

Like LLaVA (``train/train.py:701``), a picture of 8 bits is ``Image.open(path).convert("RGB")`` unless told otherwise: the EXIF
orientation is *not* applied, transparency is dropped, and of an animation the first frame is taken. Box coordinates
and released checkpoints were made that way. ``exif`` and ``transparent`` change it; they are settings of a model's preprocessing, so that
it asks with what it was trained with. Deeper pictures: see ``rgb``.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..spec import LmmError, machine_failure
from .arrays import picture_of_array, refuse_source
from .colour_key import bits_of_samples, keep_key_in_depth
from .constants import Exif, Transparent
from .failures import DAMAGE, ImageError, failure
from .jpeg_end import has_end
from .rgb import to_rgb
from .signatures import HEAD_BYTES
from .spelling import spelling_advice
from .tiff_kind import TIFF_STARTS, tiff_kind

ImageSource = Any
"""A path, a PIL image, the bytes of an image file (or a file object that gives them), or a numpy array ``(H, W)`` or ``(H, W, C)``."""

URLS = ("http://", "https://", "data:", "s3://", "gs://")
"""How what is no path begins."""

MAX_ASPECT = 200
"""Longest side over shortest; beyond it nothing would be visible and the resized strip would fill the memory."""

MAX_SIDE_PX = 32_768
"""Longest side; padding to a square costs its square."""


def load_image(source: ImageSource, *, exif: Exif = "ignore", transparent: Transparent = "drop") -> Image.Image:
    """Return ``source`` fully decoded, as RGB.

    Args:
        source: path of an image file, a PIL image, the bytes of an image file or a file object that gives them, or an array (see
            ``picture_of_array``).
        exif: ``ignore``, or ``rotate`` to turn it as its EXIF orientation says.
        transparent: ``drop``, or the background that shows through: ``black`` or ``white``.

    Returns:
        A PIL image of mode RGB, independent of the file. More than 8 bits are scaled by their depth, see ``to_rgb``.

    Raises:
        ImageError: the file is missing, empty, truncated, not an image, a decompression bomb, has an extreme shape, is of a kind that
            isn't read, or holds values of an unknown range.
        MachineError: the machine can't read it: no permission, no file handle, no memory, a failing mount, a missing codec.
        LmmError: ``source`` is none of these, or a PIL image that was closed.
    """
    if isinstance(source, np.ndarray):
        source = picture_of_array(source)
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or "the given PIL image")
        _refuse_shape(source.size, name)
        _refuse_closed(source, name)
        _decode(source, name)
        return to_rgb(source, name, exif, transparent)
    with open_image(source) as image:
        return to_rgb(image, image_name(source), exif, transparent)


def image_name(source: ImageSource) -> str:
    """Return what to call an image that is to be opened."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"of {type(source).__name__}"


@contextmanager
def open_image(source: ImageSource) -> Iterator[Image.Image]:
    """Open and fully decode an image file, or its bytes, in its own mode; the file is closed at the end of the block.

    Raises:
        ImageError: as for ``load_image``.
        MachineError: as for ``load_image``.
        LmmError: neither a path nor bytes.
    """
    name = image_name(source)
    with _binary(source, name) as file:
        head, size_bytes = b"", None
        try:
            head, size_bytes = _first_bytes(file)
            image = Image.open(file)
        except Image.DecompressionBombError as error:
            raise ImageError("bomb", f"image {name} is a decompression bomb: {error}") from error
        except (OSError, MemoryError, *DAMAGE) as error:
            kind = tiff_kind(file) if isinstance(error, UnidentifiedImageError) and head[:4] in TIFF_STARTS else None
            raise failure(name, error, head, size_bytes, kind) from error
        with image:
            _refuse_shape(image.size, name)
            _decode(image, name, head, size_bytes)
            yield image


def require_bytes(name: str) -> None:
    """Raise ``ImageError`` for a path that is missing, a folder or empty; the file is not opened.

    Raises:
        MachineError: the machine doesn't let us look.
    """
    try:
        found = os.stat(name)
    except (OSError, ValueError) as error:
        raise _unopened(name, error) from error
    if stat.S_ISDIR(found.st_mode):
        raise ImageError("missing", f"image {name} is a folder; expected an image file")
    if found.st_size == 0:
        raise ImageError("zero_byte", f"image {name} is empty (0 bytes): fetch it again")


@contextmanager
def _binary(source: ImageSource, name: str) -> Iterator[BinaryIO]:
    """Give the file to read from; one that the caller opened stays open."""
    if isinstance(source, (str, os.PathLike)):
        require_bytes(name)
        try:
            opened = open(name, "rb")  # noqa: SIM115  closed below; only opening it may be told as this
        except (OSError, ValueError) as error:
            raise _unopened(name, error) from error
        with opened:
            yield opened
    elif isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ImageError("zero_byte", f"image {name} is empty (0 bytes)")
        yield io.BytesIO(source)
    elif hasattr(source, "read") and hasattr(source, "seek"):
        if getattr(source, "closed", False):
            raise LmmError(f"image {name}: the file object was closed: give it open, or its bytes")
        yield source
    else:
        raise refuse_source(source)


def _unopened(name: str, error: Exception) -> LmmError:
    """Tell a path that names nothing from a machine that doesn't open it."""
    if name.startswith(URLS):
        return ImageError("missing", f"image {name[:80]}: URLs aren't read: download it and give the path of the file")
    machine = machine_failure(f"image {name} cannot be opened", error)
    reason = error.strerror if isinstance(error, OSError) else error
    if machine is not None:
        return machine
    advice = spelling_advice(name) if isinstance(error, OSError) else "check the path"
    return ImageError("missing", f"image {name} cannot be opened: {reason}; {advice}")


def _first_bytes(file: BinaryIO) -> tuple[bytes, int]:
    """Return the beginning of a file and its size; the file stands at its beginning again."""
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(0)
    return head, size_bytes


def _refuse_shape(size: tuple[int, int], name: str) -> None:
    """Raise before decoding when the header promises more pixels than any picture needs."""
    width_px, height_px = size
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width_px * height_px > most:
        raise ImageError(
            "bomb",
            f"image {name} is {width_px}x{height_px} px, a possible decompression bomb: at most {most} pixels are decoded; "
            "scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it",
        )
    short, long = sorted(size)
    if short < 1 or long > MAX_ASPECT * short or long > MAX_SIDE_PX:
        raise ImageError(
            "extreme",
            f"image {name} is {width_px}x{height_px} px: expected sides of at most {MAX_SIDE_PX} px and an aspect ratio of "
            f"at most {MAX_ASPECT}; crop it or scale it down",
        )


def _refuse_closed(image: Image.Image, name: str) -> None:
    """Raise for a PIL image whose pixels are gone."""
    closed = LmmError(f"image {name} was closed before it was used: give it inside its `with` block, or call .load() in there, or give the path")
    try:
        unread = image.im is None or not image.im.size  # the latter raises for what an older Pillow closed
    except AssertionError:  # of newer Pillows, for a picture that was not decoded yet
        unread = True
    except ValueError as error:
        raise closed from error
    file = getattr(image, "fp", None)
    if unread and (file is None or getattr(file, "closed", False)):
        raise closed


def _decode(image: Image.Image, name: str, head: bytes = b"", size_bytes: int | None = None) -> None:
    """Read all pixels now, so that a damaged file fails here and not in the middle of something else."""
    file: Any = getattr(image, "fp", None)
    try:
        if image.format in ("JPEG", "MPO") and not getattr(file, "closed", True) and not has_end(file):
            raise ImageError("truncated", f"image {name} is truncated (a JPEG without an end): fetch it again")
        bits = bits_of_samples(image)
        image.load()
        keep_key_in_depth(image, bits)
    except ImageError:  # which is a ValueError too
        raise
    except (OSError, MemoryError, *DAMAGE) as error:
        raise failure(name, error, head, size_bytes) from error
