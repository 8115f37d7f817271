"""What a picture's regions are called: phrases in groups, each group one property that a phrase may name.

A region is described several times over: whole ("red circle", "word sun"), in part ("red", "circle"), and
by where it is ("top left", "from left 0.1"). Contrasting the groups one by one teaches the tower to keep
the properties apart, which is what carries over to combinations it has never seen.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..scenes.describe import caption, item_phrase, padded_box, position
from ..scenes.glyphs import sign_margin_px, word_mask
from ..scenes.scene import Item, Scene

SIDES = ("left", "top", "right", "bottom")
SPELLING = ("1st", "2nd", "3rd", "4th")
GROUPS = ("item", "color", "shape", "place", *SIDES, "digit", "letter", *SPELLING)


@dataclass(frozen=True)
class Region:
    """One item as the objective sees it.

    Args:
        image: index of its picture in the batch.
        box: x0, y0, x1, y1 relative to the padded square.
        phrases: group -> phrase; a group that has nothing to say of this item is missing.
    """

    image: int
    box: tuple[float, float, float, float]
    phrases: dict[str, str]


def scene_regions(scene: Scene, image: int) -> list[Region]:
    """The regions of a picture: its items, and every printed letter by itself."""
    items = [Region(image, padded_box(scene, item), _phrases(scene, item)) for item in scene.items]
    letters = [Region(image, padded_box(scene, letter), {"letter": letter.word or ""}) for item in scene.items for letter in _letters(item)]
    return items + letters


def _letters(item: Item) -> list[Item]:
    """Each letter of a sign as an item of its own, with its share of the sign's width; none for shapes and digits."""
    x0, y0, x1, y1 = item.box_px
    margin = sign_margin_px(item.size_px)
    widths = [word_mask(letter, item.size_px).width + 1 for letter in item.word or ""]
    ends = list(accumulate(widths, initial=0))
    edges = [x0 + margin + round(end * (x1 - x0 - 2 * margin) / max(ends[-1], 1)) for end in ends]
    boxes = [(low, y0 + margin, high, y1 - margin) for low, high in pairwise(edges)]
    return [replace(item, word=letter, box_px=box) for letter, box in zip(item.word or "", boxes)]


def _phrases(scene: Scene, item: Item) -> dict[str, str]:
    phrases = {"item": item_phrase(item), "place": position(item)}
    if item.kind == "shape":
        phrases |= {"color": f"{item.color}", "shape": f"{item.shape}"}
    elif item.kind == "word":
        phrases |= {"color": f"{item.color}", "shape": "sign"}
        phrases |= {place: f"{place[0]} {letter}" for place, letter in zip(SPELLING, f"{item.word}....")}
    else:
        phrases |= {"shape": "digit", "digit": f"{item.digit}"}
    return phrases | {side: f"{side} {value:.2f}" for side, value in zip(SIDES, padded_box(scene, item))}


def box_weights(boxes_B4: Tensor, side: int) -> Tensor:
    """Share of each patch that lies in a box, over a grid of `side` x `side` patches.

    Args:
        boxes_B4: x0, y0, x1, y1 in 0..1.
        side: patches along a side.

    Returns:
        `(B, side * side)` in 0..1, row by row.
    """
    edges = torch.arange(side) / side
    low, high = boxes_B4[:, :2, None] * 1.0, boxes_B4[:, 2:, None]
    overlap_B2S = (torch.minimum(high, edges + 1 / side) - torch.maximum(low, edges)).clamp_min(0) * side
    return (overlap_B2S[:, 1, :, None] * overlap_B2S[:, 0, None, :]).flatten(1)


class Words:
    """The text tower's tokens: common words are one each, all others (printed words, numbers) are spelled.

    Args:
        texts: what to count words in.
        least: occurrences from which a word gets a token of its own.
    """

    PAD = 0

    def __init__(self, words: list[str]) -> None:
        characters = "abcdefghijklmnopqrstuvwxyz0123456789.,"
        self.ids = {token: index + 1 for index, token in enumerate([*characters, *words])}

    @staticmethod
    def from_captions(samples: int = 2000) -> Words:
        """Count the words of captions and phrases; printed words stay rare enough to be spelled."""
        from ..scenes.scene import sample_scene
        from ..scenes.vocabulary import COLORS, SHAPES, WORDS

        rng, counts = random.Random("words"), Counter[str]()
        for _ in range(samples):
            counts.update(_split(caption(sample_scene(rng, "train"), rng)))
        counts.update([*COLORS, *SHAPES, "sign", "digit", "word", *SIDES])
        return Words(sorted(word for word in counts if len(word) > 1 and word not in WORDS))

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return len(self.ids) + 1

    def encode(self, texts: list[str]) -> Tensor:
        """Token ids `(N, L)`, padded at the end with `PAD`."""
        rows = []
        for text in texts:
            tokens = [[word] if word in self.ids else list(word) for word in _split(text)]
            rows.append(torch.tensor([self.ids[token] for word in tokens for token in word]))
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.PAD)


def _split(text: str) -> list[str]:
    return text.lower().replace(",", " ,").rstrip(".").split()
