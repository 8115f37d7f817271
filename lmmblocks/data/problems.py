"""Every kind of problem a data file can have: its name, what it means, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..chat.pieces import IMAGE_MARKER


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
    "broken_json": ProblemKind("the file is not valid JSON there", "mend the file at the line and column given"),
    "no_records": ProblemKind("the file holds no records", "give a list of records"),
    "wrong_type": ProblemKind("a field is missing or has the wrong type", "write id, image and conversations as LLaVA does"),
    "bad_text": ProblemKind("text with half a character (lone surrogate)", "re-encode the text as UTF-8"),
    "unread_key": ProblemKind("a key that isn't read holds what training would need", "rename it as the detail says, or remove it"),
    "bad_role": ProblemKind("a turn is neither human nor gpt", "name the roles 'human' and 'gpt'; 'system' may be the first"),
    "starts_with_gpt": ProblemKind("the first turn is gpt's", "remove the leading answer, or put its question in front"),
    "not_alternating": ProblemKind("two turns of one role in a row", "join them, or add the turn between"),
    "no_answer": ProblemKind("the last question has no answer", "add the gpt turn, or remove the question"),
    "empty_question": ProblemKind("a human turn without text or image", "write the question, or remove the pair"),
    "empty_answer": ProblemKind("a gpt turn without text", "write the answer, or remove the pair"),
    "missing_marker": ProblemKind(f"fewer {IMAGE_MARKER} than images", f"put one {IMAGE_MARKER} per image into the questions"),
    "extra_marker": ProblemKind(f"more {IMAGE_MARKER} than images", f"remove the surplus {IMAGE_MARKER}, or list the images"),
    "marker_in_answer": ProblemKind(f"{IMAGE_MARKER} in a gpt or system turn", "images stand in questions; take it out of there"),
    "path_escape": ProblemKind("an image path leaves the images folder", "use paths relative to --images, without '..'"),
    "url_image": ProblemKind("the image is a URL", "download it, and give the path of the file"),
    "missing_image": ProblemKind("the image file does not exist", "check --images and the path, or fetch the file"),
    "zero_byte_image": ProblemKind("the image file has 0 bytes", "fetch the file again"),
    "truncated_image": ProblemKind("the image file ends too early", "fetch the file again"),
    "corrupt_image": ProblemKind("the file cannot be decoded as an image", "replace the file, or drop the record"),
    "bomb_image": ProblemKind("more pixels than any picture needs", "scale it down, or drop the record"),
    "extreme_image": ProblemKind("an extreme shape, nothing would be visible", "crop it, or drop the record"),
    "format_image": ProblemKind("a kind of file that isn't read", "convert it to PNG or JPEG, see the detail"),
    "range_image": ProblemKind("values of which nobody knows what is white", "scale it to 8 bits, or to floats in [0, 1]"),
    "unreadable_image": ProblemKind(
        "the machine can't read the file, which may be sound",
        "mend the machine, see the detail; no record is dropped for it",
    ),
    "too_long": ProblemKind("more tokens than allowed", "shorten or split it, raise the limit, or train with truncate='turn'"),
    "bad_question": ProblemKind(
        "lmmblocks eval can't ask or score it",
        "one question, one answer of its kind, with 'tasks' and 'kinds' as lists of one name",
    ),
    "untokenisable": ProblemKind("the template refuses the conversation", "see the detail"),
    "duplicate_id": ProblemKind(
        "the id was used before",
        "nothing: ids only name records in messages; LLaVA's own mix repeats them",
        note=True,
    ),
    "other_keys": ProblemKind("keys that training doesn't read", "nothing, if nothing of them is needed", note=True),
    "animated_image": ProblemKind("several frames; the first one is used", "nothing, if the first frame is right", note=True),
    "deep_image": ProblemKind(
        "more than 8 bits: 16 bits or floats in [0, 1] are scaled to 8",
        "nothing, if its values use that range; 12-bit data in 16 bits look nearly black",
        note=True,
    ),
    "turned_image": ProblemKind(
        "EXIF says that it is to be turned; it is seen as stored, as LLaVA does",
        "nothing, or train with exif=rotate (and --format native), which the model keeps",
        note=True,
    ),
    "transparent_image": ProblemKind(
        "the colours below the transparency are seen, as LLaVA does; often all black",
        "nothing, or train with transparent=white or black (and --format native), which the model keeps",
        note=True,
    ),
    "wrong_extension": ProblemKind("content and file name differ", "nothing: the content decides", note=True),
    "foreign_marker": ProblemKind(
        f"what looks like another format's mark of an image, video or sound; only {IMAGE_MARKER} is one, this is read as text",
        f"nothing, if it is text; otherwise write {IMAGE_MARKER} and list the image",
        note=True,
    ),
    "marker_in_sentence": ProblemKind(
        f"the only {IMAGE_MARKER} stands inside a sentence; it is the place of the picture",
        f"nothing, if it is; for the word write \\{IMAGE_MARKER}, and {IMAGE_MARKER} in front",
        note=True,
    ),
    "special_in_text": ProblemKind(
        "a text spells a special token of the tokenizer, which is read as its characters",
        "nothing, if it is text; for the token add it as an ordinary one: tokenizer.add_tokens([...])",
        note=True,
    ),
    "image_only_question": ProblemKind("a question that is only an image", "nothing, for captioning", note=True),
}
"""Every kind of problem, in the order of reports."""


def named(value: Any) -> str:
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
    return name if isinstance(value, (dict, list)) or value is None else f"{name} ({short(str(value))})"


def short(text: str, most: int = 40) -> str:
    return repr(text if len(text) <= most else text[: most - 3] + "...")
