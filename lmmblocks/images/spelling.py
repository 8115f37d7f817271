"""The file that a path may mean which names none: files are looked for by their exact names, so that a picture is never another's."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def spelling_advice(name: str) -> str:
    """Say which file is there whose path differs from ``name`` only in how it is written; where there is none, to check the path.

    Args:
        name: a path that names no file: with backslashes or URL escapes, blanks around it, ``file://`` in it, the other Unicode form of
            an accent, or another extension.
    """
    other = next((other for other in _written_otherwise(name) if other != name and os.path.isfile(other)), None)
    if other is None:
        return "check the path"
    looks_alike = unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", name)
    return f"{ascii(other) if looks_alike else repr(other)} is there: write the path as the file is called"


def _written_otherwise(name: str) -> Iterator[str]:
    folder, base = os.path.split(name)
    yield os.path.join(folder, base.strip())
    yield name.replace("\\", "/")
    yield unquote(name)
    yield name.replace("file://", "")
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, name)
        yield os.path.join(folder, unicodedata.normalize(form, base))
    root, extension = os.path.splitext(name)
    if extension:
        yield from (root + written for known in (extension.lower(), *_EXTENSIONS) for written in (known, known.upper()))
