"""Keys and values of the tokens already read, one buffer per sequence and layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec import LmmError, Segments


class KVCache:
    """Grows with the sequences it holds; nothing is padded.

    Args:
        layers: decoder layers.
        sequences: how many sequences are decoded side by side.

    A forward pass appends one segment per sequence (of any length, also 0) to each layer, then :meth:`advance` counts them.
    """

    def __init__(self, layers: int, sequences: int) -> None:
        self.lengths = [0] * sequences
        self._keys: list[list[Tensor | None]] = [[None] * sequences for _ in range(layers)]
        self._values: list[list[Tensor | None]] = [[None] * sequences for _ in range(layers)]

    def segments(self, new_lengths: tuple[int, ...], device: torch.device) -> Segments:
        """Return the boundaries of the new queries against cached plus new keys.

        Raises:
            LmmError: not one new segment per cached sequence.
        """
        if len(new_lengths) != len(self.lengths):
            raise LmmError(f"the cache holds {len(self.lengths)} sequences, the batch brings {len(new_lengths)} segments")
        return Segments.of(new_lengths, [old + new for old, new in zip(self.lengths, new_lengths)], device=device)

    def append(self, layer: int, k_TKE: Tensor, v_TKE: Tensor, new_lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Store the new rows of one layer; return all its keys and values, packed by sequence."""
        keys = self._store(self._keys[layer], k_TKE, new_lengths)
        return keys, self._store(self._values[layer], v_TKE, new_lengths)

    def _store(self, buffers: list[Tensor | None], rows: Tensor, new_lengths: tuple[int, ...]) -> Tensor:
        views = []
        for sequence, (new, old) in enumerate(zip(rows.split(new_lengths), self.lengths)):
            total = old + new.shape[0]
            buffer = _with_capacity(buffers[sequence], new, old, total)
            buffer[old:total] = new
            buffers[sequence] = buffer
            views.append(buffer[:total])
        return views[0] if len(views) == 1 else torch.cat(views)

    def advance(self, new_lengths: tuple[int, ...]) -> None:
        """Count the rows that every layer has stored."""
        self.lengths = [old + new for old, new in zip(self.lengths, new_lengths)]

    def keep(self, sequences: list[int]) -> None:
        """Drop every sequence but these (finished answers free their memory).

        Raises:
            LmmError: a sequence is named twice; the copies would write into one buffer.
        """
        if len(set(sequences)) != len(sequences):
            raise LmmError(f"cannot keep a sequence of the cache twice: found {sequences}")
        self.lengths = [self.lengths[s] for s in sequences]
        for store in (self._keys, self._values):
            for layer, buffers in enumerate(store):
                store[layer] = [buffers[s] for s in sequences]

    def truncate(self, sequence: int, length: int) -> None:
        """Forget the rows of a sequence from ``length`` on.

        Raises:
            LmmError: the sequence doesn't hold that many rows.
        """
        if not 0 <= length <= self.lengths[sequence]:
            raise LmmError(f"cannot truncate sequence {sequence} to {length} rows: it holds {self.lengths[sequence]}")
        self.lengths[sequence] = length


def _with_capacity(buffer: Tensor | None, new: Tensor, used: int, needed: int) -> Tensor:
    """Return a buffer of at least ``needed`` rows that begins with the ``used`` rows of the old one; doubles when it grows."""
    if buffer is not None and buffer.shape[0] >= needed:
        return buffer
    grown = new.new_empty(max(needed, 2 * used, 64), *new.shape[1:])
    if buffer is not None:
        grown[:used] = buffer[:used]
    return grown
