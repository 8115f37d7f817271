"""Keys of a record that aren't read: those that hold what training would need are refused, the others are counted.

LLaVA's own files bring keys that say something about a record (``model``), and so do everybody's (``source, width, dataset, url``). A key is
refused when it is one of those that are read, misspelt; when it names what a model would be shown or told (``video``, ``tools``); or when its
value does so: turns anywhere, and in a record without image, a picture.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from .problems import Problem, named
from .record_form import IMAGE_KEYS, TURN_KEYS

READ = ("id", *IMAGE_KEYS, *TURN_KEYS, "system")
OF_EVALUATION = ("tasks", "kinds")
"""Read by evaluation alone."""

_ALIKE = 0.88  # difflib's ratio: "imags", "conversation", "sytem"; not "image_id" or "conversation_id"
_CONTENT = {
    **dict.fromkeys(
        ("video", "videos", "video_path", "frames"),
        "videos aren't read: save their frames as pictures and list those in 'image'",
    ),
    **dict.fromkeys(("audio", "audios", "audio_path", "speech", "sound"), "sound isn't read"),
    **dict.fromkeys(("tools", "functions", "tool_calls"), "tools aren't read: write them into the system message"),
    **dict.fromkeys(("history",), "earlier turns aren't read from there: put them before 'conversations'"),
    **dict.fromkeys(("system_prompt", "system_message", "sys"), "did you mean 'system'?"),
    **dict.fromkeys(
        ("image_bytes", "image_base64", "pixel_values"),
        "pictures are read from files: save it and give its path in 'image'",
    ),
}
_IMAGE_NAMES = (
    "img",
    "imgs",
    "picture",
    "pictures",
    "photo",
    "photos",
    "image_path",
    "image_paths",
    "image_file",
    "image_files",
    "image_list",
)
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif")
_MOVING = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".wav", ".mp3", ".flac")
_EMPTY: tuple[Any, ...] = (None, "", [], {})


def key_problems(record: Mapping[str, Any]) -> list[Problem]:
    """Return a problem for each key whose content would be lost."""
    has_image = any(record.get(key) not in _EMPTY for key in IMAGE_KEYS)
    lost = ((key, _loss(key, record[key], has_image)) for key in _others(record))
    return [Problem("unread_key", f"the key {key!r} ({named(record[key])}) is not read: {loss}") for key, loss in lost if loss]


def other_keys(record: Mapping[str, Any]) -> list[str]:
    """Return the keys that aren't read and hold nothing that training would need."""
    has_image = any(record.get(key) not in _EMPTY for key in IMAGE_KEYS)
    return [key for key in _others(record) if record[key] not in _EMPTY and not _loss(key, record[key], has_image)]


def _others(record: Mapping[str, Any]) -> Iterator[str]:
    return (key for key in record if key not in READ and key not in OF_EVALUATION)


def _loss(key: str, value: Any, has_image: bool) -> str | None:
    """Say what would be lost with a key, None if nothing."""
    if value in _EMPTY or isinstance(value, bool):
        return None
    name = key.strip().lower()
    if name in _CONTENT:
        return _CONTENT[name]
    near = name if name in READ else next(iter(difflib.get_close_matches(name.rstrip("0123456789_"), READ, 1, _ALIKE)), None)
    if near not in (None, "id") and not isinstance(value, (int, float)):
        return f"did you mean {near!r}?"
    if _holds_turns(value):
        return "turns are read from 'conversations' or 'messages'"
    if any(path.endswith(_MOVING) for path in _paths(value)):
        return "neither videos nor sound are read"
    pictured = name in _IMAGE_NAMES or _holds_pixels(value) or any(path.endswith(_PICTURES) for path in _paths(value))
    return "the record has no image; did you mean 'image'?" if pictured and not has_image else None


def _holds_turns(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(entry, dict) and ({"from", "value"} <= entry.keys() or {"role", "content"} <= entry.keys()) for entry in value
    )


def _holds_pixels(value: Any) -> bool:
    """Whether a value is a picture as the Hugging Face datasets write it."""
    entries = value if isinstance(value, list) else [value]
    return any(isinstance(entry, dict) and "bytes" in entry for entry in entries)


def _paths(value: Any) -> Iterator[str]:
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        path = entry.get("path") if isinstance(entry, dict) else entry
        if isinstance(path, str):
            yield os.path.normpath(path.partition("?")[0]).lower()
