"""RMS norm of each head of queries and keys, then rotary embedding: one launch forward, one and a short sum backward.

``n = w * round(x * rstd)`` rounded (``rms_norm.py`` says what an ``offset`` changes), ``y = turn(n)`` (``rope.py``), with the roundings that the
two ops have one after the other. Backward: ``dn = adjoint(dy)`` stays fp32, then that of the norm; ``rstd`` is computed again from the head that
is read anyway, so that nothing is kept beside the inputs.

Shapes: ``q [T, N, E]``, ``k [T, K, E]`` and their gradients with strides of tokens and heads, last stride 1; ``cos, sin [T, E]``; weights ``[E]``;
results contiguous.

Bytes per call (``b`` = bytes of an element, 4 of the table's):
    forward    reads   T (N + K) E b + 8 T E, writes T (N + K) E b              floor (2 T (N + K) E b + 8 T E) / bandwidth
    backward   reads 2 T (N + K) E b + 8 T E, writes T (N + K) E b + 16 P E     floor (3 T (N + K) E b + 8 T E) / bandwidth
Norm and rotation apart move twice and 5/3 times that. Gradients of the weights are deterministic: each of ``P`` programs adds its heads in
order, and the partials are summed in a fixed order.

Launch table: not measured on a GPU. Forward as ``rope.py``. Backward: tiles of half the size, because a thread keeps ``x``, ``dy``, the table and
its parts of ``dw`` in fp32; ``RESIDENT`` programs of a multiprocessor ask for 8 KiB each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .column_sums import column_sums
from .device import launching_on, multiprocessors
from .relaunch import relaunched
from .rope import TILE_ELEMENTS, head_offsets, heads_and_tokens, table_tile, turn
from .row_tiles import registers_for
from .whole_numbers import cdiv, next_power_of_2

BACKWARD_TILE_ELEMENTS = 2048

RESIDENT = 4
"""Programs of the backward that a multiprocessor holds at once: the compiler is told, and no more are launched."""

TILES_PER_PROGRAM = 4
"""At least, of a large enough backward."""


@triton.jit
def _weight_halves(w, column, HALF: tl.constexpr):
    inside = column < HALF
    a = tl.load(w + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(w + HALF + column, mask=inside, other=0.0).to(tl.float32)
    return a[None, None, :], b[None, None, :]


@triton.jit
def _weighted(normed, weight, dtype: tl.constexpr, OFFSET: tl.constexpr):
    if OFFSET == 0.0:
        return (normed.to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)
    return (normed * (weight + OFFSET)).to(dtype).to(tl.float32)


@triton.jit
def _norm_and_turn_heads(
    x, w, y, x_token, x_head, heads, cos, sin, cos_stride, sin_stride, token, head, tokens, eps,
    OFFSET: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = x.dtype.element_ty
    column = tl.arange(0, BLOCK_HALF)
    live = (token < tokens)[:, None] & (column < HALF)[None, :]
    x_start = head_offsets(token, head, x_token, x_head)
    y_start = head_offsets(token, head, heads * 2 * HALF, 2 * HALF)
    place, mask = column[None, None, :], live[:, None, :]
    a = tl.load(x + x_start + place, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x + x_start + HALF + place, mask=mask, other=0.0).to(tl.float32)
    cos_a = table_tile(cos, cos_stride, token, column, live, dtype)
    cos_b = table_tile(cos, cos_stride, token, HALF + column, live, dtype)
    sin_a = table_tile(sin, sin_stride, token, column, live, dtype)
    sin_b = table_tile(sin, sin_stride, token, HALF + column, live, dtype)
    weight_a, weight_b = _weight_halves(w, column, HALF)
    scale = tl.math.rsqrt(tl.sum(a * a + b * b, 2) / (2 * HALF) + eps)[:, :, None]
    a, b = _weighted(a * scale, weight_a, dtype, OFFSET), _weighted(b * scale, weight_b, dtype, OFFSET)
    a, b = turn(a, b, cos_a, cos_b, sin_a, sin_b, False)
    tl.store(y + y_start + place, a.to(dtype), mask=mask)
    tl.store(y + y_start + HALF + place, b.to(dtype), mask=mask)


@relaunched
@triton.jit(do_not_specialize=["tokens"])
def _qk_norm_rope_fwd_kernel(
    q, k, q_weight, k_weight, cos, sin, q_out, k_out, tokens, q_token, q_head, k_token, k_head, cos_stride, sin_stride, eps,
    OFFSET: tl.constexpr, Q_BLOCKS: tl.constexpr, BLOCKS: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0) % BLOCKS
    token = (tl.program_id(0) // BLOCKS) * TOKENS + tl.arange(0, TOKENS)
    if block < Q_BLOCKS:
        head = block * HEADS + tl.arange(0, HEADS)
        _norm_and_turn_heads(
            q, q_weight, q_out, q_token, q_head, Q_BLOCKS * HEADS, cos, sin, cos_stride, sin_stride, token, head, tokens, eps,
            OFFSET, HALF, BLOCK_HALF,
        )  # fmt: skip
    else:
        head = (block - Q_BLOCKS) * HEADS + tl.arange(0, HEADS)
        _norm_and_turn_heads(
            k, k_weight, k_out, k_token, k_head, (BLOCKS - Q_BLOCKS) * HEADS, cos, sin, cos_stride, sin_stride, token, head,
            tokens, eps, OFFSET, HALF, BLOCK_HALF,
        )  # fmt: skip


@triton.jit
def _slopes_of_heads(
    x, w, dy, dx, partial, x_token, x_head, dy_token, dy_head, cos, sin, cos_stride, sin_stride, tokens, eps,
    OFFSET: tl.constexpr, WEIGHT: tl.constexpr, BLOCKS: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = x.dtype.element_ty
    column = tl.arange(0, BLOCK_HALF)
    place = column[None, None, :]
    weight_a, weight_b = _weight_halves(w, column, HALF)
    dw_a = tl.zeros((TOKENS, HEADS, BLOCK_HALF), tl.float32)
    dw_b = tl.zeros((TOKENS, HEADS, BLOCK_HALF), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(tokens, TOKENS) * BLOCKS, tl.num_programs(0)):
        token = (tile // BLOCKS) * TOKENS + tl.arange(0, TOKENS)
        head = (tile % BLOCKS) * HEADS + tl.arange(0, HEADS)
        live = (token < tokens)[:, None] & (column < HALF)[None, :]
        mask = live[:, None, :]
        x_start, dy_start = (
            head_offsets(token, head, x_token, x_head),
            head_offsets(token, head, dy_token, dy_head),
        )
        dx_start = head_offsets(token, head, BLOCKS * HEADS * 2 * HALF, 2 * HALF)
        a = tl.load(x + x_start + place, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x + x_start + HALF + place, mask=mask, other=0.0).to(tl.float32)
        slope_a = tl.load(dy + dy_start + place, mask=mask, other=0.0).to(tl.float32)
        slope_b = tl.load(dy + dy_start + HALF + place, mask=mask, other=0.0).to(tl.float32)
        cos_a = table_tile(cos, cos_stride, token, column, live, dtype)
        cos_b = table_tile(cos, cos_stride, token, HALF + column, live, dtype)
        sin_a = table_tile(sin, sin_stride, token, column, live, dtype)
        sin_b = table_tile(sin, sin_stride, token, HALF + column, live, dtype)
        slope_a, slope_b = turn(slope_a, slope_b, cos_a, cos_b, sin_a, sin_b, True)
        scale = tl.math.rsqrt(tl.sum(a * a + b * b, 2) / (2 * HALF) + eps)
        scale = tl.where((token < tokens)[:, None], scale, 0.0)[:, :, None]
        a, b = a * scale, b * scale
        if WEIGHT and OFFSET == 0.0:
            dw_a += slope_a * a.to(dtype).to(tl.float32)
            dw_b += slope_b * b.to(dtype).to(tl.float32)
        elif WEIGHT:
            dw_a += slope_a * a
            dw_b += slope_b * b
        slope_a, slope_b = slope_a * (weight_a + OFFSET), slope_b * (weight_b + OFFSET)
        mean = (tl.sum(slope_a * a + slope_b * b, 2) / (2 * HALF))[:, :, None]
        tl.store(dx + dx_start + place, ((slope_a - a * mean) * scale).to(dtype), mask=mask)
        tl.store(dx + dx_start + HALF + place, ((slope_b - b * mean) * scale).to(dtype), mask=mask)
    if WEIGHT:
        tl.store(partial + column, tl.sum(tl.sum(dw_a, 0), 0), mask=column < HALF)
        tl.store(partial + HALF + column, tl.sum(tl.sum(dw_b, 0), 0), mask=column < HALF)


@relaunched
@triton.jit(do_not_specialize=["tokens"])
def _qk_norm_rope_bwd_kernel(
    q, k, q_weight, k_weight, cos, sin, dq_out, dk_out, dq, dk, partial, tokens, q_token, q_head, k_token, k_head,
    dq_token, dq_head, dk_token, dk_head, cos_stride, sin_stride, eps,
    OFFSET: tl.constexpr, WEIGHT: tl.constexpr, Q_BLOCKS: tl.constexpr, K_BLOCKS: tl.constexpr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    own = partial + tl.program_id(0) * 4 * HALF
    _slopes_of_heads(
        q, q_weight, dq_out, dq, own, q_token, q_head, dq_token, dq_head, cos, sin, cos_stride, sin_stride, tokens, eps,
        OFFSET, WEIGHT, Q_BLOCKS, TOKENS, HEADS, HALF, BLOCK_HALF,
    )  # fmt: skip
    _slopes_of_heads(
        k, k_weight, dk_out, dk, own + 2 * HALF, k_token, k_head, dk_token, dk_head, cos, sin, cos_stride, sin_stride, tokens, eps,
        OFFSET, WEIGHT, K_BLOCKS, TOKENS, HEADS, HALF, BLOCK_HALF,
    )  # fmt: skip


def qk_norm_rope_fwd(
    q_TNE: Tensor, k_TKE: Tensor, q_weight_E: Tensor, k_weight_E: Tensor, cos_TE: Tensor, sin_TE: Tensor, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the forward.

    Args:
        q_TNE: ``(T, N, E)``, last stride 1.
        k_TKE: ``(T, K, E)``, last stride 1, dtype of ``q``.
        q_weight_E: ``(E,)``, dtype of ``q``.
        k_weight_E: ``(E,)``, dtype of ``q``.
        cos_TE: ``(T, E)``, last stride 1, any float dtype.
        sin_TE: shape of ``cos``.
        eps: added to the mean square.
        offset: added to the weights.

    Returns:
        Queries and keys, contiguous.
    """
    (tokens, q_heads, width), k_heads = q_TNE.shape, k_TKE.shape[1]
    q_out, k_out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_TNE, k_TKE))
    block_half = next_power_of_2(width // 2)
    heads, tile_tokens = heads_and_tokens(q_heads, k_heads, block_half, TILE_ELEMENTS)
    blocks = (q_heads + k_heads) // heads
    if tokens:
        with launching_on(q_TNE):
            _qk_norm_rope_fwd_kernel[(blocks * cdiv(tokens, tile_tokens),)](
                q_TNE, k_TKE, q_weight_E, k_weight_E, cos_TE, sin_TE, q_out, k_out, tokens,
                q_TNE.stride(0), q_TNE.stride(1), k_TKE.stride(0), k_TKE.stride(1), cos_TE.stride(0), sin_TE.stride(0), eps,
                offset, q_heads // heads, blocks, tile_tokens, heads, width // 2, block_half, num_warps=4,
            )  # fmt: skip
    return q_out, k_out


def qk_norm_rope_bwd(
    q_TNE: Tensor, k_TKE: Tensor, q_weight_E: Tensor, k_weight_E: Tensor, cos_TE: Tensor, sin_TE: Tensor,
    q_grad: Tensor, k_grad: Tensor, eps: float, offset: float = 0.0, weight_grads: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the backward; inputs as in the forward.

    Args:
        q_grad: gradient of the queries that left, last stride 1.
        k_grad: and of the keys.
        weight_grads: False = the weights are frozen.

    Returns:
        Gradients of ``q``, ``k`` and the two weights; the last two empty where they aren't wanted.
    """
    (tokens, q_heads, width), k_heads = q_TNE.shape, k_TKE.shape[1]
    dq, dk = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_TNE, k_TKE))
    block_half = next_power_of_2(width // 2)
    heads, tile_tokens = heads_and_tokens(q_heads, k_heads, block_half, BACKWARD_TILE_ELEMENTS)
    tiles = cdiv(tokens, tile_tokens) * (q_heads + k_heads) // heads
    programs = min(cdiv(tiles, TILES_PER_PROGRAM), RESIDENT * multiprocessors(q_TNE.device))
    partial_P2E = torch.empty((programs if weight_grads else 0, 2 * width), dtype=torch.float32, device=q_TNE.device)
    with launching_on(q_TNE):
        if tokens:
            _qk_norm_rope_bwd_kernel[(programs,)](
                q_TNE, k_TKE, q_weight_E, k_weight_E, cos_TE, sin_TE, q_grad, k_grad, dq, dk, partial_P2E, tokens,
                q_TNE.stride(0), q_TNE.stride(1), k_TKE.stride(0), k_TKE.stride(1),
                q_grad.stride(0), q_grad.stride(1), k_grad.stride(0), k_grad.stride(1), cos_TE.stride(0), sin_TE.stride(0), eps,
                offset, weight_grads, q_heads // heads, k_heads // heads, tile_tokens, heads, width // 2, block_half,
                num_warps=4, maxnreg=registers_for(4, RESIDENT),
            )  # fmt: skip
        if not weight_grads:
            return dq, dk, q_weight_E.new_empty(0), q_weight_E.new_empty(0)
        return dq, dk, *column_sums(partial_P2E, q_weight_E.dtype, 2)
