"""One call of every op as a model of 7 billion parameters makes it, for asking what would run; nothing is computed.

Sizes are those of a decoder of width 4096 with grouped heads of 128 and of its vision tower; values don't matter, and there are few rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..plans.host import plan_splice
from ..spec import Segments
from .activations import geglu, quick_gelu, swiglu
from .add_rms_norm import add_rms_norm
from .attention.paged import paged_attention
from .attention.reference import attention
from .last_row_scores import last_row_scores
from .layer_norm import layer_norm
from .linear_cross_entropy import linear_cross_entropy
from .qk_norm_rope import qk_norm_rope
from .rms_norm import rms_norm
from .rope import rope
from .row_scores import attention_of_cls, row_scores
from .splice import splice

LENGTHS = (600, 424)
ROWS = sum(LENGTHS)
DIM, FFN, VOCABULARY, TOWER = 4096, 11008, 32000, 1024
HEADS, KV_HEADS, HEAD = 32, 8, 128


class Examples:
    """Calls on one device and in one dtype; :attr:`calls` maps a label, ``op`` or ``op (case)``, to a call without arguments."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> None:
        self._device, self._dtype = torch.device(device), dtype
        self.calls: dict[str, Callable[[], Any]] = {
            "add_rms_norm": lambda: add_rms_norm(self._rows(DIM), self._rows(DIM), self._new(DIM)),
            "attention": lambda: attention(*self._heads(), Segments.of(LENGTHS, device=device)),
            "attention (a vision tower)": self._tower,
            "attention (images see themselves)": self._bidirectional,
            "attention (one new token)": self._decode,
            "attention_of_cls": lambda: attention_of_cls(self._new(2, 16, 64), self._new(2, 577, 16, 64), 1),
            "geglu": lambda: geglu(self._rows(FFN), self._rows(FFN)),
            "last_row_scores": lambda: last_row_scores(*self._heads()[:2], Segments.of(LENGTHS, device=device)),
            "layer_norm": lambda: layer_norm(self._rows(TOWER), self._new(TOWER), self._new(TOWER)),
            "linear_cross_entropy": self._loss,
            "paged_attention": self._paged,
            "qk_norm_rope": lambda: qk_norm_rope(*self._heads()[:2], self._new(HEAD), self._new(HEAD), *self._table()),
            "quick_gelu": lambda: quick_gelu(self._rows(TOWER)),
            "rms_norm": lambda: rms_norm(self._rows(DIM), self._new(DIM)),
            "rope": lambda: rope(*self._heads()[:2], *self._table()),
            "row_scores": self._scores,
            "splice": self._splice,
            "swiglu": lambda: swiglu(self._rows(FFN), self._rows(FFN)),
        }

    def _new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self._dtype, device=self._device)

    def _rows(self, width: int) -> Tensor:
        return self._new(ROWS, width)

    def _heads(self, rows: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self._new(rows or ROWS, HEADS, HEAD),
            self._new(ROWS, KV_HEADS, HEAD),
            self._new(ROWS, KV_HEADS, HEAD),
        )

    def _table(self) -> tuple[Tensor, Tensor]:
        return self._new(ROWS, HEAD, dtype=torch.float32), self._new(ROWS, HEAD, dtype=torch.float32)

    def _tower(self) -> Any:
        """CLIP-L at 336 px: 577 rows an image, heads of 64."""
        q, k, v = (self._new(2 * 577, 16, 64) for _ in range(3))
        return attention(q, k, v, Segments.uniform(2, 577, device=self._device), causal=False)

    def _bidirectional(self) -> Any:
        kv_end = self._new(ROWS, dtype=torch.int32)
        return attention(*self._heads(), Segments.of(LENGTHS, device=self._device), kv_end=kv_end)

    def _decode(self) -> Any:
        q, k, v = self._heads(rows=len(LENGTHS))
        return attention(q, k, v, Segments.of((1,) * len(LENGTHS), LENGTHS, device=self._device))

    def _paged(self) -> Any:
        """One new token for each conversation, the cache in pages of 16 keys."""
        keys, values = (self._new(-(-ROWS // 16), 16, KV_HEADS, HEAD) for _ in range(2))
        table = torch.zeros(len(LENGTHS), -(-ROWS // 16), dtype=torch.int32, device=self._device)
        lengths = torch.zeros(len(LENGTHS), dtype=torch.int32, device=self._device)
        return paged_attention(self._new(len(LENGTHS), HEADS, HEAD), keys, values, table, lengths)

    def _scores(self) -> Any:
        """Of the last row of each conversation, which FastV prunes by."""
        q, k, _ = self._heads(rows=len(LENGTHS))
        return row_scores(q, k, Segments.of((1,) * len(LENGTHS), LENGTHS, device=self._device))

    def _patches(self) -> tuple[Tensor, Tensor, Tensor, Segments]:
        """Two images of CLIP-L at 336 px: rows, the keys they are compared by, scores."""
        rows = 2 * 576
        return (
            self._new(rows, TOWER),
            self._new(rows, TOWER),
            self._new(rows),
            Segments.uniform(2, 576, device=self._device),
        )

    def _loss(self) -> Any:
        targets = torch.zeros(ROWS, dtype=torch.int64, device=self._device)
        return linear_cross_entropy(self._rows(DIM), self._new(VOCABULARY, DIM), targets)

    def _splice(self) -> Any:
        plan = plan_splice([[1, -200, 2]], [[576]])
        return splice(self._new(VOCABULARY, DIM), self._new(576, DIM), plan.to(self._device))
