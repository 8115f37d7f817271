"""One reader of JSON files that hold an object, as the configs of models and tokenizers do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..spec import LmmError
from .foreign import file_kind


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file that is there.

    Raises:
        LmmError: the file holds something else; the message says what, and where it breaks.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: _one_value_each(pairs, path))
    except json.JSONDecodeError as error:
        kind = file_kind(path)
        if kind is not None:
            raise LmmError(f"{path} is {kind}") from error
        raise LmmError(f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}: copy or download it again") from error
    except UnicodeDecodeError as error:
        raise LmmError(f"{path} is not JSON: byte {error.start} is not UTF-8: copy or download it again") from error
    except RecursionError as error:
        raise LmmError(f"{path} is not a config: its objects are nested too deeply") from error
    if not isinstance(values, dict):
        raise LmmError(f"{path} must hold a JSON object, found {type(values).__name__}: copy or download it again")
    return values


def _one_value_each(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """Return an object of a file; a key with two values is refused, since of these readers take the last without a word."""
    found = dict(pairs)
    twice = next((key for key, value in pairs if found[key] != value), None)
    if twice is not None:
        raise LmmError(f"{path} has the key {twice!r} twice, with {' and '.join(repr(value)[:80] for key, value in pairs if key == twice)}: keep one")
    return found
