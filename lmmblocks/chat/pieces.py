"""Pieces: what a template renders, and the one source of both token ids and labels.

Why: LLaVA builds one string, tokenises it, splits the string again and counts tokens back to find the
answers. A separator inside an answer, another role name or another tokenizer version shifts the count, and
the whole sample is masked with a warning. Here a conversation is a list of pieces, each of which knows
whether it is learned, so there is nothing to count back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

IMAGE_MARKER = "<image>"
"""Marks the place of an image in the content of a message; there is no other way to place one."""

PieceKind = Literal["text", "image", "bos", "eos", "special"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of a rendered conversation.

    Args:
        kind: `text` is ordinary text, in which no special token is ever recognised; `image` is the place of
            one image; `bos` and `eos` are the tokenizer's own tokens (a tokenizer without a `bos` gives
            none); `special` is the special token whose exact string is `text`.
        text: the text of a `text` piece, or the token of a `special` one.
        role: who says it: "system", "user" or "assistant".
        train: whether its tokens are targets of the loss. An image never is.
    """

    kind: PieceKind
    text: str = ""
    role: str = ""
    train: bool = False


def content_pieces(content: str, role: str, *, train: bool = False) -> list[Piece]:
    """Split a message at its image markers, which stay where they stand.

    Args:
        content: text with any number of `<image>` markers: at the start, at the end, adjacent.
        role: the role that every piece gets.
        train: the train flag of the text pieces.

    Returns:
        Text and image pieces in order, without empty texts.

    Example:
        >>> [(piece.kind, piece.text) for piece in content_pieces("<image>\\nWhat is it?", "user")]
        [('image', ''), ('text', '\\nWhat is it?')]
    """
    pieces: list[Piece] = []
    for index, text in enumerate(content.split(IMAGE_MARKER)):
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
