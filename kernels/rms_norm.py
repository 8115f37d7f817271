"""RMS norm, forward and backward, alone or after the sum with a residual.

``s = x + residual`` (rounded to the dtype of ``x``; without a residual ``s = x``), ``rstd = 1 / sqrt(mean(s^2) + eps)``, statistics in fp32.
``y = w * round(s * rstd)`` as Llama does; with an ``offset`` other than 0 ``y = round((offset + w) * s * rstd)`` as Gemma does.

Shapes: ``x, residual, summed, y`` and their gradients ``[..., D]``, rows as ``row_views.py`` describes them, results contiguous; ``w, dw [D]``;
``rstd [R]`` fp32.

Bytes per call (``b`` = bytes of an element; ``D b`` of the weight left out):
    forward                 reads   R D b, writes   R D b + 4 R                 floor 2 R D b / bandwidth
    forward with residual   reads 2 R D b, writes 2 R D b + 4 R                 floor 4 R D b / bandwidth
    backward                reads 2 R D b + 4 R, writes R D b + 8 P D           floor 3 R D b / bandwidth
    backward with residual  reads 3 R D b + 4 R, writes R D b + 8 P D           floor 4 R D b / bandwidth
``8 P D``: fp32 partial rows of ``dw``, written once and read once. A tile holds whole rows, so that nothing is read twice.

``dw`` is deterministic: each of ``P`` programs adds its rows in order, and the partials are summed in a fixed order. ``P`` follows from the
shape and the number of multiprocessors.

Launch table: not measured on a GPU. Forward: 32 to 40 elements a thread, one tile a program. Backward: 16 to 24 elements a thread, because a
thread keeps ``x``, ``dy`` and its part of ``dw`` in fp32; the weight of a wide row is read again for each row, from L1, instead of being kept
too. ``RESIDENT`` programs of a multiprocessor ask for 24 to 64 KiB at a time; bandwidth times latency is 10 KiB on an A100, 18 KiB on an H100.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .column_sums import column_sums
from .device import launching_on, multiprocessors
from .relaunch import relaunched
from .row_tiles import (
    Tile,
    backward_tile_of,
    load_part,
    load_weights,
    registers_for,
    row_start,
    store_part,
    tile_of,
)
from .row_views import row_strides
from .whole_numbers import cdiv

FORWARD_ELEMENTS, BACKWARD_ELEMENTS = 32, 16
"""Elements of a row per thread: forward, backward."""

RESIDENT = {4: 3, 8: 2, 16: 1}
"""Warps -> programs of a backward that a multiprocessor holds at once: the compiler is told, and no more are launched."""

TILES_PER_PROGRAM = 4
"""At least, of a large enough backward: partial rows cost at most a third of the floor, of long inputs next to nothing."""


@triton.jit
def _normed(wide, scale, weight, dtype: tl.constexpr, OFFSET: tl.constexpr):
    normed = wide * scale[:, None]
    if OFFSET == 0.0:
        return normed.to(dtype).to(tl.float32) * weight
    return normed * (weight + OFFSET)


@relaunched
@triton.jit(do_not_specialize=["rows"])
def _rms_norm_fwd_kernel(
    x, residual, w, summed, y, rstd, rows, inner, x_outer, x_inner, residual_outer, residual_inner, eps,
    OFFSET: tl.constexpr, ADD: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    x_start = row_start(row, inner, x_outer, x_inner)
    out_start = row.to(tl.int64) * D
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL if TAIL else 1)
    dtype: tl.constexpr = y.dtype.element_ty

    a = load_part(x, x_start, head, live, D).to(tl.float32)
    if TAIL:
        b = load_part(x, x_start, tail, live, D).to(tl.float32)
    if ADD:
        residual_start = row_start(row, inner, residual_outer, residual_inner)
        a = (a + load_part(residual, residual_start, head, live, D).to(tl.float32)).to(dtype).to(tl.float32)
        store_part(summed, out_start, head, live, D, a)
        if TAIL:
            b = (b + load_part(residual, residual_start, tail, live, D).to(tl.float32)).to(dtype).to(tl.float32)
            store_part(summed, out_start, tail, live, D, b)
    squares = tl.sum(a * a, 1)
    if TAIL:
        squares += tl.sum(b * b, 1)
    scale = tl.math.rsqrt(squares / D + eps)
    tl.store(rstd + row, scale, mask=live)
    store_part(y, out_start, head, live, D, _normed(a, scale, load_weights(w, head, D), dtype, OFFSET))
    if TAIL:
        store_part(y, out_start, tail, live, D, _normed(b, scale, load_weights(w, tail, D), dtype, OFFSET))


@triton.jit
def _weight_slope(slope, normed, dtype: tl.constexpr, OFFSET: tl.constexpr):
    if OFFSET == 0.0:
        return slope * normed.to(dtype).to(tl.float32)
    return slope * normed


@triton.jit
def _input_slope(grad_summed, start, column, live, slope, normed, mean, scale, ADD: tl.constexpr, D: tl.constexpr):
    out = (slope - normed * mean[:, None]) * scale[:, None]
    if ADD:
        out += load_part(grad_summed, start, column, live, D).to(tl.float32)
    return out


@relaunched
@triton.jit(do_not_specialize=["rows"])
def _rms_norm_bwd_kernel(
    x, w, rstd, dy, grad_summed, dx, dw_partial, rows, inner, x_outer, x_inner, dy_outer, dy_inner, summed_outer, summed_inner,
    OFFSET: tl.constexpr, ADD: tl.constexpr, WEIGHT: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL if TAIL else 1)
    dtype: tl.constexpr = x.dtype.element_ty
    dw_a = tl.zeros((ROWS, HEAD), tl.float32)
    if TAIL:
        dw_b = tl.zeros((ROWS, TAIL), tl.float32)
    if ROWS > 1:
        weight_a = load_weights(w, head, D) + OFFSET
        if TAIL:
            weight_b = load_weights(w, tail, D) + OFFSET
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        live = row < rows
        x_start, dy_start = row_start(row, inner, x_outer, x_inner), row_start(row, inner, dy_outer, dy_inner)
        summed_start = row_start(row, inner, summed_outer, summed_inner)
        out_start = row.to(tl.int64) * D
        scale = tl.load(rstd + row, mask=live, other=0.0)
        normed_a = load_part(x, x_start, head, live, D).to(tl.float32)
        slope_a = load_part(dy, dy_start, head, live, D).to(tl.float32)
        if TAIL:
            normed_b = load_part(x, x_start, tail, live, D).to(tl.float32)
            slope_b = load_part(dy, dy_start, tail, live, D).to(tl.float32)
        if ROWS == 1:  # wide rows: read again, from L1, which costs less than the registers
            weight_a = load_weights(w, head, D) + OFFSET
            if TAIL:
                weight_b = load_weights(w, tail, D) + OFFSET
        normed_a *= scale[:, None]
        if WEIGHT:
            dw_a += _weight_slope(slope_a, normed_a, dtype, OFFSET)
        slope_a *= weight_a
        dots = tl.sum(slope_a * normed_a, 1)
        if TAIL:
            normed_b *= scale[:, None]
            if WEIGHT:
                dw_b += _weight_slope(slope_b, normed_b, dtype, OFFSET)
            slope_b *= weight_b
            dots += tl.sum(slope_b * normed_b, 1)
        mean = dots / D
        out_a = _input_slope(grad_summed, summed_start, head, live, slope_a, normed_a, mean, scale, ADD, D)
        store_part(dx, out_start, head, live, D, out_a)
        if TAIL:
            out_b = _input_slope(grad_summed, summed_start, tail, live, slope_b, normed_b, mean, scale, ADD, D)
            store_part(dx, out_start, tail, live, D, out_b)
    if WEIGHT:
        partial = dw_partial + tl.program_id(0) * D
        tl.store(partial + head, tl.sum(dw_a, 0), mask=head < D)
        if TAIL:
            tl.store(partial + tail, tl.sum(dw_b, 0), mask=tail < D)


def _launch_fwd(x: Tensor, residual: Tensor | None, weight_D: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor, Tensor]:
    views = row_strides(x) if residual is None else row_strides(x, residual)
    assert views is not None, "rows that need more than two strides: the op refuses them"
    inner, strides = views
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    tile = tile_of(width)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    summed = y if residual is None else torch.empty_like(y)
    rstd_R = x.new_empty(rows, dtype=torch.float32)
    if rows:
        with launching_on(x):
            _rms_norm_fwd_kernel[(cdiv(rows, tile.rows),)](
                x, residual, weight_D, summed, y, rstd_R, rows, inner, *strides[0], *strides[-1], eps,
                offset, residual is not None, width, tile.rows, tile.head, tile.tail, num_warps=tile.warps(FORWARD_ELEMENTS),
            )  # fmt: skip
    return y, summed, rstd_R


def _launch_bwd(
    x: Tensor,
    weight_D: Tensor,
    rstd_R: Tensor,
    grad: Tensor,
    grad_summed: Tensor | None,
    offset: float,
    weight_grad: bool,
) -> tuple[Tensor, Tensor]:
    views = row_strides(x, grad) if grad_summed is None else row_strides(x, grad, grad_summed)
    assert views is not None, "rows that need more than two strides: the op hands over copies"
    inner, strides = views
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    tile = backward_tile_of(width)
    warps = tile.warps(BACKWARD_ELEMENTS)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    lean = warps == 8 and tile.tail == 0 and grad_summed is None and x.element_size() == 2
    resident = RESIDENT[warps] + lean  # two inputs of 2 bytes fit 80 registers; more of either spills
    programs = programs_of(rows, tile, resident, x.device)
    partial_PD = torch.empty((programs if weight_grad else 0, width), dtype=torch.float32, device=x.device)
    with launching_on(x):
        if rows:
            _rms_norm_bwd_kernel[(programs,)](
                x, weight_D, rstd_R, grad, grad_summed, dx, partial_PD, rows, inner, *strides[0], *strides[1], *strides[-1],
                offset, grad_summed is not None, weight_grad, width, tile.rows, tile.head, tile.tail,
                num_warps=warps, maxnreg=registers_for(warps, resident),
            )  # fmt: skip
        return dx, column_sums(partial_PD, weight_D.dtype)[0] if weight_grad else weight_D.new_empty(0)


def programs_of(rows: int, tile: Tile, resident: int, device: torch.device) -> int:
    """Return how many programs share the rows of a backward that sums over them; 0 without rows.

    Args:
        rows: of the call.
        tile: rows of it go to a program at a time.
        resident: programs that a multiprocessor holds.
        device: that runs them.
    """
    tiles = cdiv(rows, tile.rows)
    return min(cdiv(tiles, TILES_PER_PROGRAM), resident * multiprocessors(device))


def rms_norm_fwd(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Launch the forward.

    Args:
        x: ``(..., D)``, last stride 1, rows with at most two strides.
        weight_D: ``(D,)``, dtype of ``x``.
        eps: added to the mean square.
        offset: added to the weight.

    Returns:
        ``y`` with shape and dtype of ``x``, contiguous, and fp32 ``rstd (R,)``.
    """
    y, _, rstd_R = _launch_fwd(x, None, weight_D, eps, offset)
    return y, rstd_R


def rms_norm_bwd(x: Tensor, weight_D: Tensor, rstd_R: Tensor, grad: Tensor, offset: float = 0.0, weight_grad: bool = True) -> tuple[Tensor, Tensor]:
    """Launch the backward.

    Args:
        x: input of the forward.
        weight_D: ``(D,)``.
        rstd_R: fp32 ``(R,)`` from the forward.
        grad: gradient of ``y``, last stride 1, rows that ``row_strides`` can describe together with those of ``x``.
        offset: as in the forward.
        weight_grad: False = the weight is frozen.

    Returns:
        Gradients of ``x`` and of the weight, in their dtypes; the latter empty where it isn't wanted.
    """
    return _launch_bwd(x, weight_D, rstd_R, grad, None, offset, weight_grad)


def add_rms_norm_fwd(x: Tensor, residual: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward behind a sum: as :func:`rms_norm_fwd`; returns ``y``, ``x + residual`` and ``rstd``."""
    return _launch_fwd(x, residual, weight_D, eps, offset)


def add_rms_norm_bwd(
    summed: Tensor, weight_D: Tensor, rstd_R: Tensor, grad: Tensor, grad_summed: Tensor,
    offset: float = 0.0, weight_grad: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch its backward: as :func:`rms_norm_bwd` with the gradient of the sum added; the first result is that of ``x`` and the residual."""
    return _launch_bwd(summed, weight_D, rstd_R, grad, grad_summed, offset, weight_grad)
