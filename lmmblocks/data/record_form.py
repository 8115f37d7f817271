"""A record in one form, whichever of the usual dialects it is written in.

LLaVA: ``{"id", "image": path | [paths], "conversations": [{"from": "human" | "gpt", "value": text}, ...]}``. Read as well: ``images`` for
``image``; ``messages`` for ``conversations``; turns as ``{"role": "user" | "assistant", "content": text}``, whose content may be a list of
text and image parts; a leading turn from ``system``, or the key ``system``. Nothing of a record is dropped without a word: keys that aren't
read are told by ``record_keys``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..chat.pieces import content_of_parts
from ..spec import closest, some
from .problems import Problem, named, short

ROLES = {
    "from": {"human": "user", "gpt": "assistant", "system": "system"},
    "role": {"user": "user", "assistant": "assistant", "system": "system"},
}
"""Key of a turn's role -> its names there -> role of the message."""

TEXT_KEYS = {"from": "value", "role": "content"}
_PAIRS = " or ".join(f"{role!r} and {text!r}" for role, text in TEXT_KEYS.items())
IMAGE_KEYS = ("image", "images")
TURN_KEYS = ("conversations", "messages")
_PATH_KEYS = ("image", "path", "url", "image_url")
_CONTENT_OF_TURNS = {
    *(
        "tool_calls",
        "function_call",
        "image",
        "images",
        "video",
        "videos",
        "audio",
        "audios",
        "from",
        "role",
        "value",
        "content",
        "text",
    ),
    *("loss", "weight", "mask", "train"),  # which turns are learned: all answers are
}
_MEANT = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt", "bard", "bing"), "assistant"),
    "system": "system",
}


@dataclass(slots=True)
class Turn:
    """One turn.

    Attributes:
        number: its place in the record's list, for messages.
        role: ``user``, ``assistant``, ``system``, or None for another.
        said: the role as the record writes it.
        text: with ``<image>`` for its images.
    """

    number: int
    role: str | None
    said: str
    text: str


@dataclass(slots=True)
class Form:
    """A record in its one form.

    Attributes:
        system: the system message, None if there is none.
        turns: user and assistant; other roles and their order are the rules' matter.
        images: paths as written.
        turn_keys: other keys of turns, which say something about the turn only.
        problems: what could not be read; turns and images are complete only if there are none of type ``wrong_type``.
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    turn_keys: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """What a ``Sample`` holds."""
        leading = [] if self.system is None else [{"role": "system", "content": self.system}]
        return leading + [{"role": turn.role or turn.said, "content": turn.text} for turn in self.turns]


def form_of(record: Mapping[str, Any]) -> Form:
    """Read a record; what can't be read is in ``problems``."""
    form = Form()
    _read_images(record, form)
    _read_turns(record, form)
    _read_system(record, form)
    return form


def _wrong(form: Form, detail: str) -> None:
    form.problems.append(Problem("wrong_type", detail))


def _read_images(record: Mapping[str, Any], form: Form) -> None:
    keys = [key for key in IMAGE_KEYS if record.get(key) is not None]
    if len(keys) == 2:
        _wrong(form, "both image and images are given: keep one of them")
        return
    for key in keys:
        value = record[key]
        names = value if isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str) or not name:
                what = f"{named(name)} in {key}" if isinstance(value, list) else f"{key} is {named(name)}"
                _wrong(form, f"{what}, expected a path, a list of paths, or no image at all")
                return
        form.images += names


def _read_turns(record: Mapping[str, Any], form: Form) -> None:
    given = [key for key in TURN_KEYS if key in record]
    if len(given) == 2:
        _wrong(form, "both conversations and messages are given: keep one of them")
        return
    key = given[0] if given else "conversations"
    turns = record.get(key)
    if not isinstance(turns, list):
        found = f"{key} is {named(turns)}" if given else f"{key} is missing"
        _wrong(form, f"{found}, expected a list of turns{_advice(record, key, turns)}")
    elif not turns:
        _wrong(form, f"{key} is empty, expected a question and an answer at least")
    else:
        for number, turn in enumerate(turns):
            _read_turn(number, turn, form)


def _advice(record: Mapping[str, Any], key: str, turns: Any) -> str:
    """Say what may be meant by a record without a list of turns."""
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        return "; it is JSON inside a string: write the list itself, as json.loads of it gives"
    names = [str(name) for name in record]
    return "" if key in record else closest(key, names) or f"; the record has {some(names) or 'no key'}"


def _read_turn(number: int, turn: Any, form: Form) -> None:
    if not isinstance(turn, dict):
        _wrong(form, f"turn {number} is {named(turn)}, expected {{'from': ..., 'value': ...}}")
        return
    role_key = "role" if "role" in turn and "from" not in turn else "from"
    text_key = TEXT_KEYS[role_key]
    role, content = turn.get(role_key), turn.get(text_key)
    if role_key == "role" and isinstance(content, list):
        content = _text_of_parts(number, content, form)
        if content is None:
            return
    for key, value in ((role_key, role), (text_key, content)):
        if not isinstance(value, str):
            found, advice = (named(turn[key]), "") if key in turn else ("missing", f": a turn has {_PAIRS}")
            _wrong(form, f"turn {number}: {key!r} is {found}, expected a string{advice}")
    for key, value in turn.items():
        if key in (role_key, text_key) or value in (None, "", [], {}):
            continue
        if text_key not in turn and key in TEXT_KEYS.values():
            continue  # what is missing is told already, and this is it
        if key.lower() in _CONTENT_OF_TURNS:
            form.problems.append(Problem("unread_key", f"turn {number}: the key {key!r} ({named(value)}) is not read: remove it"))
        else:
            form.turn_keys.add(key)
    if isinstance(role, str) and isinstance(content, str):
        form.turns.append(Turn(number, ROLES[role_key].get(role), role, content))
        if role not in ROLES[role_key]:
            form.problems.append(Problem("bad_role", f"turn {number} is from {role!r}{_meant(role, role_key)}"))


def _text_of_parts(number: int, parts: list[Any], form: Form) -> str | None:
    """Return the text of a content list, with ``<image>`` on a line of its own for each image part; its paths go to the images."""
    content: list[str | None] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            content.append(part["text"])
        elif kind in ("image", "image_url"):
            content.append(None)
            if not _read_part_path(number, part, form):
                return None
        else:
            what = f"a part of type {kind!r}" if isinstance(part, dict) else named(part)
            _wrong(form, f"turn {number}: {what} in its content, expected parts of type 'text' or 'image'")
            return None
    return content_of_parts(content)


def _read_part_path(number: int, part: Mapping[str, Any], form: Form) -> bool:
    """Add the path of an image part, if it has one; an image part without one stands for the record's next image."""
    values = [part[key] for key in _PATH_KEYS if part.get(key) is not None]
    if not values:
        return True
    path = values[0].get("url") if isinstance(values[0], dict) else values[0]
    if len(values) > 1 or not isinstance(path, str):
        _wrong(form, f"turn {number}: an image part holds {named(values[0])}, expected one path")
        return False
    form.images.append(path.removeprefix("file://"))
    return True


def _read_system(record: Mapping[str, Any], form: Form) -> None:
    system = record.get("system")
    if system is not None and not isinstance(system, str):
        _wrong(form, f"system is {named(system)}, expected a string")
        return
    form.system = system
    if not form.turns or form.turns[0].role != "system" or form.turns[0].number:
        return
    leading = form.turns.pop(0)
    if system is not None:
        _wrong(form, "both a system key and a system turn are given: keep one of them")
    form.system = leading.text


def _meant(role: str, key: str) -> str:
    meant = _MEANT.get(role.strip().lower())
    name = next((said for said, known in ROLES[key].items() if known == meant), None)
    return f": write {name!r}" if name else f": expected {short(', '.join(ROLES[key]))}"
