"""What makes a record unusable: the one list of rules, asked by the loader and by the check before training.

``record_form`` says how a record may be written (LLaVA ``docs/Finetune_Custom_Data.md`` and its relatives; the list is ours). LLaVA itself
validates nothing here: a wrong role ends the run with a ``KeyError``, a missing ``<image>`` trains without the picture, an additional one
takes the next sample's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any
from unicodedata import category

from ..chat.pieces import IMAGE_MARKER, count_markers, marker_in_a_sentence, split_markers
from ..images.load import URLS
from ..spec.fields import is_whole
from .problems import Problem, named, short
from .record_form import Form, Turn, form_of
from .record_keys import key_problems

_FOREIGN_MARK = re.compile(
    r"(?!(?-i:<image>))<\s*(?:/?image|video|audio|ImageHere|image_placeholder|image_?\d+|\|image(?:_pad)?\||img)\s*>(?:[^<\n]+</img>)?", re.IGNORECASE
)


def record_problems(record: Any, form: Form | None = None) -> list[Problem]:
    """Return everything wrong with one record, without looking at files.

    Args:
        record: one entry of the JSON list, of any type.
        form: of the record, if it was read already.

    Returns:
        Problems; empty for a sound record.
    """
    if not isinstance(record, dict):
        return [Problem("wrong_type", f"the record is {named(record)}, expected an object")]
    form = form_of(record) if form is None else form
    problems = _id_problem(record.get("id")) + key_problems(record) + form.problems + _name_problems(form.images)
    if any(problem.code in ("wrong_type", "bad_role") for problem in form.problems):
        return problems
    problems += _order_problems(form.turns) + _text_problems(form)
    return problems if any(p.code == "wrong_type" for p in problems) else problems + _marker_problems(form)


def image_problem(images_dir: str | os.PathLike, name: str) -> Problem | None:
    """Say why an image of a record can't be a file of the images folder, None if it can."""
    if name.startswith(URLS):
        return Problem("url_image", f"image {name[:80]!r}: URLs aren't read")
    folded = os.path.normpath(name)
    if os.path.isabs(name):
        inside = _is_below(folded, os.path.abspath(images_dir)) or _is_below(os.path.realpath(folded), os.path.realpath(images_dir))
    else:
        inside = folded != os.pardir and not folded.startswith(os.pardir + os.sep)
    if inside and "\0" not in name:
        return None
    return Problem(
        "path_escape",
        f"image path {name!r} leads out of the images folder: expected a path inside {os.fspath(images_dir)}, without '..'",
    )


def image_path(images_dir: str | os.PathLike, name: str) -> str:
    """Return the full path of an image that has no ``image_problem``. Links inside the folder may point anywhere."""
    return os.path.join(images_dir, name)


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _id_problem(found: Any) -> list[Problem]:
    if found is None or isinstance(found, str) or is_whole(found):
        return []
    return [Problem("wrong_type", f"id is {named(found)}, expected a string or an integer")]


def _name_problems(names: Sequence[str]) -> list[Problem]:
    bad = [name for name in names if _has_lone_surrogate(name)]
    return [Problem("wrong_type", f"image path {name!r} holds a lone surrogate, no file can be named so") for name in bad[:1]]


def _order_problems(turns: Sequence[Turn]) -> list[Problem]:
    """The user begins, both take turns, the assistant ends; a system turn that isn't the first was left among them."""
    late = [turn for turn in turns if turn.role == "system"]
    if late:
        return [Problem("bad_role", f"turn {turn.number} is a system turn, expected it only as the first") for turn in late]
    if not turns:
        return [Problem("no_answer", "there is a system turn only, expected a question and an answer")]
    problems = []
    if turns[0].role == "assistant":
        problems.append(Problem("starts_with_gpt", f"turn {turns[0].number} is {turns[0].said}'s: {short(turns[0].text)}"))
    for before, turn in zip(turns, turns[1:]):
        if turn.role == before.role:
            problems.append(Problem("not_alternating", f"turns {before.number} and {turn.number} are both {turn.said}'s"))
    if turns[-1].role == "user":
        problems.append(Problem("no_answer", f"turn {turns[-1].number} has no answer: {short(turns[-1].text)}"))
    return problems


def _text_problems(form: Form) -> list[Problem]:
    problems = []
    for turn in form.turns:
        if is_blank(turn.text):
            code = "empty_answer" if turn.role == "assistant" else "empty_question"
            problems.append(Problem(code, f"turn {turn.number} is empty"))
        elif turn.role == "user" and count_markers(turn.text) and is_blank("".join(split_markers(turn.text))):
            problems.append(Problem("image_only_question", f"turn {turn.number} is {short(turn.text)}"))
        if turn.role == "user" and (mark := _FOREIGN_MARK.search(turn.text)):
            problems.append(Problem("foreign_marker", f"turn {turn.number} holds {short(mark[0])}"))
        if _has_lone_surrogate(turn.text):
            problems.append(Problem("bad_text", f"turn {turn.number} holds a lone surrogate"))
    if form.system is not None and _has_lone_surrogate(form.system):
        problems.append(Problem("bad_text", "the system message holds a lone surrogate"))
    return problems


def _marker_problems(form: Form) -> list[Problem]:
    images = len(form.images)
    markers = sum(count_markers(turn.text) for turn in form.turns if turn.role == "user")
    problems = [
        Problem("marker_in_answer", f"turn {turn.number}: {short(turn.text)}")
        for turn in form.turns
        if turn.role == "assistant" and count_markers(turn.text)
    ]
    if form.system is not None and count_markers(form.system):
        problems.append(Problem("marker_in_answer", f"the system message: {short(form.system)}"))
    if markers == images == 1:
        problems += [
            Problem("marker_in_sentence", f"turn {turn.number} has it between {short(around[0][-30:])} and {short(around[1][:30])}")
            for turn in form.turns
            if turn.role == "user" and (around := marker_in_a_sentence(turn.text)) is not None
        ]
    if markers != images:
        code = "missing_marker" if markers < images else "extra_marker"
        text_only = " (a text-only record)" if images == 0 else ""
        problems.append(Problem(code, f"{markers} {IMAGE_MARKER} for {images} images{text_only}"))
    return problems


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: no character at all, whitespace, and characters that are neither seen nor take place.

    >>> is_blank("\\n\\u200b\\ufeff"), is_blank("\\u00ad-")
    (True, False)
    """
    return all(letter.isspace() or category(letter) in ("Cc", "Cf") for letter in text.strip())


def _has_lone_surrogate(text: str) -> bool:
    """Whether JSON escapes left half a character behind, which no tokenizer and no file system takes."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)
