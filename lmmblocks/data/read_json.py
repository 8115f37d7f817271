"""Read a ``.json`` list or a ``.jsonl`` file; whatever is broken is named by file, line and column."""

from __future__ import annotations

import codecs
import json
import os
from typing import Any

from ..images.signatures import HEAD_BYTES, kind_of_bytes
from ..spec import LmmError, machine_failure
from .record_form import TURN_KEYS


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
        MachineError: the machine can't read it.
        BrokenJson: the file is not UTF-8, not JSON, or not a list.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            raw = file.read()
        _refuse_other_files(raw, name)
        return _lines(raw, name) if name.lower().endswith(".jsonl") else _list(raw, name)
    except (OSError, MemoryError) as error:
        machine = machine_failure(f"records file {name} cannot be read", error)
        reason = error.strerror if isinstance(error, OSError) else error
        raise machine or LmmError(f"records file {name} cannot be opened: {reason}; check the path") from error


def _refuse_other_files(raw: bytes, name: str) -> None:
    """Name a file that is no text by its first bytes."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BrokenJson(f"{name}:1:1: the file is UTF-16, expected UTF-8: convert it with iconv -f UTF-16 -t UTF-8")
    kind = kind_of_bytes(raw[:HEAD_BYTES]) if raw.lstrip()[:1] not in (b"[", b"{") else None
    if kind is not None:
        raise BrokenJson(f"{name}:1:1: the file is {kind.name}, expected JSON: {kind.advice}")


def _list(raw: bytes, name: str) -> list[Any]:
    records = _parse(_decode(raw, name), name)
    if isinstance(records, list):
        return records
    lists = [key for key, value in records.items() if isinstance(value, list)] if isinstance(records, dict) else []
    inside = f"; the list under {lists[0]!r} may be meant: write it alone" if len(lists) == 1 and lists[0] not in TURN_KEYS else ""
    raise BrokenJson(f"{name}:1:1: expected a list of records, found {type(records).__name__}; for one record per line use .jsonl{inside}")


def _lines(raw: bytes, name: str) -> list[Any]:
    records = [_parse_line(line, name, number) for number, line in enumerate(raw.splitlines(), start=1) if line.strip()]
    if raw.lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"[") and not any(isinstance(record, dict) for record in records):
        raise BrokenJson(f"{name}:1:1: found a list, expected one object per line as .jsonl has it: name the file .json")
    if len(records) > 1 and raw.lstrip()[:1] == b"{" and all(isinstance(record, BrokenJson) for record in records):
        raise BrokenJson(f"{records[0]}; no line of the file is a record: write each on one line, as json.dumps does")
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
        raise BrokenJson(f"{name}:{line}:{column}: not UTF-8 (byte 0x{byte:02x}); re-encode the file as UTF-8") from error


def _parse(text: str, name: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        where = f"{name}:{line}:{error.colno}"
        rest = text[error.pos : error.pos + _SHOWN]
        found = f"at {rest!r}" if rest else "the file is empty" if not text.strip() else "at the end of the text"
        raise BrokenJson(f"{where}: {error.msg}, {found}{_hint(error, text, by_line=name.lower().endswith('.jsonl'))}") from error
    except (RecursionError, ValueError) as error:  # brackets or digits without end; Python doesn't say where
        raise BrokenJson(f"{name}:{first_line}:1: not records: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is given twice, of which JSON keeps the last without a word."""
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"an object has the key {twice!r} twice: keep one; it begins with {str(pairs[:2])[:_SHOWN]}")
    return record


def _hint(error: json.JSONDecodeError, text: str, *, by_line: bool) -> str:
    """Say what is meant where JSON of other tools breaks."""
    rest, before = text[error.pos :].lstrip(" \t\r\n,"), text[: error.pos].rstrip()
    if error.msg == "Extra data" and text.lstrip().startswith("{"):
        return "; one line holds one record" if by_line else "; this looks like one record per line: name the file .jsonl"
    if rest.startswith(("//", "/*", "#")):
        return "; JSON has no comments: remove them"
    if rest.startswith(("]", "}")) and (before.endswith(",") or text[error.pos :].startswith(",")):
        return "; JSON has no comma before a closing bracket: remove it"
    if rest.startswith("'"):
        return "; JSON has double quotes: write it with json.dump"
    return ""
