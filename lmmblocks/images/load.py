"""Open an image file safely: every way it can be broken becomes one sentence that names the file.

Like LLaVA (``train/train.py:701``), an image is ``Image.open(path).convert("RGB")`` and nothing else: the EXIF
orientation is *not* applied, transparency is dropped, and of an animation the first frame is taken. Box coordinates
and released checkpoints were made that way; rotate such files on disk if you want them upright.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from ..spec import LmmError

ImageErrorKind = Literal["missing", "zero_byte", "truncated", "corrupt", "bomb", "extreme"]
ImageSource = str | os.PathLike | Image.Image

MAX_ASPECT = 200
"""Longest side over shortest; beyond it nothing would be visible and the resized strip would fill the memory."""

MAX_SIDE_PX = 32_768
"""Longest side; padding to a square costs its square."""

# What PIL's readers raise on damaged files, beside OSError: found by cutting and flipping bytes of every common format.
_DAMAGE = (
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    MemoryError,
)

_ENDS_EARLY = ("truncated", "incomplete", "reached eof", "not enough image data")
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
}


class ImageError(LmmError):
    """An image that cannot be used.

    Attributes:
        kind: what is wrong, for programs: ``missing, zero_byte, truncated, corrupt, bomb, extreme``.
    """

    def __init__(self, kind: ImageErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple:
        return type(self), (self.kind, str(self))  # errors cross process borders in data loader workers


def load_image(source: ImageSource) -> Image.Image:
    """Return ``source`` fully decoded, as RGB.

    Args:
        source: path of an image file, or a PIL image.

    Returns:
        A PIL image of mode RGB, independent of the file.

    Raises:
        ImageError: the file is missing, empty, truncated, not an image, a decompression bomb, or has an extreme shape.
        LmmError: ``source`` is neither a path nor a PIL image.
    """
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or "the given PIL image")
        _refuse_shape(source.size, name)
        _decode(source, name)
        return source.convert("RGB")
    if not isinstance(source, (str, os.PathLike)):
        raise LmmError(f"an image is a path or a PIL image, found {type(source).__name__}: PIL.Image.fromarray makes one of an array")
    with open_image(source) as image:
        return image.convert("RGB")


@contextmanager
def open_image(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Open and fully decode an image file in its own mode; the file is closed at the end of the block.

    Raises:
        ImageError: as for ``load_image``.
    """
    name = os.fspath(path)
    require_bytes(name)
    try:
        image = Image.open(name)
    except Image.DecompressionBombError as error:
        raise ImageError("bomb", f"image {name} is a decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError("corrupt", f"image {name} {_looks_like(name)}: replace the file") from error
    except (OSError, *_DAMAGE) as error:
        raise _damaged(name, error) from error
    with image:
        _refuse_shape(image.size, name)
        _decode(image, name)
        yield image


def require_bytes(name: str) -> None:
    """Raise ``ImageError`` for a path that is missing, a folder or empty; the file is not opened."""
    try:
        size_bytes = os.stat(name).st_size
    except (OSError, ValueError) as error:
        web = "; download it first" if name.startswith(("http://", "https://")) else "; check the path"
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError("missing", f"image {name} cannot be opened: {reason}{web}") from error
    if Path(name).is_dir():
        raise ImageError("missing", f"image {name} is a folder; expected an image file")
    if size_bytes == 0:
        raise ImageError("zero_byte", f"image {name} is empty (0 bytes): fetch it again")


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


def _decode(image: Image.Image, name: str) -> None:
    """Read all pixels now, so that a damaged file fails here and not in the middle of something else."""
    try:
        image.load()
    except (OSError, *_DAMAGE) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: BaseException) -> ImageError:
    """Tell a file that ends too early from one whose content makes no sense."""
    reason = str(error) or type(error).__name__
    if (
        isinstance(error, EOFError)
        or any(word in reason.lower() for word in _ENDS_EARLY)
        or _riff_ends_early(name)
    ):
        return ImageError("truncated", f"image {name} is truncated ({reason}): fetch it again")
    return ImageError("corrupt", f"image {name} cannot be decoded ({reason}): replace the file")


def _riff_ends_early(name: str) -> bool:
    """Whether a WebP file is shorter than its header says; its decoder only reports that it failed."""
    if not os.path.isfile(name):
        return False
    with open(name, "rb") as file:
        head = file.read(8)
    return (
        head[:4] == b"RIFF"
        and len(head) == 8
        and int.from_bytes(head[4:], "little") + 8 > os.path.getsize(name)
    )


def _looks_like(name: str) -> str:
    """Describe a file PIL does not recognise by its first bytes."""
    with open(name, "rb") as file:
        head = file.read(16)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return f"starts like a {kind} file but has no readable header"
    text = head.decode("ascii", errors="replace")
    return (
        f"is not an image (it starts with {text!r})"
        if text.isprintable()
        else f"is not an image (it starts with {head[:8]!r})"
    )
