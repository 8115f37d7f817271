"""Read a ``.json`` list or a ``.jsonl`` file; whatever is broken is named by file, line and column."""

from __future__ import annotations

import json
import os
from typing import Any

from ..spec import LmmError


class BrokenJson(LmmError):
    """JSON that cannot be parsed; stands in the place of its record when only one line of a ``.jsonl`` file is broken."""


_SHOWN = 40  # characters shown from an error on


def read_records(path: str | os.PathLike) -> list[Any]:
    """Return the records of a file, unchecked.

    Args:
        path: a JSON list, or one JSON value per line when the name ends in ``.jsonl``.

    Returns:
        Parsed values. A broken line of a ``.jsonl`` file gives a ``BrokenJson`` in its place; blank lines are left out.

    Raises:
        LmmError: the file cannot be opened.
        BrokenJson: the file is not UTF-8, not JSON, or not a list.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            raw = file.read()
    except OSError as error:
        raise LmmError(f"records file {name} cannot be opened: {error.strerror}; check the path") from error
    if name.lower().endswith(".jsonl"):
        lines = ((number, line) for number, line in enumerate(raw.splitlines(), start=1) if line.strip())
        return [_parse_line(line, name, number) for number, line in lines]
    records = _parse(_decode(raw, name), name)
    if not isinstance(records, list):
        raise BrokenJson(
            f"{name}:1:1: expected a list of records, found {type(records).__name__}; for one record per line use .jsonl"
        )
    return records


def _parse_line(line: bytes, name: str, number: int) -> Any:
    try:
        return _parse(_decode(line, name, number), name, number)
    except BrokenJson as error:
        return error


def _decode(raw: bytes, name: str, first_line: int = 1) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        column = error.start - raw.rfind(b"\n", 0, error.start)
        byte = raw[error.start]
        raise BrokenJson(
            f"{name}:{line}:{column}: not UTF-8 (byte 0x{byte:02x}); re-encode the file as UTF-8"
        ) from error


def _parse(text: str, name: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        where = f"{name}:{line}:{error.colno}"
        rest = text[error.pos : error.pos + _SHOWN]
        found = (
            f"at {rest!r}" if rest else "the file is empty" if not text.strip() else "at the end of the text"
        )
        one_per_line = error.msg == "Extra data" and text.lstrip().startswith("{")
        hint = "; this looks like one record per line: name the file .jsonl" if one_per_line else ""
        raise BrokenJson(f"{where}: {error.msg}, {found}{hint}") from error
    except (RecursionError, ValueError) as error:  # brackets or digits without end; Python doesn't say where
        raise BrokenJson(f"{name}:{first_line}:1: not records: {error}") from error
