"""A cache for LongRoPE, which reads a sequence again when it outgrows the rotary divisors that it was read with.

Motivation: LongRoPE (Phi-3) turns *every* position of a sequence by other frequencies once the sequence is longer than the first training's,
so that all keys in the cache, and every hidden state after the first layer, are those of another model. transformers' ``generate`` drops its
cache at that token and reads the whole sequence again. How it works: the cache remembers the input rows (``D`` numbers per token, beside
``2 K E`` for each layer) and hands them back in the pass that crosses the border, in either direction (a cut conversation gets shorter).
Non-goals: hooks that drop rows or look at images; a pass that crosses the border with these is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..spec import LmmError, Segments
from .cache import KVCache, store_rows
from .rotary import LongRope


class Rows(NamedTuple):
    """What a pass has to read: rows ``(T, D)``, their positions and segments, and which of them the caller asked for (None = all)."""

    embeds: Tensor
    positions: Tensor
    segments: Segments
    asked: Tensor | None


class RereadingCache(KVCache):
    """A cache for LongRoPE, which rotates all rows of a sequence anew when it grows beyond the pretrained length.

    Args:
        layers: decoder layers.
        sequences: how many sequences are decoded side by side.
        scaling: says which lengths go together.
    """

    def __init__(self, layers: int, sequences: int, scaling: LongRope) -> None:
        super().__init__(layers, sequences)
        self.scaling = scaling
        self._inputs: list[Tensor | None] = [None] * sequences
        self._is_long = [False] * sequences

    def keep(self, sequences: list[int]) -> None:
        """See :meth:`KVCache.keep`."""
        super().keep(sequences)
        self._inputs = [self._inputs[s] for s in sequences]
        self._is_long = [self._is_long[s] for s in sequences]

    def rows_to_read(self, embeds: Tensor, positions: Tensor, segments: Segments, kv_end: Tensor | None = None) -> Rows:
        """Return the new rows, after all earlier rows of each sequence that crosses the border with them.

        Raises:
            LmmError: a sequence crosses it whose rows a hook dropped or whose images hooks look at; or a ``kv_end``, which isn't remembered.
        """
        if kv_end is not None:
            raise LmmError("a cache of LongRoPE may have to read rows again and doesn't remember kv_end: leave out the cache or kv_end")
        new = segments.lengths_q
        if len(new) != len(self.lengths):
            return Rows(embeds, positions, segments, None)  # segments() says what is wrong
        totals = [old + count for old, count in zip(self.lengths, new)]
        whole = store_rows(self._inputs, embeds, new, self.lengths).split(totals)
        long = [self.scaling.is_long(total) if count else was for total, count, was in zip(totals, new, self._is_long)]
        again = [is_long != was and old > 0 for is_long, was, old in zip(long, self._is_long, self.lengths)]
        self._is_long = long
        if not any(again):
            return Rows(embeds, positions, segments, None)
        if self.ragged or self.vision is not None:
            raise LmmError(
                f"a sequence crosses {self.scaling.original} positions, where the decoder has to read it again (LongRoPE), which hooks that "
                f"drop rows or look at images don't allow: generate without these hooks, or keep sequences on one side"
            )
        for sequence in [s for s, crosses in enumerate(again) if crosses]:
            self.truncate(sequence, 0)
        return _joined(whole, positions.split(new), new, again)


def _joined(whole: tuple[Tensor, ...], positions: tuple[Tensor, ...], new: tuple[int, ...], again: list[bool]) -> Rows:
    rows, places, asked, first = [], [], [], 0
    for part, place, count, crosses in zip(whole, positions, new, again):
        rows.append(part if crosses else part[len(part) - count :])
        places.append(torch.arange(len(part), device=place.device, dtype=place.dtype) if crosses else place)
        end = first + len(rows[-1])
        asked.append(torch.arange(end - count, end, device=place.device))
        first = end
    segments = Segments.of([len(part) for part in rows], device=rows[0].device)
    return Rows(torch.cat(rows), torch.cat(places), segments, torch.cat(asked))
