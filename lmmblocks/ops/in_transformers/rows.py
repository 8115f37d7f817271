"""Which rows of a padded batch take part in attention, and how they fall into segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...spec import Segments


@dataclass(frozen=True)
class AttentionRows:
    """What the layers of a pass need instead of a mask; arguments of ``ops.attention``, and the rows to call it with.

    With a static cache transformers has it made ahead of the model's own call and treats it as the 4-D mask that others make: hence ``ndim``
    and ``contiguous``.

    Attributes:
        segments: boundaries of the chosen rows.
        causal: see ``ops.attention``.
        window: see ``ops.attention``.
        kv_end: see ``ops.attention``; counts the chosen keys.
        queries: int64 indices into the ``B * Q`` queries, None = all; the others come out as zeros.
        keys: int64 indices into the ``B * K`` keys, None = all.
    """

    segments: Segments
    causal: bool
    window: int | None = None
    kv_end: Tensor | None = None
    queries: Tensor | None = None
    keys: Tensor | None = None
    ndim: ClassVar[int] = 4

    def contiguous(self) -> AttentionRows:
        """Return itself."""
        return self


@dataclass(frozen=True)
class Piece:
    """One segment on the host: its rows in the padded batch.

    Attributes:
        queries: indices into the ``B * Q`` queries.
        keys: indices into the ``B * K`` keys.
        ends: for each query, how many of ``keys`` lie before the end of what it sees; None = causal, or all.
    """

    queries: Tensor
    keys: Tensor
    ends: Tensor | None = None


def joined(
    pieces: Sequence[Piece],
    total_queries: int,
    total_keys: int,
    causal: bool,
    window: int | None,
    device: torch.device,
) -> AttentionRows:
    """Put segments together and move them to the device, in one copy each; all rows in order need no indices."""
    segments = Segments.of([len(piece.queries) for piece in pieces], [len(piece.keys) for piece in pieces], device=device)
    queries = torch.cat([piece.queries for piece in pieces]) if pieces else torch.zeros(0, dtype=torch.int64)
    keys = torch.cat([piece.keys for piece in pieces]) if pieces else torch.zeros(0, dtype=torch.int64)
    kv_end, before = None, 0
    if any(piece.ends is not None for piece in pieces):
        ends = []
        for piece in pieces:
            ends.append(before + (_causal_ends(piece) if piece.ends is None else piece.ends))
            before += len(piece.keys)
        kv_end = torch.cat(ends).to(torch.int32).to(device)
    return AttentionRows(
        segments,
        causal,
        window,
        kv_end,
        None if _is_all(queries, total_queries) else queries.to(device),
        None if _is_all(keys, total_keys) else keys.to(device),
    )


def _causal_ends(piece: Piece) -> Tensor:
    return torch.arange(len(piece.keys) - len(piece.queries), len(piece.keys)) + 1


def _is_all(rows: Tensor, total: int) -> bool:
    return len(rows) == total and bool((rows == torch.arange(total)).all())
