"""Scenes as rows of words: what a decoder will one day get from a projector, without a picture or an encoder.

A row stands where an image row would, and is the sum of the embeddings of a few words: those that hold of the item under that patch ("red",
"circle", "top", "left"), in most rows with some left out at random, and noise, at a length of its scene's own. A decoder that was trained on
them can look an item up in rows that name several things at once; what is left for the projector to learn is to turn features into words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmmblocks.chat import Tokens

from ..scenes.describe import item_phrase, padded_box, position
from ..scenes.scene import Item, Scene

Bag = tuple[int, ...]
_SIDES = (4, 5, 6, 8)
_KEPT = 0.85
_LEAST_COVER = 0.3
_NOISE, _SHARED, _LOG2_LENGTH = (0.3, 1.2), (0.0, 2.0), (0.0, 3.0)


@dataclass(frozen=True)
class Document:
    """A training text.

    Args:
        tokens: ids, and labels that mark the answers; an image token stands for one scene's rows.
        scenes: for each image token its rows, each a bag of token ids (empty for background).
    """

    tokens: Tokens
    scenes: tuple[tuple[Bag, ...], ...] = ()


def word_rows(scene: Scene, rng: random.Random, tokenizer: Any) -> tuple[Bag, ...]:
    """The rows of a scene, patch by patch in reading order, on a grid of random size.

    Args:
        scene: what is shown.
        rng: source of the grid's size and of the words left out.
        tokenizer: gives each word's token ids.

    Returns:
        One bag of token ids a patch.
    """
    side = rng.choice(_SIDES)
    words = [_words(item, tokenizer) for item in scene.items]
    covers = [[_cover(padded_box(scene, item), *divmod(i, side), side) for i in range(side * side)] for item in scene.items]
    rows: list[Bag] = []
    for i in range(side * side):
        item = max(range(len(words)), key=lambda item: covers[item][i])
        rows.append(_kept(words[item], rng) if covers[item][i] >= _LEAST_COVER else ())
    for item, cover in enumerate(covers):  # one row at least leaves nothing out: what is asked for is there
        rows[cover.index(max(cover))] = _kept(words[item], rng, 1.0)
    return tuple(rows)


def embed_rows(scenes: Sequence[Sequence[Bag]], table_VD: Tensor) -> Tensor:
    """Rows `(M, D)` of scenes: sums of embeddings, as unlike them as a projector's rows are.

    What a projector will do isn't known, so each scene draws how: its rows are up to eight times as long, hold 0.3 to 1.2 of the table's spread
    in noise, and those of its background share a vector that says nothing.

    Args:
        scenes: for each scene its rows, each a bag of token ids.
        table_VD: the embeddings.
    """
    bags = [bag for rows in scenes for bag in rows]
    if not bags:
        return table_VD.new_zeros(0, table_VD.shape[1])
    ids = torch.tensor([token for bag in bags for token in bag], dtype=torch.long)
    lengths_M = torch.tensor([len(bag) for bag in bags])
    scene_M = torch.repeat_interleave(torch.tensor([len(rows) for rows in scenes]))
    words_MD = F.embedding_bag(ids, table_VD, F.pad(lengths_M.cumsum(0)[:-1], (1, 0)), mode="sum")
    spread = table_VD.detach().std()
    noise_S, shared_S, length_S = (low + (high - low) * torch.rand(len(scenes)) for low, high in (_NOISE, _SHARED, _LOG2_LENGTH))
    shared_SD = torch.randn(len(scenes), table_VD.shape[1]) * shared_S[:, None]
    other_MD = torch.randn_like(words_MD) * noise_S[scene_M, None] + shared_SD[scene_M] * (lengths_M == 0)[:, None]
    return (words_MD + other_MD * spread) * length_S.exp2()[scene_M, None]


def _words(item: Item, tokenizer: Any) -> list[Bag]:
    """Token ids of everything that is said of an item, one entry a word."""
    sign = f" {item.color} sign" if item.kind == "word" else ""
    said = f"{item_phrase(item)}{sign} {position(item)}"
    return [tuple(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) for word in said.split()]


def _kept(words: list[Bag], rng: random.Random, share: float = _KEPT) -> Bag:
    return tuple(token for word in words if rng.random() < share for token in word)


def _cover(box: tuple[float, float, float, float], row: int, column: int, side: int) -> float:
    """Share of a patch or of the box, whichever is larger, that the two have in common."""
    width = min(box[2], (column + 1) / side) - max(box[0], column / side)
    height = min(box[3], (row + 1) / side) - max(box[1], row / side)
    if width <= 0 or height <= 0:
        return 0.0
    area = (box[2] - box[0]) * (box[3] - box[1])
    return width * height / min(area, 1 / side**2)
