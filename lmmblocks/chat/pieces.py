"""Pieces: what a template renders, and the one source of both token ids and labels.

Why: LLaVA builds one string, tokenises it, splits the string again and counts tokens back to find the
answers. A separator inside an answer, another role name or another tokenizer version shifts the count, and
the whole sample is masked with a warning. Here a conversation is a list of pieces, each of which knows
whether it is learned, so there is nothing to count back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

IMAGE_MARKER = "<image>"
"""Marks the place of an image in the content of a message; `\\<image>` is the text, see `escape_markers`."""

_MARKERS = re.compile(rf"(\\*){re.escape(IMAGE_MARKER)}")

PieceKind = Literal["text", "image", "bos", "eos", "special", "break"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of a rendered conversation.

    Args:
        kind: `text` is ordinary text, in which no special token is ever recognised; `image` is the place of
            one image; `bos` and `eos` are the tokenizer's own tokens (a tokenizer without a `bos` gives
            none); `special` is the special token whose exact string is `text`; `break` is nothing, and the texts before it and after it
            are encoded apart.
        text: the text of a `text` piece, or the token of a `special` one.
        role: who says it: "system", "user" or "assistant".
        train: whether its tokens are targets of the loss. An image never is.
    """

    kind: PieceKind
    text: str = ""
    role: str = ""
    train: bool = False


def split_markers(content: str) -> list[str]:
    """Return the texts around the image markers of a content, one more than there are markers.

    Backslashes before a marker are read as a shell reads them: each pair is one backslash, and an odd one makes the marker text.

    Example:
        >>> split_markers("<image> is written \\\\<image>")
        ['', ' is written <image>']
    """
    texts, at = [""], 0
    for match in _MARKERS.finditer(content):
        backslashes = len(match[1])
        texts[-1] += content[at : match.start()] + "\\" * (backslashes // 2)
        if backslashes % 2:
            texts[-1] += IMAGE_MARKER
        else:
            texts.append("")
        at = match.end()
    texts[-1] += content[at:]
    return texts


def count_markers(content: str) -> int:
    """Return how many images a content places."""
    return len(split_markers(content)) - 1


def marker_in_a_sentence(content: str) -> tuple[str, str] | None:
    """Return the text before the only marker of a content and after it, where both are on its line: it may have been meant as a word.

    Example:
        >>> marker_in_a_sentence("Hi.\\nWhat does <image> do?"), marker_in_a_sentence("<image> What?")
        (('What does', 'do?'), None)
    """
    around = split_markers(content)
    if len(around) != 2:
        return None
    before, behind = around[0].rpartition("\n")[2].strip(), around[1].partition("\n")[0].strip()
    return (before, behind) if before and behind else None


def escape_markers(text: str) -> str:
    """Return the content that says a text as it is, with nothing in it taken for the place of an image.

    Example:
        >>> print(escape_markers("What does the tag <image> do?"))
        What does the tag \\<image> do?
    """
    return _MARKERS.sub(lambda match: f"{match[1] * 2}\\{IMAGE_MARKER}", text)


def content_of_parts(parts: Iterable[str | None]) -> str:
    """Return a content from texts, which are taken as they are, and None for each image, which stands on a line of its own.

    Example:
        >>> content_of_parts([None, "What is ", "it?"])
        '<image>\\nWhat is it?'
    """
    lines: list[str] = []
    for shown, run in groupby(parts, key=lambda part: part is None):
        said = list(run)
        lines += [IMAGE_MARKER] * len(said) if shown else [escape_markers("".join(part or "" for part in said))]
    return "\n".join(lines)


def content_pieces(content: str, role: str, *, train: bool = False) -> list[Piece]:
    """Split a message at its image markers, which stay where they stand.

    Args:
        content: text with any number of `<image>` markers: at the start, at the end, adjacent; `\\<image>` is text.
        role: the role that every piece gets.
        train: the train flag of the text pieces.

    Returns:
        Text and image pieces in order, without empty texts.

    Example:
        >>> [(piece.kind, piece.text) for piece in content_pieces("<image>\\nWhat is it?", "user")]
        [('image', ''), ('text', '\\nWhat is it?')]
    """
    pieces: list[Piece] = []
    for index, text in enumerate(split_markers(content)):
        if index:
            pieces.append(Piece("image", role=role))
        if text:
            pieces.append(Piece("text", text, role, train))
    return pieces


def written(pieces: Iterable[Piece], *, bos: str = "", eos: str = "") -> str:
    """Return pieces as one string, to look at or to compare with other renderings.

    Args:
        pieces: what a template rendered.
        bos: how the tokenizer spells its token; "" leaves it out.
        eos: likewise.

    Example:
        >>> written([Piece("bos"), Piece("text", "USER: "), Piece("image")], bos="<s>")
        '<s>USER: <image>'
    """
    spelled = {"bos": bos, "eos": eos, "image": IMAGE_MARKER}
    return "".join(spelled.get(piece.kind, piece.text) for piece in pieces)
