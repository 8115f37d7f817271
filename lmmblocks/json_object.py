"""One reader of JSON files that hold an object, as the configs of models and tokenizers do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .foreign import file_kind
from .spec import LmmError


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file that is there.

    Raises:
        LmmError: the file holds something else; the message says what, and where it breaks.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
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
