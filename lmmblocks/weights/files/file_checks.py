"""What can be wrong with a file before its content is looked at, and how messages list what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...files.foreign import file_kind, folder_kind
from ...files.json_object import read_object
from ...spec import LmmError, some


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        LmmError: no such file (the message says what the folder holds), or not a JSON object.
    """
    if not path.is_file():
        raise LmmError(f"{path.parent} holds no {path.name}: expected a model folder; found {listing(path.parent)}{folder_kind(path.parent)}")
    return read_object(path)


def listing(folder: Path) -> str:
    """Return what a folder holds, for messages."""
    if not folder.is_dir():
        return "no such folder"
    return some(sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())) or "an empty folder"


def damaged(path: Path, reason: str) -> str:
    """Return the message about a weight file that can't be opened."""
    kind = file_kind(path)
    if kind is not None:
        return f"{path} is {kind}"
    size = path.stat().st_size
    return f"{path} ({size} bytes) is truncated or not a weight file ({reason}): copy or download it again"
