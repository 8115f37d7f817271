"""Attention of a few rows of each segment over the segment's keys, mean over heads and rows: what tokens are pruned by.

``out[j] = mean over r, n of softmax_j(softcap(q_r,n . k_j,n scale))``, the softmax over all keys of the segment, or the newest ``window``.

Shapes: ``q [T_q, N, E]`` with ``len_q`` rows a segment (or the last row of each segment only), ``k [T_k, K, E]`` with strides for rows and heads,
``out [T_k]`` fp32: 0 for keys of segments without a query, and after the last segment.

Bytes per call (``b`` bytes an element, ``R`` rows of the longest segment): reads ``T_k K E b`` once, floor ``T_k K E b / bandwidth``; writes the
scores ``4 R N T_k`` and reads them twice, from L2 where they fit: 3% of the keys each time for CLIP, 6% for Llama 3 8B. Never a map of
``T_k x T_k``, and keys are not read twice.

Three kernels: scores of a block of keys for all heads of a group; logarithm of the sum of their exponentials, one program a row and head; mean
over rows and heads. Each output is one program's, summed in a fixed order: the same bits on every run.

Launch table: not measured on a GPU. A program of the first kernel reads one block of keys and nothing else worth counting, 16 to 32 KiB; several of
them share a multiprocessor. The third adds ``HEADS`` scores of ``COLUMNS`` keys at a time: 16 elements a thread.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_bounds import find_tile, grid_tiles, other_rows, own_rows
from .attention_forward import LOG2_E, LOWEST, capped
from .attention_heads import aligned, load_rows, products
from .device import launching_on
from .head_parts import head_parts
from .whole_numbers import next_power_of_2

SUM_KEYS = 1024
"""Scores of a head that are summed at a time."""

HEADS, COLUMNS = 16, 128
"""Tile of the mean."""


@triton.jit
def _query_rows(cu_q, segment, segments, LAST: tl.constexpr):
    """First query row and number of rows whose scores are wanted; the slack has none."""
    begin, length = other_rows(cu_q, segment, segments)
    if LAST:
        return begin + tl.maximum(length - 1, 0), tl.minimum(length, 1)
    else:
        return begin, length


@triton.jit(do_not_specialize=["rows_k", "segments", "blocks", "window"])
def _row_products_kernel(
    q, k, scores, cu_q, cu_k, q_row, q_head, k_row, k_head, rows_k, segments, blocks, scale, window, softcap, heads,
    E: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, GROUP: tl.constexpr, VECTOR: tl.constexpr, LAST: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Scores ``[row * N + head, key]`` of one block of keys and the heads of one kv head."""
    segment, block = find_tile(tl.program_id(0), cu_k, segments, rows_k, blocks, EVEN, 1, KEYS)
    if segment >= segments:
        return
    begin_q, length_q = _query_rows(cu_q, segment, segments, LAST)
    begin_k, length_k = own_rows(cu_k, segment, segments, rows_k)
    kv_head = tl.program_id(1).to(tl.int64)
    place = tl.arange(0, ROWS)
    row, head = place // GROUP, kv_head * GROUP + place % GROUP
    live = row < length_q
    key = block * KEYS + tl.arange(0, KEYS)
    key64 = (begin_k + key).to(tl.int64)
    inside = key < length_k
    at = (begin_q + row).to(tl.int64) * aligned(q_row, VECTOR) + head * aligned(q_head, VECTOR)
    queries = load_rows(q, at, live, E, MAIN, REST, True)
    keys = load_rows(k, key64 * aligned(k_row, VECTOR) + kv_head * aligned(k_head, VECTOR), inside, E, MAIN, REST, True)
    found = products(queries, keys) * scale
    if SOFTCAP:
        found = capped(found, softcap) * softcap
    if WINDOW:
        found = tl.where((key >= length_k - window)[None, :], found, float("-inf"))
    to = scores + ((row * heads + head) * rows_k)[:, None] + key64[None, :]
    tl.store(to, found, mask=live[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["rows_k", "segments"])
def _row_log_sums_kernel(scores, log_sums, cu_q, cu_k, rows_k, segments, heads, LAST: tl.constexpr, SUM_KEYS: tl.constexpr):
    """Base-2 logarithm of the sum of exponentials ``[row * N + head, segment]`` of one row and head."""
    segment, line = tl.program_id(0), tl.program_id(1).to(tl.int64)
    _, length_q = _query_rows(cu_q, segment, segments, LAST)
    if line >= length_q * heads:
        return
    begin_k, length_k = own_rows(cu_k, segment, segments, rows_k)
    scores += line * rows_k + begin_k
    top, weight = tl.zeros((SUM_KEYS,), tl.float32) + LOWEST, tl.zeros((SUM_KEYS,), tl.float32)
    for first in range(0, length_k, SUM_KEYS):
        key = first + tl.arange(0, SUM_KEYS)
        found = tl.load(scores + key, mask=key < length_k, other=float("-inf")) * LOG2_E
        higher = tl.maximum(top, found)
        weight = weight * tl.math.exp2(top - higher) + tl.math.exp2(found - higher)
        top = higher
    highest = tl.max(top, 0)
    total = tl.sum(weight * tl.math.exp2(top - highest), 0)
    tl.store(log_sums + line * segments + segment, highest + tl.math.log2(tl.maximum(total, 1e-30)))


@triton.jit(do_not_specialize=["rows_k", "segments", "blocks"])
def _row_means_kernel(
    scores, log_sums, out, cu_q, cu_k, rows_k, segments, blocks, heads,
    LAST: tl.constexpr, EVEN: tl.constexpr, HEADS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mean over rows and heads of one block of keys."""
    segment, block = find_tile(tl.program_id(0), cu_k, segments, rows_k, blocks, EVEN, 1, COLUMNS)
    if segment > segments:
        return
    _, length_q = _query_rows(cu_q, segment, segments, LAST)
    begin_k, length_k = own_rows(cu_k, segment, segments, rows_k)
    key = block * COLUMNS + tl.arange(0, COLUMNS)
    key64, inside = (begin_k + key).to(tl.int64), key < length_k
    lines = length_q * heads
    total = tl.zeros((HEADS, COLUMNS), tl.float32)
    for first in range(0, lines, HEADS):
        line = first + tl.arange(0, HEADS)
        line64, live = line.to(tl.int64), line < lines
        log_sum = tl.load(log_sums + line64 * segments + segment, mask=live, other=0.0)
        at = scores + (line64 * rows_k)[:, None] + key64[None, :]
        found = tl.load(at, mask=live[:, None] & inside[None, :], other=float("-inf"))
        total += tl.math.exp2(found * LOG2_E - log_sum[:, None])
    tl.store(out + key64, tl.sum(total, 0) / tl.maximum(lines, 1), mask=inside)


def row_tile(rows: int, head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return rows and keys of a tile for ``rows`` packed query rows of a segment, heads of a group counted."""
    lines, wide = max(16, next_power_of_2(rows)), sum(head_parts(head_dim)) > 128
    keys = 64 if wide or dtype == torch.float32 else 128
    return lines, min(keys, 32 if wide and dtype == torch.float32 else keys, max(16, 8192 // lines))


def row_scores(
    q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor, longest_q: int, longest_k: int, even: bool,
    scale: float, window: int | None, softcap: float | None, last: bool = False,
) -> Tensor:  # fmt: skip
    """Launch it.

    Args:
        q: ``(T_q, N, E)``, last stride 1, rows and heads on 16 bytes.
        k: ``(T_k, K, E)``, likewise.
        cu_q: int32 ``(S + 1,)``.
        cu_k: int32 ``(S + 1,)``.
        longest_q: rows of the longest query segment.
        longest_k: keys of the longest segment.
        even: all segments have that many keys and leave no slack.
        scale: of the products.
        window: newest keys that are seen, or None.
        softcap: limit of the scores, or None.
        last: only the last row of each segment counts.

    Returns:
        fp32 ``(T_k,)``.
    """
    (_, heads, width), (rows, kv_heads, _), segments = q.shape, k.shape, cu_q.shape[0] - 1
    longest_q = min(longest_q, 1) if last else longest_q
    if not rows or not longest_q or not longest_k:
        return torch.zeros(rows, dtype=torch.float32, device=k.device)
    out, group, lines = (
        torch.empty(rows, dtype=torch.float32, device=k.device),
        heads // kv_heads,
        longest_q * heads,
    )
    scores = torch.empty((lines, rows), dtype=torch.float32, device=k.device)
    log_sums = torch.empty((lines, segments), dtype=torch.float32, device=k.device)
    tile_rows, tile_keys = row_tile(longest_q * group, width, k.dtype)
    with launching_on(k):
        programs, blocks = grid_tiles(rows, segments, longest_k, even, tile_keys)
        _row_products_kernel[(programs, kv_heads)](
            q, k, scores, cu_q, cu_k, q.stride(0), q.stride(1), k.stride(0), k.stride(1),
            rows, segments, blocks, scale, window or 0, softcap or 0.0, heads,
            width, *head_parts(width), group, 16 // k.element_size(), last,
            window is not None, softcap is not None, even, tile_rows, tile_keys, num_warps=4,
        )  # fmt: skip
        _row_log_sums_kernel[(segments, lines)](scores, log_sums, cu_q, cu_k, rows, segments, heads, last, SUM_KEYS, num_warps=4)
        programs, blocks = grid_tiles(rows, segments, longest_k, even, COLUMNS)
        _row_means_kernel[(programs,)](
            scores,
            log_sums,
            out,
            cu_q,
            cu_k,
            rows,
            segments,
            blocks,
            heads,
            last,
            even,
            HEADS,
            COLUMNS,
            num_warps=4,
        )
    return out
