"""What ``inspect`` found, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZES = ((336, 336), (640, 480), (1000, 300))
"""Widths and heights in pixels of the pictures whose tokens are counted."""


@dataclass
class Part:
    """One block.

    Attributes:
        name: its role.
        what: the block and its sizes, in words.
        parameters: None = unknown.
        dtypes: on the disk; empty when the folder doesn't hold it.
        source: where it comes from when the folder doesn't hold it.
    """

    name: str
    what: str = ""
    parameters: int | None = None
    dtypes: tuple[str, ...] = ()
    source: str | None = None


@dataclass
class Inspection:
    """What was found.

    Attributes:
        path: the folder.
        layout: what it is.
        parts: its blocks.
        weight_bytes: of all weight files in the folder.
        image_tokens: size of a picture -> rows of the decoder (of a tower alone: patches) it becomes.
        settings: template, token ids, length, preprocessing, tokenizer, in words.
        missing: what the folder doesn't hold and where it would come from.
        problems: why the model can't be loaded as it is; empty when it can.
    """

    path: Path
    layout: str
    parts: list[Part] = field(default_factory=list)
    weight_bytes: int = 0
    image_tokens: dict[str, int] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def part(self, name: str) -> Part:
        """Return the part of a name, a new one when there is none yet."""
        found = next((part for part in self.parts if part.name == name), None)
        if found is None:
            found = Part(name)
            self.parts.append(found)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        parts = [{**vars(part), "dtypes": list(part.dtypes)} for part in self.parts]
        return {**vars(self), "path": str(self.path), "parts": parts}
