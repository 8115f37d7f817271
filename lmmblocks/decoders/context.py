"""What a decoder layer, and a hook before it, may know about the pass, and how a hook drops rows.

Motivation: FastV drops image rows in the middle of the decoder, Flamingo and Cambrian look at the vision features from inside it. Elsewhere
each is a fork of the decoder's loop. How it works: a hook gets the rows and a :class:`LayerContext`. To change rows it returns new ones. To drop
rows it returns ``context.keep(...)``: what the layers after it see, cache and attend to is less, positions stay what they were, and the
decoder's result has its full length again, with zeros where rows were dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..spec import LmmError, Segments
from .vision import VisionContext

if TYPE_CHECKING:
    from .cache import KVCache


@dataclass(slots=True)
class LayerContext:
    """What a layer, or a hook before it, may know about the pass.

    Attributes:
        layer: index of the layer about to run.
        positions: ``(T,)``.
        segments: boundaries of queries and keys.
        kv_end: see ``ops.attention``; None = causal.
        cos_TE: rotary tables, one for each kind of layer (``TransformerConfig.rotary_kind``). A hook may replace both, for its layer and those
            after it: ``return hidden_TD, dataclasses.replace(context, cos_TE=..., sin_TE=...)``; a decoder that can't follow refuses.
        sin_TE: rotary tables.
        cache: keys and values of earlier tokens, or None.
        vision: the images, for hooks that require ``vision``; else None.
        last_row_scores: ``(T,)`` attention that the last row of each segment paid to each row in the layer before, mean over heads; for
            hooks that require it. It carries no gradient.
        wants_scores: the layer about to run has to leave ``last_row_scores``.
        kept_rows: ``(T,)`` row of the whole pass that each row was; None until a hook drops some.
        total_rows: rows of the whole pass, set together with ``kept_rows``.
        given_tables: the very ``(cos_TE, sin_TE)`` that came from the decoder, by which it sees that a hook replaced them; None = it did.
    """

    layer: int
    positions: Tensor
    segments: Segments
    kv_end: Tensor | None
    cos_TE: Any
    sin_TE: Any
    cache: KVCache | None
    vision: VisionContext | None = None
    last_row_scores: Tensor | None = None
    wants_scores: bool = False
    kept_rows: Tensor | None = None
    total_rows: int = 0
    given_tables: tuple[Any, Any] | None = None

    @property
    def has_given_tables(self) -> bool:
        """Whether the rotary tables are the decoder's own, or rows of these."""
        given = self.given_tables
        return given is not None and self.cos_TE is given[0] and self.sin_TE is given[1]

    def keep(self, hidden_TD: Tensor, keep_T: Tensor, lengths: Sequence[int]) -> tuple[Tensor, LayerContext]:
        """Drop every row but the kept ones from this layer on. Only image rows may be dropped: text rows are predicted and predict.

        Args:
            hidden_TD: the rows.
            keep_T: bool ``(T,)``.
            lengths: how many rows of each segment are kept. The host has to know, so that the device is asked for nothing.

        Returns:
            The kept rows and their context, which a hook returns.

        Raises:
            LmmError: lengths that aren't those of ``keep_T`` or drop text (checked on the CPU), or a pass with both a cache and ``kv_end``.
        """
        # 1. Which rows stay. A stable sort of the flags lists them in their order; how many there are the host knows, so nothing is asked.
        lengths = tuple(int(n) for n in lengths)
        self._check(keep_T, lengths)
        rows = torch.argsort((~keep_T).to(torch.uint8), stable=True)[: sum(lengths)]
        # 2. Which rows of the whole pass these are: an earlier hook may have dropped some already.
        old = self.segments.lengths_q
        kept = rows if self.kept_rows is None else self.kept_rows.index_select(0, rows)
        if self.cache is not None:
            self.cache.note_drop(self.layer, self.kept_rows, kept, old, lengths)
        # 3. Everything that counts rows is counted anew; positions stay what they were.
        changed = replace(
            self,
            positions=self.positions.index_select(0, rows),
            segments=self._segments(lengths, hidden_TD.device),
            kv_end=None if self.kv_end is None else _moved_ends(self.kv_end, keep_T, rows),
            vision=None if self.vision is None else self.vision.kept(keep_T, rows, old, lengths),
            last_row_scores=None if self.last_row_scores is None else self.last_row_scores.index_select(0, rows),
            kept_rows=kept,
            total_rows=self.total_rows or hidden_TD.shape[0],
            **{f.name: _rows_of(getattr(self, f.name), rows) for f in fields(self) if f.name.endswith("_TE")},
        )
        # 4. Fewer rows of the decoder's own tables are still its own: only a hook's tables have to be followed.
        changed.given_tables = (changed.cos_TE, changed.sin_TE) if self.has_given_tables else None
        return hidden_TD.index_select(0, rows), changed

    def restored(self, hidden_TD: Tensor) -> Tensor:
        """Return the rows of the whole pass: zeros where a hook dropped one."""
        if self.kept_rows is None:
            return hidden_TD
        return hidden_TD.new_zeros(self.total_rows, hidden_TD.shape[1]).index_copy(0, self.kept_rows, hidden_TD)

    def _segments(self, lengths: tuple[int, ...], device: torch.device) -> Segments:
        if self.cache is None:
            return Segments.of(lengths, device=device)
        return self.cache.segments(lengths, device, layer=self.layer)

    def _check(self, keep_T: Tensor, lengths: tuple[int, ...]) -> None:
        old = self.segments.lengths_q
        if len(lengths) != len(old) or any(not 0 <= new <= had for new, had in zip(lengths, old)):
            raise LmmError(f"keep(): lengths {lengths} of the kept rows don't fit segments of {old}: give one number per segment")
        if self.cache is not None and self.kv_end is not None:
            raise LmmError("keep(): a pass with a cache and kv_end can't lose rows: leave one of them out")
        if keep_T.device.type != "cpu":
            return
        found = tuple(int(part.sum()) for part in keep_T[: sum(old)].split(old))
        if found != lengths:
            raise LmmError(f"keep(): keep_T marks {found} rows of the segments, lengths says {lengths}: make them agree")
        if self.vision is not None and not bool((keep_T | self.vision.mask_T).all()):
            raise LmmError("keep(): keep_T drops text rows: only rows where context.vision.mask_T is true may go")


def _moved_ends(kv_end: Tensor, keep_T: Tensor, rows: Tensor) -> Tensor:
    """Return, for the kept rows, one past the last visible key among the kept ones."""
    before = torch.nn.functional.pad(keep_T.cumsum(0), (1, 0))
    return before.index_select(0, kv_end.index_select(0, rows).long()).to(kv_end.dtype)


def _rows_of(table: Any, rows: Tensor) -> Any:
    """Return some rows of a table, or of each table of a mapping or tuple."""
    if isinstance(table, Tensor):
        return table.index_select(0, rows)
    if isinstance(table, dict):
        return {key: _rows_of(value, rows) for key, value in table.items()}
    return type(table)(_rows_of(value, rows) for value in table) if isinstance(table, (tuple, list)) else table
