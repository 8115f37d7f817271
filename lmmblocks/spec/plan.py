"""One packed batch as a plan: made on the host, executed on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from .segments import Segments

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IMAGE_TOKEN = -200
"""Marks one image among token ids. Never a vocabulary id (LLaVA ``constants.py:8``)."""

IGNORE_LABEL = -100
"""Label of a token nobody has to predict (LLaVA ``constants.py:7``)."""


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where an image lies.

    Attributes:
        image: its number in the batch.
        segment: the segment that shows it.
        start: its first row, counted from the start of the segment.
        rows: how many of its rows are there; less than all where it was truncated.
    """

    image: int
    segment: int
    start: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SplicePlan:
    """One packed batch, built on the host and moved once; the device only executes it.

    Attributes:
        source: int32 ``(T,)``; ``>= 0``: row of the embedding table, ``< 0``: image row ``-(source + 1)``.
        positions: int32 ``(T,)``; restart per segment.
        cu_seqlens: int32 ``(S+1,)``.
        max_seqlen: longest segment.
        total_rows: ``T``.
        target_rows: int32 ``(R,)``; packed rows whose next token is supervised.
        targets: int64 ``(R,)``; the token each must predict.
        kv_end: int32 ``(T,)`` packed index one past the last visible key of each row; None = causal.
        image_rows: int32 ``(M,)``; packed row each image row went to, -1 if truncated away.
        token_order: int32; text rows sorted by token id (stable), for a deterministic embedding gradient.
        lengths: host lengths of the segments.
        target_counts: host number of supervised rows per segment.
        truncated: host number of tokens and image rows removed per segment.
        kept: indices of the input samples that became segments (``truncate="drop"`` leaves some out).
        image_spans: host place of every image of which a row is left.
        largest_id: host bound of the token ids; -1 = not known on the host.
        target_weights: fp32 ``(R,)``, the weight of each supervised row in the loss; None = 1 each.
        has_slack: of a kind of plan, not of one: rows after ``cu_seqlens[-1]`` belong to no segment, and lists of rows end in -1.
    """

    source: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    total_rows: int
    target_rows: Tensor
    targets: Tensor
    kv_end: Tensor | None
    image_rows: Tensor
    token_order: Tensor
    lengths: tuple[int, ...]
    target_counts: tuple[int, ...]
    truncated: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    image_spans: tuple[ImageSpan, ...] = ()
    largest_id: int = -1
    target_weights: Tensor | None = None
    has_slack: ClassVar[bool] = False

    @property
    def segments(self) -> Segments:
        """The plan's boundaries as self-attention segments (no device work)."""
        cu, most = self.cu_seqlens, self.max_seqlen
        return Segments(cu, cu, most, most, self.lengths, self.lengths)

    def to(self, device: torch.device | str) -> SplicePlan:
        """Return the plan with every tensor on ``device``; pinned host memory is copied without blocking."""
        return _moved(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> SplicePlan:
        """Return the plan with every tensor in pinned host memory."""
        return _moved(self, lambda tensor: tensor.pin_memory())


def _moved(plan: SplicePlan, move: Callable[[Tensor], Tensor]) -> SplicePlan:
    import torch

    values = {f.name: getattr(plan, f.name) for f in fields(plan)}
    moved: dict[str, Any] = {name: move(v) for name, v in values.items() if isinstance(v, torch.Tensor)}
    return replace(plan, **moved)
