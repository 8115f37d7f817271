"""Other words for colours and shapes, so that a decoder copies what it is told instead of what usually goes together.

Training never shows some pairs of colour and shape. A small decoder notices, and won't say "red" of a square even
where the scene says so. In a renamed document every colour and shape has another word, drawn anew each time:
what a "lamp hand" is can only be looked up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmmblocks.chat import Tokens

from ..scenes.text_only import OPPOSITES
from ..scenes.vocabulary import COLORS, PLURALS, POSITIONS, SHAPES, WORDS
from .word_rows import Document

_PLACES = {word for name in POSITIONS.values() for word in name.split()}
_ELSEWHERE = {*_PLACES, "yes", "no", "above", "below", "first", "last", "in", "out"}


@dataclass(frozen=True)
class Renaming:
    """Which token ids are renamed, and what else they can be called.

    Args:
        names: ids of the colours' and shapes' words.
        others: ids of words that can stand for them: printed words and opposites.
        blockers: ids that a document must not hold, because they say a colour or shape in another way (plurals).
    """

    names: tuple[int, ...]
    others: tuple[int, ...]
    blockers: frozenset[int]

    @staticmethod
    def of(tokenizer: Any) -> Renaming:
        """Find the words in a tokenizer's vocabulary; a colour or shape of several tokens keeps its name."""
        vocabulary = tokenizer.get_vocab()
        words = {*WORDS, *(word for pair in OPPOSITES for word in pair)} - _ELSEWHERE
        names, others = ([vocabulary[f"▁{word}"] for word in group if f"▁{word}" in vocabulary] for group in ((*COLORS, *SHAPES), sorted(words)))
        plurals = tuple(PLURALS.values())
        told = [*COLORS, *SHAPES, *plurals, *(f"▁{word}" for word in plurals)]
        return Renaming(tuple(names), tuple(others), frozenset(vocabulary[word] for word in told if word in vocabulary))

    def applies_to(self, document: Document) -> bool:
        """Whether nothing in a document would keep its old name: no plurals, no JSON, no Chinese."""
        return not self.blockers.intersection(document.tokens.ids)

    def renamed(self, document: Document, rng: random.Random) -> Document:
        """Return a document with every colour and shape under another word."""
        used = {*document.tokens.ids, *(token for rows in document.scenes for bag in rows for token in bag)}
        free = [token for token in self.others if token not in used]
        new = dict(zip(self.names, rng.sample(free, len(self.names))))

        def swap(ids: Sequence[int]) -> list[int]:
            return [new.get(token, token) for token in ids]

        scenes = tuple(tuple(tuple(swap(bag)) for bag in rows) for rows in document.scenes)
        return replace(document, tokens=Tokens(swap(document.tokens.ids), swap(document.tokens.labels)), scenes=scenes)
