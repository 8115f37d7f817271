"""Packed flash attention, backward: three kernels, no atomics, the same bits on every run.

With ``p = exp(score - lse)``, ``dp = dO v^T``, ``delta = rowsum(dO O) - dlse`` and ``ds = p (dp - delta)`` (times ``1 - tanh^2`` under a soft cap):

    dv = p^T dO      dk = scale ds^T q      dq = scale ds k

Shapes: as in the forward; ``dO`` with strides for rows and heads, ``delta, lse [N, T_q]`` fp32, gradients contiguous in the dtype of their tensors.
Rows after the last segment are written as zeros and never read.

1. ``delta``: ``attention_delta.py``.
2. ``dk, dv``: a program holds one block of keys of one kv head and walks over the rows of every query head of the group that see it, adding
   in fp32. Gradients of grouped queries are thus neither written per query head nor rounded before they are summed.
3. ``dq``: a program holds one tile of rows of one head and walks over keys, as the forward does.

FLOP: 14 a visible (row, key) pair and column (seven products), against 10 of a kernel that makes all three at once and adds dq by fp32 atomics in
memory, in no fixed order. Bytes: ``(3 T_q N + 2 T_k K) E b`` read and ``(T_q N + 2 T_k K) E b`` written; what is read again comes from L2.
Floor: the larger of ``10 P N E`` FLOP / MMA rate and bytes / bandwidth.
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
    other_rows,
    own_rows,
    row_blocks,
    seen,
)
from .attention_delta import attention_delta
from .attention_forward import LOG2_E, capped
from .attention_heads import added, aligned, load_rows, products, store_rows, zero_rows
from .attention_tiles import tiles_for
from .device import capability, capturing, launching_on
from .head_parts import head_parts
from .relaunch import relaunched


@triton.jit
def _slopes(scores, log_weight, dp, delta, visible, scale, softcap, MASKED: tl.constexpr, SOFTCAP: tl.constexpr):
    """Weights and gradient of the raw products ``q k^T`` (without ``scale``); ``log_weight`` in units of log2, all broadcast."""
    if SOFTCAP:
        bent = capped(scores * scale, softcap)
        shares = tl.math.exp2(bent * (softcap * LOG2_E) - log_weight)
    else:
        shares = tl.math.exp2(scores * (scale * LOG2_E) - log_weight)
    if MASKED:
        shares = tl.where(visible, shares, 0.0)
    slopes = shares * (dp - delta)
    if SOFTCAP:
        slopes = slopes * (1.0 - bent * bent)
    return shares, slopes


@triton.jit
def _from_rows(
    grads, keys, values, q, q_row, grad, grad_row, lse, delta, key, row, begin_q, length_q, begin_k, length_k, kv_end,
    scale, window, softcap, E: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    MASKED: tl.constexpr, MASK: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """One block of rows, added to (dk, dv) of a block of keys. Rows that aren't there weigh nothing: their ``lse`` is infinite."""
    # 1. Softmax weights of these rows again, from the products and the log-sum that the forward kept.
    live = row < length_q
    queries = load_rows(q, row.to(tl.int64) * q_row, live, E, MAIN, REST, True)
    log_weight = tl.load(lse + row, mask=live, other=float("inf")) * LOG2_E
    visible = live[None, :]
    if MASKED:
        low = key_starts(row, length_q, length_k, window, WINDOW)
        high = key_ends(row, live, begin_q, length_q, begin_k, length_k, kv_end, MASK)
        visible = seen(key[:, None], low[None, :], high[None, :], WINDOW)
    scores = products(keys, queries)
    # 2. dp = v dO^T, then ds = p (dp - delta); keys are lines here and rows columns, as dk and dv need them.
    slopes = load_rows(grad, row.to(tl.int64) * grad_row, live, E, MAIN, REST, True)
    dp = products(values, slopes)
    own_delta = tl.load(delta + row, mask=live, other=0.0)
    shares, ds = _slopes(scores, log_weight[None, :], dp, own_delta[None, :], visible, scale, softcap, MASKED, SOFTCAP)
    # 3. dk += ds q and dv += p dO.
    return added(grads[0], ds, queries), added(grads[1], shares, slopes)


@relaunched
@triton.jit(do_not_specialize=["rows_k", "segments", "blocks", "window", "rows_q"])
def _attention_dkdv_kernel(
    q, k, v, grad, lse, delta, dk, dv, cu_q, cu_k, kv_end,
    q_row, q_head, k_row, k_head, v_row, v_head, grad_row, grad_head,
    rows_q, rows_k, segments, blocks, scale, window, softcap, kv_heads,
    E: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, GROUP: tl.constexpr, VECTOR: tl.constexpr,
    MASK: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    # 1. Which block of which segment's keys this program holds, and which rows see them:
    #    [first, whole) and [clear, stop) in part, those between whole.
    segment, block = find_tile(tl.program_id(0), cu_k, segments, rows_k, blocks, EVEN, 1, KEYS)
    if segment > segments:
        return
    begin_k, length_k = own_rows(cu_k, segment, segments, rows_k)
    begin_q, length_q = other_rows(cu_q, segment, segments)
    kv_head = tl.program_id(1).to(tl.int64)
    first_key = block * KEYS
    key = first_key + tl.arange(0, KEYS)
    live = key < length_k
    first, whole, clear, stop = row_blocks(first_key, begin_q, length_q, begin_k, length_k, kv_end, window, MASK, WINDOW, KEYS, ROWS)
    # 2. Its keys and values, loaded once for all heads of the group; dk and dv stay in registers.
    key64 = (begin_k + key).to(tl.int64)
    keys = load_rows(k, key64 * aligned(k_row, VECTOR) + kv_head * aligned(k_head, VECTOR), live, E, MAIN, REST, True)
    values = load_rows(v, key64 * aligned(v_row, VECTOR) + kv_head * aligned(v_head, VECTOR), live, E, MAIN, REST, True)
    q_row, grad_row = aligned(q_row, VECTOR), aligned(grad_row, VECTOR)
    q += begin_q.to(tl.int64) * q_row
    grad += begin_q.to(tl.int64) * grad_row
    lse += begin_q
    delta += begin_q
    grads = zero_rows(KEYS, MAIN, REST), zero_rows(KEYS, MAIN, REST)
    place = tl.arange(0, ROWS)

    # 3. All query heads of the group, one after the other: their sum is never rounded in between.
    for member in range(0, GROUP):
        head = kv_head * GROUP + member
        own_q, own_grad = q + head * aligned(q_head, VECTOR), grad + head * aligned(grad_head, VECTOR)
        own_lse, own_delta = lse + head * rows_q, delta + head * rows_q
        if MASK != FULL:  # Blocks in which the keys of some row end.
            for at in range(first, whole, ROWS):
                grads = _from_rows(
                    grads, keys, values, own_q, q_row, own_grad, grad_row, own_lse, own_delta, key, at + place,
                    begin_q, length_q, begin_k, length_k, kv_end, scale, window, softcap,
                    E, MAIN, REST, True, MASK, WINDOW, SOFTCAP,
                )  # fmt: skip
        for at in range(whole, clear, ROWS):  # Blocks of rows that see all these keys.
            grads = _from_rows(
                grads, keys, values, own_q, q_row, own_grad, grad_row, own_lse, own_delta, key, at + place,
                begin_q, length_q, begin_k, length_k, kv_end, scale, window, softcap,
                E, MAIN, REST, False, MASK, WINDOW, SOFTCAP,
            )  # fmt: skip
        if WINDOW:  # Blocks in which the window of some row begins.
            for at in range(clear, stop, ROWS):
                grads = _from_rows(
                    grads, keys, values, own_q, q_row, own_grad, grad_row, own_lse, own_delta, key, at + place,
                    begin_q, length_q, begin_k, length_k, kv_end, scale, window, softcap,
                    E, MAIN, REST, True, MASK, WINDOW, SOFTCAP,
                )  # fmt: skip

    # 4. dk takes the scale that ds left out.
    to = key64 * (kv_heads * E) + kv_head * E
    store_rows(dk, to, live, grads[0], tl.zeros((KEYS,), tl.float32) + scale, E, MAIN, REST)
    store_rows(dv, to, live, grads[1], tl.zeros((KEYS,), tl.float32) + 1.0, E, MAIN, REST)


@triton.jit
def _from_keys(
    dq, queries, slopes, k, v, k_row, v_row, key, length_k, low, high, log_weight, delta, scale, softcap,
    E: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, MASKED: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """One block of keys, added to dq of a tile of rows."""
    keys = load_rows(k, key.to(tl.int64) * k_row, key < length_k, E, MAIN, REST, MASKED)
    values = load_rows(v, key.to(tl.int64) * v_row, key < length_k, E, MAIN, REST, MASKED)
    visible = seen(key[None, :], low[:, None], high[:, None], WINDOW)
    scores, dp = products(queries, keys), products(slopes, values)
    shares, ds = _slopes(scores, log_weight[:, None], dp, delta[:, None], visible, scale, softcap, MASKED, SOFTCAP)
    return added(dq, ds, keys)


@relaunched
@triton.jit(do_not_specialize=["rows_q", "segments", "blocks", "window"])
def _attention_dq_kernel(
    q, k, v, grad, lse, delta, dq, cu_q, cu_k, kv_end,
    q_row, q_head, k_row, k_head, v_row, v_head, grad_row, grad_head,
    rows_q, segments, blocks, scale, window, softcap, heads,
    E: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, GROUP: tl.constexpr, VECTOR: tl.constexpr,
    MASK: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    # Prologue: as in the forward.
    segment, block = find_tile(tl.program_id(0), cu_q, segments, rows_q, blocks, EVEN, 1, ROWS)
    if segment > segments:
        return
    begin_q, length_q = own_rows(cu_q, segment, segments, rows_q)
    begin_k, length_k = other_rows(cu_k, segment, segments)
    if MASK != FULL:
        block = (length_q + ROWS - 1) // ROWS - 1 - block
    row = block * ROWS + tl.arange(0, ROWS)
    live = row < length_q
    head = tl.program_id(1).to(tl.int64)
    low = key_starts(row, length_q, length_k, window, WINDOW)
    high = key_ends(row, live, begin_q, length_q, begin_k, length_k, kv_end, MASK)
    first, clear, cut, last = key_blocks(low, high, live, length_k, MASK, WINDOW, KEYS)
    k_row, v_row = aligned(k_row, VECTOR), aligned(v_row, VECTOR)
    k += begin_k.to(tl.int64) * k_row + head // GROUP * aligned(k_head, VECTOR)
    v += begin_k.to(tl.int64) * v_row + head // GROUP * aligned(v_head, VECTOR)
    row64 = (begin_q + row).to(tl.int64)
    queries = load_rows(q, row64 * aligned(q_row, VECTOR) + head * aligned(q_head, VECTOR), live, E, MAIN, REST, True)
    slopes = load_rows(grad, row64 * aligned(grad_row, VECTOR) + head * aligned(grad_head, VECTOR), live, E, MAIN, REST, True)
    log_weight = tl.load(lse + head * rows_q + row64, mask=live, other=float("inf")) * LOG2_E
    own_delta = tl.load(delta + head * rows_q + row64, mask=live, other=0.0)
    total = zero_rows(ROWS, MAIN, REST)
    column = tl.arange(0, KEYS)

    if WINDOW:  # Blocks in which the window of some row begins.
        for at in range(first, clear, KEYS):
            total = _from_keys(
                total, queries, slopes, k, v, k_row, v_row, at + column, length_k, low, high, log_weight, own_delta, scale, softcap,
                E, MAIN, REST, True, WINDOW, SOFTCAP,
            )  # fmt: skip
    for at in range(clear, cut, KEYS):  # Blocks that every row sees whole.
        total = _from_keys(
            total, queries, slopes, k, v, k_row, v_row, at + column, length_k, low, high, log_weight, own_delta, scale, softcap,
            E, MAIN, REST, False, WINDOW, SOFTCAP,
        )  # fmt: skip
    for at in range(cut, last, KEYS):  # Blocks in which the keys of some row end.
        total = _from_keys(
            total, queries, slopes, k, v, k_row, v_row, at + column, length_k, low, high, log_weight, own_delta, scale, softcap,
            E, MAIN, REST, True, WINDOW, SOFTCAP,
        )  # fmt: skip

    # Epilogue.
    store_rows(dq, row64 * (heads * E) + head * E, live, total, tl.zeros((ROWS,), tl.float32) + scale, E, MAIN, REST)


def attention_bwd(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    cu_q: Tensor, cu_k: Tensor, kv_end: Tensor | None, longest_q: int, longest_k: int, even: bool,
    causal: bool, scale: float, window: int | None, softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the three kernels.

    Args:
        grad: gradient of ``out``, last stride 1, rows and heads on 16 bytes.
        grad_lse: fp32 ``(N, T_q)`` gradient of ``lse``, any strides, or None.
        q: of the forward, like every argument not named here.
        k: of the forward.
        v: of the forward.
        out: what the forward returned.
        lse: what the forward returned.
        cu_q: of the forward.
        cu_k: of the forward.
        kv_end: of the forward.
        longest_q: of the forward.
        longest_k: keys of the longest segment.
        even: of the forward, for keys too.
        causal: of the forward.
        scale: of the forward.
        window: of the forward.
        softcap: of the forward.

    Returns:
        Gradients of ``q, k, v``, contiguous, in their dtypes.
    """
    (rows, heads, width), (keys, kv_heads, _), segments = q.shape, k.shape, cu_q.shape[0] - 1
    even = even and not capturing(q.device)  # lengths may be others when the graph is replayed
    delta = attention_delta(grad, grad_lse, out, cu_q)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    tiles, parts = tiles_for(width, q.dtype, capability(q.device)), head_parts(width)
    inputs, bounds = (q, k, v, grad, lse, delta), (cu_q, cu_k, kv_end)
    strides = [stride for x in (q, k, v, grad) for stride in x.stride()[:2]]
    scores = scale, window or 0, softcap or 0.0
    kind = (
        width,
        *parts,
        heads // kv_heads,
        16 // q.element_size(),
        mask_kind(causal, kv_end is not None),
        window is not None,
    )
    with launching_on(q):
        if keys and kv_heads:
            tile = tiles.dkdv
            programs, blocks = grid_tiles(keys, segments, longest_k, even, tile.keys)
            _attention_dkdv_kernel[(programs, kv_heads)](
                *inputs, dk, dv, *bounds, *strides, rows, keys, segments, blocks, *scores, kv_heads,
                *kind, softcap is not None, even, tile.rows, tile.keys, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        if rows and heads:
            tile = tiles.dq
            programs, blocks = grid_tiles(rows, segments, longest_q, even, tile.rows)
            _attention_dq_kernel[(programs, heads)](
                *inputs, dq, *bounds, *strides, rows, segments, blocks, *scores, heads,
                *kind, softcap is not None, even, tile.rows, tile.keys, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return dq, dk, dv
