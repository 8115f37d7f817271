"""What a call has found, one JSON line at once for each thing: whatever dies, or is killed, loses only the line that it didn't come to write.

The lines of a call stand after its ``call`` line, which says what it is about: device, sources, versions. A ``begin`` line names an item of a step
that is about to be tried; every other line with an ``item`` is its result. Several processes append to one file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]
NAME = "journal.jsonl"
CALL, BEGIN, END, LEFT_OUT, BUILT = "call", "begin", "end", "left out", "built"


class Journal:
    """The file ``journal.jsonl`` of a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._read = 0

    def append(self, event: str, **fields: Any) -> None:
        """Write one line, whole or not at all."""
        line = json.dumps({"event": event, **{name: _plain(value) for name, value in fields.items()}}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def mend(self) -> None:
        """End a last line that was cut off, so that the next one stands on its own."""
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a") as file:
                file.write("\n")

    def fresh(self) -> list[Event]:
        """Return what was appended since the last time."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[:2]
        text = b"".join(whole)
        self._read += len(text)
        return list(_parsed(text.decode(errors="replace").splitlines()))

    def events(self, identity: Event | None = None) -> list[Event]:
        """Return what was found by calls of one identity, by default the last call's."""
        if not self.path.is_file():
            return []
        everything = list(_parsed(self.path.read_text(encoding="utf-8", errors="replace").splitlines()))
        calls = [event for event in everything if event["event"] == CALL]
        wanted = identity if identity is not None else calls[-1]["identity"] if calls else None
        found, ours = [], False
        for event in everything:
            ours = event["identity"] == wanted if event["event"] == CALL else ours
            found += [event] if ours else []
        return found


def _parsed(lines: Iterable[str]) -> Iterator[Event]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # cut off when its writer was killed
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def _plain(value: Any) -> Any:
    """JSON has neither NaN nor infinity: the words of a verdict say what was found."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def results(events: Iterable[Event]) -> dict[tuple[str, str], Event]:
    """Return the last result of each ``(step, item)``. A build that failed is none: it is tried again."""
    found = {}
    for event in events:
        if "item" in event and event["event"] != BEGIN and not (event["event"] == BUILT and event["problem"]):
            found[event["step"], event["item"]] = event
    return found
