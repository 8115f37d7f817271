"""Keys and values of the tokens already read, one buffer per sequence and layer.

A hook may drop rows in the middle of the decoder; the layers after it then hold fewer. ``lengths`` counts the rows that were read, which is
where the next position is; :meth:`KVCache.stored` counts what one layer holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..spec import LmmError, Segments

if TYPE_CHECKING:
    from .vision import VisionContext


@dataclass(frozen=True, slots=True)
class _Drop:
    """Rows of one sequence that left a pass: the layers from ``layer`` on don't hold them.

    ``start`` and ``end`` are the sequence's rows that the pass brought, ``count`` how many left. ``before_T`` (None: all) and ``after_T`` are
    the rows of the pass that were there before and after, ``first`` the pass's row at which the sequence begins.
    """

    layer: int
    start: int
    end: int
    count: int
    first: int
    before_T: Tensor | None
    after_T: Tensor

    def below(self, length: int) -> int:
        """Return how many of the rows that left lie before ``length``. Asks the device where a pass is cut in two."""
        if length >= self.end:
            return self.count
        rows = max(0, length - self.start)
        if not rows:
            return 0
        had = rows if self.before_T is None else int((self.before_T < self.first + rows).sum())
        return had - int((self.after_T < self.first + rows).sum())


class KVCache:
    """Grows with the sequences it holds; nothing is padded.

    Args:
        layers: decoder layers.
        sequences: how many sequences are decoded side by side.

    A forward pass appends one segment per sequence (of any length, also 0) to each layer, then :meth:`advance` counts them.
    """

    def __init__(self, layers: int, sequences: int) -> None:
        self.lengths = [0] * sequences
        self.vision: VisionContext | None = None
        """The images of the sequences, for hooks that look at them; ``pending_vision`` becomes it when the pass is over."""
        self.pending_vision: VisionContext | None = None
        self._drops: list[list[_Drop]] = [[] for _ in range(sequences)]
        self._pending: list[tuple[int, _Drop]] = []
        self._keys: list[list[Tensor | None]] = [[None] * sequences for _ in range(layers)]
        self._values: list[list[Tensor | None]] = [[None] * sequences for _ in range(layers)]

    @property
    def ragged(self) -> bool:
        """Whether layers hold different numbers of rows, because a hook dropped some."""
        return bool(self._pending) or any(self._drops)

    def stored(self, layer: int) -> list[int]:
        """Return how many rows of each sequence a layer holds."""
        return [length - sum(drop.count for drop in drops if drop.layer <= layer) for length, drops in zip(self.lengths, self._drops)]

    def begin(self) -> None:
        """Forget what a pass that failed left half done."""
        self._pending, self.pending_vision = [], None

    def segments(self, new_lengths: tuple[int, ...], device: torch.device, *, layer: int = 0) -> Segments:
        """Return the boundaries of the new queries of a layer against its cached plus new keys.

        Raises:
            LmmError: not one new segment per cached sequence.
        """
        if len(new_lengths) != len(self.lengths):
            raise LmmError(f"the cache holds {len(self.lengths)} sequences, the batch brings {len(new_lengths)} segments")
        return Segments.of(new_lengths, [old + new for old, new in zip(self.stored(layer), new_lengths)], device=device)

    def note_drop(self, layer: int, before_T: Tensor | None, after_T: Tensor, old: Sequence[int], new: Sequence[int]) -> None:
        """Remember that rows of the running pass don't reach ``layer`` and the layers after it.

        Args:
            layer: the first layer without them.
            before_T: rows of the pass that were left until now; None = all.
            after_T: rows that are left now.
            old: how many of ``before_T`` belong to each sequence.
            new: the same of ``after_T``.
        """
        befores = [None] * len(old) if before_T is None else before_T.split(list(old))
        for sequence, (before, after) in enumerate(zip(befores, after_T.split(list(new)))):
            count = old[sequence] - new[sequence]
            if count:
                start = self.lengths[sequence]
                self._pending.append((sequence, _Drop(layer, start, start, count, 0, before, after)))

    def append(self, layer: int, k_TKE: Tensor, v_TKE: Tensor, new_lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Store the new rows of one layer; return all its keys and values, packed by sequence."""
        stored = self.stored(layer)
        keys = store_rows(self._keys[layer], k_TKE, new_lengths, stored)
        return keys, store_rows(self._values[layer], v_TKE, new_lengths, stored)

    def advance(self, new_lengths: tuple[int, ...]) -> None:
        """Count the rows of a pass that is over."""
        for sequence, drop in self._pending:
            end, first = drop.start + new_lengths[sequence], sum(new_lengths[:sequence])
            self._drops[sequence].append(replace(drop, end=end, first=first))
        self.vision = self.pending_vision or self.vision
        self.lengths = [old + new for old, new in zip(self.lengths, new_lengths)]
        self.begin()

    def keep(self, sequences: list[int]) -> None:
        """Drop every sequence but these (finished answers free their memory).

        Raises:
            LmmError: a sequence is named twice; the copies would write into one buffer.
        """
        if len(set(sequences)) != len(sequences):
            raise LmmError(f"cannot keep a sequence of the cache twice: found {sequences}")
        self.lengths = [self.lengths[s] for s in sequences]
        self._drops = [self._drops[s] for s in sequences]
        self._keep_images(sequences)
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
        drops = (replace(drop, end=min(drop.end, length), count=drop.below(length)) for drop in self._drops[sequence])
        self._drops[sequence] = [drop for drop in drops if drop.count]
        if self.vision is not None and any(s.segment == sequence and s.start + s.rows > length for s in self.vision.spans):
            self._cut_images(sequence, length)

    def _keep_images(self, sequences: list[int]) -> None:
        if self.vision is None:
            return
        new = {old: place for place, old in enumerate(sequences)}
        spans = [replace(span, segment=new[span.segment]) for span in self.vision.spans if span.segment in new]
        self.vision = self.vision.with_spans(sorted(spans, key=lambda span: (span.segment, span.start)))

    def _cut_images(self, sequence: int, length: int) -> None:
        """Forget the images that begin at ``length`` or after, and the rows of one that goes beyond it."""
        assert self.vision is not None
        left = [span for span in self.vision.spans if span.segment != sequence or span.start < length]
        self.vision = self.vision.with_spans([replace(s, rows=min(s.rows, length - s.start)) if s.segment == sequence else s for s in left])


def store_rows(buffers: list[Tensor | None], rows: Tensor, new_lengths: tuple[int, ...], stored: Sequence[int]) -> Tensor:
    """Write the new rows of each sequence after the ``stored`` ones of its buffer; return all rows, packed by sequence."""
    views = []
    for sequence, (new, old) in enumerate(zip(rows.split(new_lengths), stored)):
        total = old + new.shape[0]
        buffer = _with_capacity(buffers[sequence], new, old, total)
        buffer[old:total] = new
        buffers[sequence] = buffer
        views.append(buffer[:total])
    return views[0] if len(views) == 1 else torch.cat(views)


def _with_capacity(buffer: Tensor | None, new: Tensor, used: int, needed: int) -> Tensor:
    """Return a buffer of at least ``needed`` rows that begins with the ``used`` rows of the old one; doubles when it grows."""
    if buffer is not None and buffer.shape[0] >= needed:
        return buffer
    grown = new.new_empty(max(needed, 2 * used, 64), *new.shape[1:])
    if buffer is not None:
        grown[:used] = buffer[:used]
    return grown
