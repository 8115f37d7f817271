"""What can be wrong with a file before its content is looked at, and how messages list what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..foreign import file_kind, folder_kind
from ..spec import LmmError, some


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        LmmError: no such file (the message says what the folder holds), or not a JSON object.
    """
    if not path.is_file():
        raise LmmError(f"{path.parent} holds no {path.name}: expected a model folder; found {listing(path.parent)}{folder_kind(path.parent)}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        kind = file_kind(path)
        if kind is not None:
            raise LmmError(f"{path} is {kind}") from error
        raise LmmError(f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise LmmError(f"{path} is not JSON: byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise LmmError(f"{path} is not a config: its objects are nested too deeply") from error
    if not isinstance(values, dict):
        raise LmmError(f"{path} must hold a JSON object, found {type(values).__name__}")
    return values


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
