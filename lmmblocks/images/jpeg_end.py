"""Whether a JPEG file has an end: a download that stopped in a file of full size leaves zeros, which decoders show as grey without a word."""

from __future__ import annotations

from typing import BinaryIO

_START_OF_SCAN, _END = 0xDA, b"\xff\xd9"
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


def has_end(file: BinaryIO) -> bool:
    """Return whether an end-of-image marker follows the first scan; a file whose segments can't be followed is left to its decoder.

    Args:
        file: a JPEG; it stands where it stood afterwards.
    """
    before = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(before)
    scan = _first_scan(content)
    return scan is None or content.find(_END, scan) >= 0  # in a scan's own data 0xFF is followed by 0x00 or a restart marker


def _first_scan(content: bytes) -> int | None:
    """Step over the segments in front, since thumbnails inside them have ends of their own."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == _START_OF_SCAN:
            return place
        if marker == 0xFF:
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return None
