"""What makes a LLaVA record unusable: the one list of rules, asked by the loader and by the check before training.

A record is ``{"id": ..., "image": "relative/path" | [paths] | absent, "conversations": [{"from": "human" | "gpt", "value": text}, ...]}``
(LLaVA ``docs/Finetune_Custom_Data.md``; the list is ours). LLaVA itself validates nothing here: a wrong role ends the run with
a ``KeyError``, a missing ``<image>`` trains without the picture, an additional one takes the next sample's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..chat.pieces import IMAGE_MARKER
from ..spec import LmmError, closest

ROLES = {"human": "user", "gpt": "assistant"}
"""Role names of LLaVA's format -> role names of messages."""

_FOREIGN_ROLES = {"user": "human", "assistant": "gpt", "model": "gpt", "bot": "gpt", "chatgpt": "gpt"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one record.

    Attributes:
        code: name of the kind, a key of ``PROBLEM_KINDS``.
        detail: what was found where.
    """

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """A kind of problem: what it means, what to do, and whether it is only worth knowing (``note``)."""

    meaning: str
    advice: str
    note: bool = False


PROBLEM_KINDS = {
    "broken_json": ProblemKind(
        "the file is not valid JSON there", "mend the file at the line and column given"
    ),
    "no_records": ProblemKind("the file holds no records", "give a list of records"),
    "wrong_type": ProblemKind(
        "a field is missing or has the wrong type", "write id, image and conversations as LLaVA does"
    ),
    "bad_text": ProblemKind("text with half a character (lone surrogate)", "re-encode the text as UTF-8"),
    "bad_role": ProblemKind("a turn is neither human nor gpt", "name the roles 'human' and 'gpt'"),
    "starts_with_gpt": ProblemKind(
        "the first turn is gpt's", "remove the leading answer, or put its question in front"
    ),
    "not_alternating": ProblemKind("two turns of one role in a row", "join them, or add the turn between"),
    "no_answer": ProblemKind("the last question has no answer", "add the gpt turn, or remove the question"),
    "empty_question": ProblemKind(
        "a human turn without text or image", "write the question, or remove the pair"
    ),
    "empty_answer": ProblemKind("a gpt turn without text", "write the answer, or remove the pair"),
    "missing_marker": ProblemKind(
        f"fewer {IMAGE_MARKER} than images", f"put one {IMAGE_MARKER} per image into the questions"
    ),
    "extra_marker": ProblemKind(
        f"more {IMAGE_MARKER} than images", f"remove the surplus {IMAGE_MARKER}, or list the images"
    ),
    "marker_in_answer": ProblemKind(
        f"{IMAGE_MARKER} in a gpt turn", "images stand in questions; take it out of the answer"
    ),
    "path_escape": ProblemKind(
        "an image path leaves the images folder", "use paths relative to --images, without '..'"
    ),
    "missing_image": ProblemKind(
        "the image file does not exist", "check --images and the path, or fetch the file"
    ),
    "zero_byte_image": ProblemKind("the image file has 0 bytes", "fetch the file again"),
    "truncated_image": ProblemKind("the image file ends too early", "fetch the file again"),
    "corrupt_image": ProblemKind(
        "the file cannot be decoded as an image", "replace the file, or drop the record"
    ),
    "bomb_image": ProblemKind("more pixels than any picture needs", "scale it down, or drop the record"),
    "extreme_image": ProblemKind("an extreme shape, nothing would be visible", "crop it, or drop the record"),
    "format_image": ProblemKind("a kind of file that isn't read", "convert it to PNG or JPEG, see the detail"),
    "range_image": ProblemKind(
        "values of which nobody knows what is white", "scale it to 8 bits, or to floats in [0, 1]"
    ),
    "unreadable_image": ProblemKind(
        "the machine can't read the file, which may be sound", "mend the machine, see the detail; no record is dropped for it"
    ),
    "too_long": ProblemKind(
        "more tokens than allowed", "shorten or split it, raise the limit, or train with truncate='turn'"
    ),
    "untokenisable": ProblemKind("the template refuses the conversation", "see the detail"),
    "duplicate_id": ProblemKind("the id was used before", "make ids unique, or --allow duplicate_id"),
    "animated_image": ProblemKind(
        "several frames; the first one is used", "nothing, if the first frame is right", note=True
    ),
    "deep_image": ProblemKind(
        "more than 8 bits: 16 bits or floats in [0, 1] are scaled to 8",
        "nothing, if its values use that range; 12-bit data in 16 bits look nearly black",
        note=True,
    ),
    "wrong_extension": ProblemKind("content and file name differ", "nothing: the content decides", note=True),
    "image_only_question": ProblemKind(
        "a question that is only an image", "nothing, for captioning", note=True
    ),
}
"""Every kind of problem, in the order of reports."""


class BrokenJson(LmmError):
    """JSON that cannot be parsed; stands in the place of its record when only one line of a ``.jsonl`` file is broken."""


def record_problems(record: Any) -> list[Problem]:
    """Return everything wrong with one record, without looking at files.

    Args:
        record: one entry of the JSON list, of any type.

    Returns:
        Problems; empty for a sound record.
    """
    if isinstance(record, BrokenJson):
        return [Problem("broken_json", str(record))]
    if not isinstance(record, dict):
        return [Problem("wrong_type", f"the record is {_named(record)}, expected an object")]
    problems = _id_problems(record) + _image_field_problems(record)
    turns: Any = record.get("conversations")
    turn_problems = _turn_type_problems(turns, record)
    if turn_problems:
        return problems + turn_problems
    problems += _role_problems(turns) + _text_problems(turns)
    return (
        problems
        if any(p.code == "wrong_type" for p in problems)
        else problems + _marker_problems(turns, record)
    )


def image_names(record: Mapping[str, Any]) -> list[str]:
    """Return a sound record's image paths as written, in order; empty for text only."""
    image = record.get("image")
    return [] if image is None else [image] if isinstance(image, str) else list(image)


def resolve_image(images_dir: str | os.PathLike, name: str) -> str:
    """Return the full path of an image of a record.

    Raises:
        LmmError: the path is absolute or leads out of the folder. Links inside the folder may point anywhere.
    """
    folded = os.path.normpath(name)
    if os.path.isabs(name) or folded == os.pardir or folded.startswith(os.pardir + os.sep) or "\0" in name:
        raise LmmError(
            f"image path {name!r} leads out of the images folder: expected a relative path without '..'"
        )
    return os.path.join(images_dir, name)


def _id_problems(record: Mapping[str, Any]) -> list[Problem]:
    found = record.get("id")
    if found is None or (isinstance(found, (str, int)) and not isinstance(found, bool)):
        return []
    return [Problem("wrong_type", f"id is {_named(found)}, expected a string or an integer")]


def _image_field_problems(record: Mapping[str, Any]) -> list[Problem]:
    image = record.get("image")
    names = image if isinstance(image, list) else [] if image is None else [image]
    for name in names:
        if not isinstance(name, str) or not name:
            what = f"{_named(name)} in image" if isinstance(image, list) else f"image is {_named(name)}"
            return [Problem("wrong_type", f"{what}, expected a path, a list of paths, or no image at all")]
        if _has_lone_surrogate(name):
            return [
                Problem("wrong_type", f"image path {name!r} holds a lone surrogate, no file can be named so")
            ]
    return []


def _turn_type_problems(turns: Any, record: Mapping[str, Any]) -> list[Problem]:
    if not isinstance(turns, list):
        found = (
            f"conversations is {_named(turns)}" if "conversations" in record else "conversations is missing"
        )
        hint = "" if "conversations" in record else "".join(closest("conversations", map(str, record)))
        return [Problem("wrong_type", f"{found}, expected a list of turns{hint}")]
    if not turns:
        return [Problem("wrong_type", "conversations is empty, expected a question and an answer at least")]
    problems = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            problems.append(
                Problem(
                    "wrong_type", f"turn {number} is {_named(turn)}, expected {{'from': ..., 'value': ...}}"
                )
            )
            continue
        for key in ("from", "value"):
            if not isinstance(turn.get(key), str):
                found = _named(turn[key]) if key in turn else "missing"
                problems.append(
                    Problem("wrong_type", f"turn {number}: {key!r} is {found}, expected a string")
                )
    return problems


def _role_problems(turns: list[Mapping[str, str]]) -> list[Problem]:
    roles = [turn["from"] for turn in turns]
    bad = [(number, role) for number, role in enumerate(roles) if role not in ROLES]
    if bad:
        return [Problem("bad_role", f"turn {number} is from {role!r}{_meant(role)}") for number, role in bad]
    problems = (
        [Problem("starts_with_gpt", f"turn 0 is gpt's: {_short(turns[0]['value'])}")]
        if roles[0] == "gpt"
        else []
    )
    for number in range(1, len(roles)):
        if roles[number] == roles[number - 1]:
            problems.append(
                Problem("not_alternating", f"turns {number - 1} and {number} are both {roles[number]}'s")
            )
    if roles[-1] == "human":
        problems.append(
            Problem("no_answer", f"turn {len(roles) - 1} has no answer: {_short(turns[-1]['value'])}")
        )
    return problems


def _text_problems(turns: list[Mapping[str, str]]) -> list[Problem]:
    problems = []
    for number, turn in enumerate(turns):
        text, role = turn["value"], turn["from"]
        if role == "gpt" and not text.strip():
            problems.append(Problem("empty_answer", f"turn {number} is empty"))
        elif role == "human" and not text.strip():
            problems.append(Problem("empty_question", f"turn {number} is empty"))
        elif role == "human" and IMAGE_MARKER in text and not text.replace(IMAGE_MARKER, "").strip():
            problems.append(Problem("image_only_question", f"turn {number} is {_short(text)}"))
        if _has_lone_surrogate(text):
            problems.append(Problem("bad_text", f"turn {number} holds a lone surrogate"))
    return problems


def _marker_problems(turns: list[Mapping[str, str]], record: Mapping[str, Any]) -> list[Problem]:
    images = len(image_names(record))
    markers = sum(turn["value"].count(IMAGE_MARKER) for turn in turns if turn["from"] != "gpt")
    problems = [
        Problem("marker_in_answer", f"turn {number}: {_short(turn['value'])}")
        for number, turn in enumerate(turns)
        if turn["from"] == "gpt" and IMAGE_MARKER in turn["value"]
    ]
    if markers != images:
        code = "missing_marker" if markers < images else "extra_marker"
        text_only = " (a text-only record)" if images == 0 else ""
        problems.append(Problem(code, f"{markers} {IMAGE_MARKER} for {images} images{text_only}"))
    return problems


def _has_lone_surrogate(text: str) -> bool:
    """Whether JSON escapes left half a character behind, which no tokenizer and no file system takes."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def _meant(role: str) -> str:
    meant = _FOREIGN_ROLES.get(role.strip().lower()) or (
        role.strip().lower() if role.strip().lower() in ROLES else ""
    )
    return f": write {meant!r}" if meant else ""


def _named(value: Any) -> str:
    """Describe a value by its JSON type, and itself where short."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    name = names.get(type(value), "null" if value is None else type(value).__name__)
    return name if isinstance(value, (dict, list)) or value is None else f"{name} ({_short(str(value))})"


def _short(text: str, most: int = 40) -> str:
    return repr(text if len(text) <= most else text[: most - 3] + "...")
