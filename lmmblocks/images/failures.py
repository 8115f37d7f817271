"""Why an image can't be used: every way a file can be broken becomes one sentence, and none is blamed for what the machine did."""

from __future__ import annotations

import struct
import zlib
from typing import Literal

from PIL import UnidentifiedImageError

from ..spec import LmmError, MachineError, machine_failure
from .signatures import FileKind, kind_of_bytes

ImageErrorKind = Literal["missing", "zero_byte", "truncated", "corrupt", "bomb", "extreme", "format", "range"]

# What PIL's readers raise on damaged files, beside OSError: found by cutting and flipping bytes of every common format.
DAMAGE = (
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    zlib.error,
)

_ENDS_EARLY = ("truncated", "incomplete", "reached eof", "not enough image data")
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}


class ImageError(LmmError):
    """An image that cannot be used.

    Attributes:
        kind: what is wrong, for programs: ``missing, zero_byte, truncated, corrupt, bomb, extreme``; ``format``: of a kind that isn't
            read; ``range``: values whose black and white nobody knows.
    """

    def __init__(self, kind: ImageErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple:
        return type(self), (self.kind, str(self))  # errors cross process borders in data loader workers


def failure(name: str, error: BaseException, head: bytes, size_bytes: int | None, kind: FileKind | None = None) -> ImageError | MachineError:
    """Return what to raise for an image that could not be opened or decoded.

    Args:
        name: of the image, for the message.
        error: what Pillow raised.
        head: the first bytes of the file; empty where they aren't known.
        size_bytes: of the file; None = not known.
        kind: what it is, where more than its first bytes was looked at.
    """
    machine = machine_failure(f"image {name} cannot be read", error)
    if machine is not None:
        return machine
    if isinstance(error, UnidentifiedImageError):
        return _unknown(name, head, kind)
    reason = str(error) or type(error).__name__
    if isinstance(error, EOFError) or any(word in reason.lower() for word in _ENDS_EARLY) or _riff_ends_early(head, size_bytes):
        return ImageError("truncated", f"image {name} is truncated ({reason}): fetch it again")
    return ImageError("corrupt", f"image {name} cannot be decoded ({reason}): replace the file")


def _riff_ends_early(head: bytes, size_bytes: int | None) -> bool:
    """Whether a WebP file is shorter than its header says; its decoder only reports that it failed."""
    return size_bytes is not None and head[:4] == b"RIFF" and len(head) >= 8 and int.from_bytes(head[4:8], "little") + 8 > size_bytes


def _unknown(name: str, head: bytes, kind: FileKind | None) -> ImageError:
    """Describe what Pillow does not recognise by its first bytes."""
    kind = kind or kind_of_bytes(head)
    if kind is not None:
        return ImageError("format", f"image {name} is {kind.name}, which isn't read here: {kind.advice}")
    for magic, picture in _MAGIC.items():
        if head.startswith(magic):
            return ImageError(
                "corrupt",
                f"image {name} starts like a {picture} file but has no readable header: replace the file",
            )
    text = head[:16].decode("ascii", errors="replace")
    shown = text if text.isprintable() else head[:8]
    return ImageError("corrupt", f"image {name} is not an image (it starts with {shown!r}): replace the file")
