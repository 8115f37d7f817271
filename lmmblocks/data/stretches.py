"""One sample cut into stretches of rows that are alike, to look at: text that is read, text that is learned, rows of an image, and what is cut off.

All of it is taken from the ids, the labels and the plan's own rule of truncation, so that what is shown is what is trained. Without a tokenizer the
rendered pieces are shown, which nothing can be cut from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..spec import IGNORE_LABEL, IMAGE_TOKEN, LmmError, Sample
from .sample_reader import SampleReader

if TYPE_CHECKING:
    from ..chat import Piece, Tokens


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring rows of a sample that are alike.

    Attributes:
        text: what the rows say; "" for an image.
        image: which image of the sample the rows belong to, from 0; None = text.
        rows: how many; None = there was no tokenizer to count with.
        learned: whether they are targets of the loss.
        cut: whether they are left out of training because the sample is too long.
    """

    text: str = ""
    image: int | None = None
    rows: int | None = None
    learned: bool = False
    cut: bool = False


def stretches_of_pieces(pieces: Iterable[Piece]) -> list[Stretch]:
    """Return the stretches of what a template rendered.

    Args:
        pieces: of one conversation.

    Returns:
        Stretches without counts; the tokenizer's own tokens are called ``<bos>`` and ``<eos>``.
    """
    found: list[Stretch] = []
    images = 0
    for piece in pieces:
        if piece.kind == "image":
            found.append(Stretch(image=images))
            images += 1
        elif piece.kind != "break":
            text = f"<{piece.kind}>" if piece.kind in ("bos", "eos") else piece.text
            found.append(Stretch(text, learned=piece.train))
    return _joined(found)


def stretches_of_tokens(tokens: Tokens, tokenizer: Any, *, image_rows: int, kept: int | None = None) -> list[Stretch]:
    """Return the stretches of a tokenised conversation.

    Args:
        tokens: its ids and labels, each image one id.
        tokenizer: what the ids are read back with. A character of several tokens is shown with the last of them.
        image_rows: rows every image becomes.
        kept: how many leading rows training keeps; None = all.

    Returns:
        Stretches in order; their ``rows`` add up to the rows of the sample.
    """
    from ..generate.text import TokenText

    reader = TokenText(tokenizer, silent=())
    found: list[Stretch] = []
    at = images = 0
    for token, label in zip(tokens.ids, tokens.labels):
        if token == IMAGE_TOKEN:
            left = image_rows if kept is None else max(0, min(image_rows, kept - at))
            found += [Stretch(image=images, rows=rows, cut=cut) for rows, cut in ((left, False), (image_rows - left, True)) if rows]
            at, images = at + image_rows, images + 1
        else:
            learned = label != IGNORE_LABEL and at > 0  # nothing comes before the first row that could predict it
            found.append(Stretch(reader.push(token), rows=1, learned=learned, cut=kept is not None and at >= kept))
            at += 1
    return [*_joined(found), *([Stretch(rest, rows=0)] if (rest := reader.finish()) else [])]


def _joined(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Join neighbours that are alike."""
    joined: list[Stretch] = []
    for _, group in groupby(stretches, key=lambda one: (one.image, one.learned, one.cut)):
        same = list(group)
        rows = None if same[0].rows is None else sum(one.rows or 0 for one in same)
        joined.append(replace(same[0], text="".join(one.text for one in same), rows=rows))
    return joined


def stretches(sample: Sample, reader: SampleReader, *, max_length: int | None = None, truncate: str = "turn") -> list[Stretch]:
    """Return the stretches of a sample as training reads it.

    Args:
        sample: whose texts are read; its images aren't opened.
        reader: how they are read, see ``sample_reader``.
        max_length: most rows that training takes; None = any number.
        truncate: how longer samples are cut: ``turn | right | drop``, see ``plan_splice``.

    Raises:
        LmmError: the template or the tokenizer refuses the sample, or a length was given and no tokenizer to count with.
    """
    if reader.tokenizer is None:
        if max_length is not None:
            raise LmmError(f"max_length={max_length} is counted in tokens, and there is no tokenizer: give one, or leave it out")
        return stretches_of_pieces(reader.template.render(sample.messages))
    if max_length is not None and max_length < 1:
        raise LmmError(f"max_length={max_length}: expected 1 or more")
    import numpy as np

    from ..chat import encode_chat
    from ..plans.host import fitting_rows

    tokens = encode_chat(sample.messages, reader.template, reader.tokenizer, mode=reader.mode)
    repeats = [reader.image_rows if token == IMAGE_TOKEN else 1 for token in tokens.ids]
    labels, ids = (np.repeat(values, repeats) for values in (tokens.labels, tokens.ids))
    kept = fitting_rows(labels, ids == IMAGE_TOKEN, max_length, truncate)
    return stretches_of_tokens(tokens, reader.tokenizer, image_rows=reader.image_rows, kept=kept or 0)
