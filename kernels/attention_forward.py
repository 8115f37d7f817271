"""Packed flash attention, forward: ``out = softmax(softcap(q k^T scale)) v`` within each segment, online softmax in fp32.

Shapes: ``q [T_q, N, E]``, ``k, v [T_k, K, E]`` with strides for rows and heads (views of a fused projection need no copy), ``N % K == 0``;
``cu_q, cu_k [S + 1]``; ``out [T_q, N, E]`` contiguous, ``lse [N, T_q]`` fp32, natural logarithm, ``-inf`` for a row that sees no key.
Rows after the last segment are written as zeros and never read.

Bytes per call (``b`` bytes an element): reads ``(T_q N + 2 T_k K) E b`` once from memory, writes ``T_q N E b + 4 T_q N``; keys and values are read
again by each tile of rows, from L2. ``4 P N E`` FLOP for ``P`` visible (row, key) pairs; floor: the larger of FLOP / MMA rate and bytes / bandwidth.

A program holds one tile of rows of one head (of all heads of a group, where segments are shorter than a tile: keys are then read once a group)
and walks over keys in rising order: blocks that need a mask because of a window, blocks that need none, blocks cut by the diagonal or by
``kv_end``. The order of blocks does not depend on the tile of rows, so a row's result doesn't either. Without a causal bound the last block is
as narrow as 16 or 32 keys: 577 keys cost 592 columns, 729 cost 736. Rows can't be narrowed alike: a tile's rows are a constant of the
kernel and a power of two, so 577 rows cost 640.

Longest first: with a causal bound the last tile of a segment, which sees most keys, is launched first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_bounds import (
    FULL,
    find_tile,
    grid_tiles,
    key_blocks,
    key_ends,
    key_starts,
    mask_kind,
    narrow_keys,
    other_rows,
    own_rows,
    seen,
)  # fmt: skip
from .attention_heads import (
    added,
    aligned,
    load_rows,
    products,
    scaled_rows,
    store_rows,
    zero_rows,
)
from .attention_tiles import packed_heads, shortened, tiles_for
from .device import capability, capturing, launching_on
from .head_parts import head_parts
from .relaunch import relaunched

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1.0e30)
"""Maximum before any key: finite, so that rows without a key need no care; far below any score."""


@triton.jit
def capped(score, softcap):
    """``tanh(score / softcap)``; times ``softcap`` it is the capped score."""
    return 1.0 - 2.0 / (tl.math.exp2(score * (2.0 * LOG2_E / softcap)) + 1.0)


@triton.jit
def attend(
    state, q, k, v, k_row, v_row, key, length_k, low, high, scale, softcap,
    E: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, MASKED: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """One block of keys: (sum of values, maximum, sum of weights) of each row, maxima in units of log2."""
    # 1. Products of this tile's rows with the keys of the block.
    total, top, weight = state
    scores = products(q, load_rows(k, key.to(tl.int64) * k_row, key < length_k, E, MAIN, REST, MASKED))
    if SOFTCAP:
        scores, factor = capped(scores * scale, softcap), softcap * LOG2_E
    else:
        factor = scale * LOG2_E
    # 2. What a row doesn't see weighs exp(-inf) = 0; blocks that every row sees whole skip the comparison.
    if MASKED:
        scores = tl.where(seen(key[None, :], low[:, None], high[:, None], WINDOW), scores, float("-inf"))
    # 3. Online softmax: where the block raises a row's maximum, what was added so far counts by 2^(old - new) less.
    higher = tl.maximum(top, tl.max(scores, 1) * factor)
    shares = tl.math.exp2(scores * factor - higher[:, None])
    kept = tl.math.exp2(top - higher)
    # 4. Add the weighted values.
    values = load_rows(v, key.to(tl.int64) * v_row, key < length_k, E, MAIN, REST, MASKED)
    return added(scaled_rows(total, kept), shares, values), higher, weight * kept + tl.sum(shares, 1)


@relaunched
@triton.jit(do_not_specialize=["rows_q", "segments", "blocks", "window"])
def _attention_fwd_kernel(
    q, k, v, out, lse, cu_q, cu_k, kv_end, q_row, q_head, k_row, k_head, v_row, v_head,
    rows_q, segments, blocks, scale, window, softcap, heads,
    E: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr, VECTOR: tl.constexpr,
    MASK: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    # 1. Which segment and which block of its rows; programs beyond the last block have nothing to do.
    segment, block = find_tile(tl.program_id(0), cu_q, segments, rows_q, blocks, EVEN, PACK, ROWS)
    if segment > segments:
        return
    begin_q, length_q = own_rows(cu_q, segment, segments, rows_q)
    begin_k, length_k = other_rows(cu_k, segment, segments)
    if MASK != FULL:  # longest first: the last rows see most keys
        block = (length_q * PACK + ROWS - 1) // ROWS - 1 - block
    # 2. Which head and row each line of the tile is: with PACK > 1 the heads of a group are neighbours, so that its keys are read once.
    place = block * ROWS + tl.arange(0, ROWS)
    row = place // PACK
    live = row < length_q
    kv_head = (tl.program_id(1) * PACK // GROUP).to(tl.int64)
    if PACK > 1:
        head = kv_head * GROUP + place % PACK
    else:
        head = tl.program_id(1).to(tl.int64)
    # 3. Which keys each line sees, [low, high), and from that which blocks need a mask: [first, clear) and [cut, last) do, [clear, cut) doesn't.
    low = key_starts(row, length_q, length_k, window, WINDOW)
    high = key_ends(row, live, begin_q, length_q, begin_k, length_k, kv_end, MASK)
    first, clear, cut, last = key_blocks(low, high, live, length_k, MASK, WINDOW, KEYS)
    # 4. The tile's queries, loaded once. Addresses in 64 bits: rows times strides pass 2^31 elements.
    k_row, v_row = aligned(k_row, VECTOR), aligned(v_row, VECTOR)
    k += begin_k.to(tl.int64) * k_row + kv_head * aligned(k_head, VECTOR)
    v += begin_k.to(tl.int64) * v_row + kv_head * aligned(v_head, VECTOR)
    row64 = (begin_q + row).to(tl.int64)
    queries = load_rows(q, row64 * aligned(q_row, VECTOR) + head * aligned(q_head, VECTOR), live, E, MAIN, REST, True)
    state = zero_rows(ROWS, MAIN, REST), tl.zeros((ROWS,), tl.float32) + LOWEST, tl.zeros((ROWS,), tl.float32)
    column = tl.arange(0, KEYS)

    if WINDOW:  # Blocks in which the window of some row begins.
        for at in range(first, clear, KEYS):
            state = attend(
                state, queries, k, v, k_row, v_row, at + column, length_k, low, high, scale, softcap,
                E, MAIN, REST, True, WINDOW, SOFTCAP,
            )  # fmt: skip
    for at in range(clear, cut, KEYS):  # Blocks that every row sees whole.
        state = attend(
            state, queries, k, v, k_row, v_row, at + column, length_k, low, high, scale, softcap,
            E, MAIN, REST, False, WINDOW, SOFTCAP,
        )  # fmt: skip
    if MASK != FULL or WINDOW:  # Blocks in which the keys of some row end.
        for at in range(cut, last, KEYS):
            state = attend(
                state, queries, k, v, k_row, v_row, at + column, length_k, low, high, scale, softcap,
                E, MAIN, REST, True, WINDOW, SOFTCAP,
            )  # fmt: skip
    else:  # The tail of the segment, as narrow as it is.
        rest = last - cut
        if KEYS > 32:
            if (rest > 16) & (rest <= 32):
                state = attend(
                    state, queries, k, v, k_row, v_row, cut + tl.arange(0, 32), length_k, low, high, scale, softcap,
                    E, MAIN, REST, True, WINDOW, SOFTCAP,
                )  # fmt: skip
        if KEYS > 16:
            if (rest > 0) & (rest <= 16):
                state = attend(
                    state, queries, k, v, k_row, v_row, cut + tl.arange(0, 16), length_k, low, high, scale, softcap,
                    E, MAIN, REST, True, WINDOW, SOFTCAP,
                )  # fmt: skip
        if rest > narrow_keys(KEYS):
            state = attend(
                state, queries, k, v, k_row, v_row, cut + column, length_k, low, high, scale, softcap,
                E, MAIN, REST, True, WINDOW, SOFTCAP,
            )  # fmt: skip

    # 5. Divide by the sum of weights, once. A line that saw no key gets zeros and the logarithm of 0.
    total, top, weight = state
    some = weight > 0
    at = row64 * (heads * E) + head * E
    store_rows(out, at, live, total, 1.0 / tl.where(some, weight, 1.0), E, MAIN, REST)
    log_weight = tl.where(some, (top + tl.math.log2(tl.where(some, weight, 1.0))) * LN_2, float("-inf"))
    tl.store(lse + head * rows_q + row64, log_weight, mask=live)


def attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, kv_end: Tensor | None, longest_q: int, even: bool,
    causal: bool, scale: float, window: int | None, softcap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the forward.

    Args:
        q: ``(T_q, N, E)``, last stride 1, rows and heads on 16 bytes.
        k: ``(T_k, K, E)``, likewise.
        v: shape of ``k``.
        cu_q: int32 ``(S + 1,)``.
        cu_k: int32 ``(S + 1,)``.
        kv_end: ``(T_q,)`` packed key index one past the last one a row sees, or None.
        longest_q: rows of the longest query segment.
        even: all query segments are that long and leave no slack.
        causal: without ``kv_end``: a row sees keys up to its own place.
        scale: of the scores, above 0.
        window: keys a row sees up to its own place, or None.
        softcap: limit of the scores, or None.

    Returns:
        ``out (T_q, N, E)`` and fp32 ``lse (N, T_q)``, contiguous.
    """
    (rows, heads, width), kv_heads, segments = q.shape, k.shape[1], cu_q.shape[0] - 1
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(heads, rows, dtype=torch.float32)
    even = even and not capturing(q.device)  # lengths may be others when the graph is replayed
    tile, group = tiles_for(width, q.dtype, capability(q.device)).forward, heads // kv_heads
    pack = packed_heads(longest_q, group, tile)
    tile = shortened(tile, longest_q * pack)
    programs, blocks = grid_tiles(rows * pack, segments, longest_q * pack, even, tile.rows)
    if rows and heads:
        with launching_on(q):
            _attention_fwd_kernel[(programs, heads // pack)](
                q, k, v, out, lse, cu_q, cu_k, kv_end, q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
                rows, segments, blocks, scale, window or 0, softcap or 0.0, heads,
                width, *head_parts(width), group, pack, 16 // q.element_size(),
                mask_kind(causal, kv_end is not None), window is not None, softcap is not None, even, tile.rows, tile.keys,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return out, lse
