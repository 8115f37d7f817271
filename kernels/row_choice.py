"""Which rows of an image stay: ranks, the largest and a few spread over the others, outliers. All images of a packed batch at once.

Shapes: ``scores [M]`` of packed rows in any float dtype, ``cu [I + 1]``; ``rank, slot [M]`` int32, ``kept [I, K + O]`` int32 packed rows.

``rank`` of a row: how many rows of its image score higher, or the same and lie before it. The first ``K`` stay. Of the others, counted in their
order, ``O`` more are taken: spread evenly, number ``(2 s + 1) R // 2 O`` of ``R`` for ``s`` of ``O`` (PruMerge+), or every ``R // O``-th (VisionZip).

Bytes per call: scores and ranks of an image, a few KiB from L1; ``P^2`` comparisons an image of ``P`` rows, spread over programs. Two launches
for all images, no sort; nothing is added by two programs, so the same rows on every run.

Launch table: not measured on a GPU. A program ranks ``RANKED`` rows against ``AGAINST`` at a time, 32 comparisons a thread; then one program
an image counts through it, 4 to 16 rows a thread.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_bounds import other_rows
from .device import launching_on
from .whole_numbers import cdiv, next_power_of_2

RANKED, AGAINST = 128, 32

BY_RANK, BY_PLACE = tl.constexpr(0), tl.constexpr(1)
"""Rows that stay in falling order of their scores and others spread evenly, or in their own order and every so many-th of the others."""


@triton.jit(do_not_specialize=["segments"])
def _ranks_kernel(scores, rank, cu, segments, FALLING: tl.constexpr, RANKED: tl.constexpr, AGAINST: tl.constexpr):
    begin, length = other_rows(cu, tl.program_id(0), segments)
    if tl.program_id(1) * RANKED >= length:
        return
    place = tl.program_id(1) * RANKED + tl.arange(0, RANKED)
    own = tl.load(scores + begin + place, mask=place < length, other=0.0).to(tl.float32)
    before = tl.zeros((RANKED, AGAINST), tl.int32)
    for first in range(0, length, AGAINST):
        other = first + tl.arange(0, AGAINST)
        found = tl.load(scores + begin + other, mask=other < length, other=0.0).to(tl.float32)
        if FALLING:
            ahead = found[None, :] > own[:, None]
        else:
            ahead = found[None, :] < own[:, None]
        same = (found[None, :] == own[:, None]) & (other[None, :] < place[:, None])
        before += ((ahead | same) & (other < length)[None, :]).to(tl.int32)
    tl.store(rank + begin + place, tl.sum(before, 1), mask=place < length)


@triton.jit(do_not_specialize=["segments", "keep", "others"])
def _choose_rows_kernel(rank, slot, kept, cu, segments, keep, others, ORDER: tl.constexpr, ROWS: tl.constexpr):
    image = tl.program_id(0)
    begin, length = other_rows(cu, image, segments)
    place = tl.arange(0, ROWS)
    live = place < length
    ranked = tl.load(rank + begin + place, mask=live, other=ROWS)
    stays = live & (ranked < keep)
    left = live & (ranked >= keep)
    number, count = tl.cumsum(left.to(tl.int32), 0) - 1, length - keep
    if ORDER == BY_RANK:
        mine = ranked
        many = tl.maximum(others, 1)
        turn = (2 * many * number - count + 2 * count - 1) // (2 * tl.maximum(count, 1))  # the first s with (2 s + 1) R >= 2 O number
        turn = tl.maximum(turn, 0)
        taken = (2 * turn + 1) * count < 2 * many * (number + 1)
    else:
        mine = tl.cumsum(stays.to(tl.int32), 0) - 1
        step = tl.maximum(count // tl.maximum(others, 1), 1)
        turn = number // step
        taken = turn * step == number
    taken = left & taken & (turn < others)
    to = tl.where(stays, mine, tl.where(taken, keep + turn, -1))
    tl.store(slot + begin + place, to, mask=live)
    tl.store(kept + image * (keep + others) + to, begin + place, mask=stays | taken)


@triton.jit
def _quantile(value, rank, length, live, QUARTERS: tl.constexpr):
    """Quartile of ranked values, between two of them in proportion, as ``torch.quantile`` does."""
    at = (length - 1) * QUARTERS
    lower, part = at // 4, (at % 4) * 0.25
    below = tl.sum(tl.where(live & (rank == lower), value, 0.0), 0)
    above = tl.sum(tl.where(live & (rank == tl.minimum(lower + 1, length - 1)), value, 0.0), 0)
    return tl.where(part < 0.5, below + part * (above - below), above - (above - below) * (1.0 - part))


@triton.jit(do_not_specialize=["segments"])
def _outlier_counts_kernel(scores, rank, out, cu, segments, ROWS: tl.constexpr):
    begin, length = other_rows(cu, tl.program_id(0), segments)
    place = tl.arange(0, ROWS)
    live = place < length
    value = tl.load(scores + begin + place, mask=live, other=0.0).to(tl.float32)
    ranked = tl.load(rank + begin + place, mask=live, other=-1)
    low, high = _quantile(value, ranked, length, live, 1), _quantile(value, ranked, length, live, 3)
    beyond = live & (value > high + 1.5 * (high - low))
    tl.store(out + tl.program_id(0), tl.sum(beyond.to(tl.int64), 0))


def _ranks(scores: Tensor, cu: Tensor, longest: int, falling: bool) -> Tensor:
    rank = torch.empty(scores.shape[0], dtype=torch.int32, device=scores.device)
    grid = (cu.shape[0] - 1, cdiv(longest, RANKED))
    _ranks_kernel[grid](scores, rank, cu, cu.shape[0] - 1, falling, RANKED, AGAINST, num_warps=4)
    return rank


def rows_of_program(longest: int) -> tuple[int, int]:
    """Return rows and warps of a program that holds a number for each row of an image."""
    rows = max(32, next_power_of_2(longest))
    return rows, 4 if rows <= 1024 else 8


def choose_rows(scores: Tensor, cu: Tensor, longest: int, keep: int, others: int, by_rank: bool) -> tuple[Tensor, Tensor]:
    """Launch the choice.

    Args:
        scores: ``(M,)``, contiguous.
        cu: int32 ``(I + 1,)`` boundaries of the images, each of at least ``keep + others`` rows.
        longest: rows of the largest image, above 0.
        keep: rows of the highest score that stay.
        others: more rows.
        by_rank: what stays in falling order and the others spread evenly; else what stays in its order and every so many-th of the others.

    Returns:
        int32 ``kept (I, keep + others)``, packed rows, and ``slot (M,)``, the place of a row among them or -1.
    """
    images, order = cu.shape[0] - 1, (BY_RANK if by_rank else BY_PLACE).value
    kept = torch.zeros((images, keep + others), dtype=torch.int32, device=scores.device)  # NaN takes no slot: row 0 then, never outside
    slot = torch.empty(scores.shape[0], dtype=torch.int32, device=scores.device)
    rows, warps = rows_of_program(longest)
    with launching_on(scores):
        rank = _ranks(scores, cu, longest, True)
        _choose_rows_kernel[(images,)](rank, slot, kept, cu, images, keep, others, order, rows, num_warps=warps)
    return kept, slot


def outlier_counts(scores: Tensor, cu: Tensor, longest: int) -> Tensor:
    """Launch the count of scores above ``Q3 + 1.5 (Q3 - Q1)`` of each image.

    Args:
        scores: ``(M,)``, contiguous.
        cu: int32 ``(I + 1,)``.
        longest: rows of the largest image, above 0.

    Returns:
        int64 ``(I,)``.
    """
    images = cu.shape[0] - 1
    out = torch.empty(images, dtype=torch.int64, device=scores.device)
    rows, warps = rows_of_program(longest)
    with launching_on(scores):
        rank = _ranks(scores, cu, longest, False)
        _outlier_counts_kernel[(images,)](scores, rank, out, cu, images, rows, num_warps=warps)
    return out
