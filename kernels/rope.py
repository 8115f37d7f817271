"""Rotary position embedding of queries and keys in one launch, in place or not, and its adjoint.

``y1 = x1 cos1 - x2 sin1``, ``y2 = x2 cos2 + x1 sin2`` for the two halves of the first ``W`` dimensions of a head; the others stay. The adjoint,
``x1 = y1 cos1 + y2 sin2``, ``x2 = y2 cos2 - y1 sin1``, turns by minus the angle and is the backward. The table is rounded to the dtype of ``q``
first, as in the reference; products and sum are fp32, rounded once.

Shapes: ``q [T, N, E]``, ``k [T, K, E]`` with strides of tokens and heads, last stride 1; ``cos, sin [T, W]``; results contiguous, or ``q`` and
``k`` themselves.

Bytes per call (``b`` = bytes of an element, 4 of the table's): reads ``T (N + K) E b + 8 T W``, writes ``T (N + K) E b``; in place only the ``W``
turned dimensions are touched. Floor ``(2 T (N + K) E b + 8 T W) / bandwidth``. Each element is read and written by one program, nothing is summed.

Launch table: not measured on a GPU. A program turns up to 8 heads of so many tokens that a tile holds about 4096 elements, 32 a thread at 4
warps. Programs of one token block are neighbours, so that the table comes from L2 after the first.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import launching_on
from .relaunch import relaunched
from .whole_numbers import cdiv, next_power_of_2

TILE_ELEMENTS = 4096
HEADS_AT_MOST = 8


@triton.jit
def table_tile(table, stride, token, column, live, dtype: tl.constexpr):
    """Load ``[tokens, 1, columns]`` of a cosine or sine table, rounded to ``dtype``, as fp32."""
    offset = token.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(table + offset, mask=live, other=0.0).to(dtype).to(tl.float32)[:, None, :]


@triton.jit
def head_offsets(token, head, token_stride, head_stride):
    """Return ``[tokens, heads, 1]`` offsets of heads."""
    return (token.to(tl.int64)[:, None] * token_stride + head.to(tl.int64)[None, :] * head_stride)[:, :, None]


@triton.jit
def turn(a, b, cos_a, cos_b, sin_a, sin_b, ADJOINT: tl.constexpr):
    """Turn the two halves of heads."""
    if ADJOINT:
        return a * cos_a + b * sin_b, b * cos_b - a * sin_a
    return a * cos_a - b * sin_a, b * cos_b + a * sin_b


@triton.jit
def _turn_heads(
    x, y, x_token, x_head, y_token, y_head, cos, sin, cos_stride, sin_stride, token, head, tokens,
    E: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_KEPT: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = x.dtype.element_ty
    column = tl.arange(0, BLOCK_HALF)
    live = (token < tokens)[:, None] & (column < HALF)[None, :]
    x_start, y_start = head_offsets(token, head, x_token, x_head), head_offsets(token, head, y_token, y_head)
    place, mask = column[None, None, :], live[:, None, :]
    a = tl.load(x + x_start + place, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x + x_start + HALF + place, mask=mask, other=0.0).to(tl.float32)
    cos_a = table_tile(cos, cos_stride, token, column, live, dtype)
    cos_b = table_tile(cos, cos_stride, token, HALF + column, live, dtype)
    sin_a = table_tile(sin, sin_stride, token, column, live, dtype)
    sin_b = table_tile(sin, sin_stride, token, HALF + column, live, dtype)
    a, b = turn(a, b, cos_a, cos_b, sin_a, sin_b, ADJOINT)
    tl.store(y + y_start + place, a.to(dtype), mask=mask)
    tl.store(y + y_start + HALF + place, b.to(dtype), mask=mask)
    if BLOCK_KEPT:
        kept = 2 * HALF + tl.arange(0, BLOCK_KEPT)
        kept_mask = (token < tokens)[:, None, None] & (kept < E)[None, None, :]
        place = kept[None, None, :]
        tl.store(y + y_start + place, tl.load(x + x_start + place, mask=kept_mask, other=0.0), mask=kept_mask)


@relaunched
@triton.jit(do_not_specialize=["tokens"])
def _rope_kernel(
    q, k, cos, sin, q_out, k_out, tokens, q_token, q_head, k_token, k_head, q_out_token, q_out_head, k_out_token, k_out_head,
    cos_stride, sin_stride, Q_BLOCKS: tl.constexpr, BLOCKS: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    E: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_KEPT: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0) % BLOCKS
    token = (tl.program_id(0) // BLOCKS) * TOKENS + tl.arange(0, TOKENS)
    if block < Q_BLOCKS:
        head = block * HEADS + tl.arange(0, HEADS)
        _turn_heads(
            q, q_out, q_token, q_head, q_out_token, q_out_head, cos, sin, cos_stride, sin_stride, token, head, tokens,
            E, HALF, BLOCK_HALF, BLOCK_KEPT, ADJOINT,
        )  # fmt: skip
    else:
        head = (block - Q_BLOCKS) * HEADS + tl.arange(0, HEADS)
        _turn_heads(
            k, k_out, k_token, k_head, k_out_token, k_out_head, cos, sin, cos_stride, sin_stride, token, head, tokens,
            E, HALF, BLOCK_HALF, BLOCK_KEPT, ADJOINT,
        )  # fmt: skip


@functools.cache
def heads_and_tokens(q_heads: int, k_heads: int, block_half: int, elements: int) -> tuple[int, int]:
    """Return heads of a tile, a power of two that divides both counts so that none is masked, and its tokens."""
    shared = math.gcd(q_heads, k_heads)
    heads = min(HEADS_AT_MOST, shared & -shared)
    return heads, max(1, elements // (2 * heads * block_half))


def _launch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, q_out: Tensor, k_out: Tensor, adjoint: bool) -> None:
    (tokens, q_heads, width), k_heads, half = q.shape, k.shape[1], cos.shape[-1] // 2
    in_place, kept, block_half = q_out is q, width - 2 * half, next_power_of_2(half)
    heads, tile_tokens = heads_and_tokens(q_heads, k_heads, block_half, TILE_ELEMENTS)
    blocks = (q_heads + k_heads) // heads
    if tokens and blocks:
        with launching_on(q):
            _rope_kernel[(blocks * cdiv(tokens, tile_tokens),)](
                q, k, cos, sin, q_out, k_out, tokens, q.stride(0), q.stride(1), k.stride(0), k.stride(1),
                q_out.stride(0), q_out.stride(1), k_out.stride(0), k_out.stride(1), cos.stride(0), sin.stride(0),
                q_heads // heads, blocks, tile_tokens, heads, width, half, block_half,
                next_power_of_2(kept) if kept and not in_place else 0, adjoint, num_warps=4,
            )  # fmt: skip


def rope_apart(q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor, adjoint: bool = False) -> tuple[Tensor, Tensor]:
    """Launch into new tensors.

    Args:
        q_TNE: ``(T, N, E)``, last stride 1.
        k_TKE: ``(T, K, E)``, last stride 1, dtype of ``q``.
        cos_TE: ``(T, W)``, ``W`` even and at most ``E``, last stride 1, any float dtype.
        sin_TE: shape of ``cos``.
        adjoint: turn by minus the angle.

    Returns:
        The turned pair, contiguous.
    """
    q_out = torch.empty_like(q_TNE, memory_format=torch.contiguous_format)
    k_out = torch.empty_like(k_TKE, memory_format=torch.contiguous_format)
    _launch(q_TNE, k_TKE, cos_TE, sin_TE, q_out, k_out, adjoint)
    return q_out, k_out


def rope_in_place(q_TNE: Tensor, k_TKE: Tensor | None, cos_TE: Tensor, sin_TE: Tensor, adjoint: bool = False) -> None:
    """Launch into ``q`` and, unless it is None, ``k``; arguments as in :func:`rope_apart`."""
    k = q_TNE[:, :0] if k_TKE is None else k_TKE
    _launch(q_TNE, k, cos_TE, sin_TE, q_TNE, k, adjoint)
