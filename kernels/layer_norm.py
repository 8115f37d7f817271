"""Layer norm, forward and backward: ``y = round((x - mean) * rstd * w + b)``, ``rstd = 1 / sqrt(var + eps)``, all in fp32.

Shapes: ``x, y`` and their gradients ``[..., C]``, rows as ``row_views.py`` describes them, results contiguous; ``w, b, dw, db [C]``;
``mean, rstd [R]`` fp32. The variance is that of the centred row, which the tile holds: no cancellation.

Bytes per call (``b`` = bytes of an element; ``C b`` of weight and bias left out):
    forward    reads   R C b, writes R C b + 8 R             floor 2 R C b / bandwidth
    backward   reads 2 R C b + 8 R, writes R C b + 16 P C    floor 3 R C b / bandwidth
``16 P C``: fp32 partial rows of ``dw`` and ``db``, written once and read once.

``dw`` and ``db`` are deterministic: each of ``P`` programs adds its rows in order, and the partials are summed in a fixed order.

Launch table: not measured on a GPU. As in ``rms_norm.py``, with fewer elements a thread in the backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .column_sums import column_sums
from .device import launching_on
from .relaunch import relaunched
from .rms_norm import FORWARD_ELEMENTS, RESIDENT, programs_of
from .row_tiles import (
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

ELEMENTS = 12
"""Of a thread of the backward, about: it keeps ``db`` beside ``dw``."""


@relaunched
@triton.jit(do_not_specialize=["rows"])
def _layer_norm_fwd_kernel(
    x, w, b, y, mean, rstd, rows, inner, x_outer, x_inner, eps,
    C: tl.constexpr, ROWS: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    x_start, y_start = row_start(row, inner, x_outer, x_inner), row.to(tl.int64) * C
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL if TAIL else 1)

    x_a = load_part(x, x_start, head, live, C).to(tl.float32)
    total = tl.sum(x_a, 1)
    if TAIL:
        x_b = load_part(x, x_start, tail, live, C).to(tl.float32)
        total += tl.sum(x_b, 1)
    center = total / C
    x_a = tl.where((head < C)[None, :], x_a - center[:, None], 0.0)
    squares = tl.sum(x_a * x_a, 1)
    if TAIL:
        x_b = tl.where((tail < C)[None, :], x_b - center[:, None], 0.0)
        squares += tl.sum(x_b * x_b, 1)
    scale = tl.math.rsqrt(squares / C + eps)
    tl.store(mean + row, center, mask=live)
    tl.store(rstd + row, scale, mask=live)
    y_a = x_a * scale[:, None] * load_weights(w, head, C) + load_weights(b, head, C)
    store_part(y, y_start, head, live, C, y_a)
    if TAIL:
        y_b = x_b * scale[:, None] * load_weights(w, tail, C) + load_weights(b, tail, C)
        store_part(y, y_start, tail, live, C, y_b)


@relaunched
@triton.jit(do_not_specialize=["rows"])
def _layer_norm_bwd_kernel(
    x, w, mean, rstd, dy, dx, partial, rows, inner, x_outer, x_inner, dy_outer, dy_inner,
    WEIGHTS: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    head, tail = tl.arange(0, HEAD), HEAD + tl.arange(0, TAIL if TAIL else 1)
    dw_a, db_a = tl.zeros((ROWS, HEAD), tl.float32), tl.zeros((ROWS, HEAD), tl.float32)
    if TAIL:
        dw_b, db_b = tl.zeros((ROWS, TAIL), tl.float32), tl.zeros((ROWS, TAIL), tl.float32)
    if ROWS > 1:
        weight_a = load_weights(w, head, C)
        if TAIL:
            weight_b = load_weights(w, tail, C)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        live = row < rows
        x_start, dy_start = row_start(row, inner, x_outer, x_inner), row_start(row, inner, dy_outer, dy_inner)
        dx_start = row.to(tl.int64) * C
        center = tl.load(mean + row, mask=live, other=0.0)[:, None]
        scale = tl.load(rstd + row, mask=live, other=0.0)[:, None]
        normed_a = load_part(x, x_start, head, live, C).to(tl.float32)
        slope_a = load_part(dy, dy_start, head, live, C).to(tl.float32)
        if TAIL:
            normed_b = load_part(x, x_start, tail, live, C).to(tl.float32)
            slope_b = load_part(dy, dy_start, tail, live, C).to(tl.float32)
        if ROWS == 1:
            weight_a = load_weights(w, head, C)
            if TAIL:
                weight_b = load_weights(w, tail, C)
        normed_a = (normed_a - center) * scale  # beyond the width slope is 0, so that nothing there counts
        if WEIGHTS:
            dw_a += slope_a * normed_a
            db_a += slope_a
        slope_a *= weight_a
        flat, dots = tl.sum(slope_a, 1), tl.sum(slope_a * normed_a, 1)
        if TAIL:
            normed_b = (normed_b - center) * scale
            if WEIGHTS:
                dw_b += slope_b * normed_b
                db_b += slope_b
            slope_b *= weight_b
            flat += tl.sum(slope_b, 1)
            dots += tl.sum(slope_b * normed_b, 1)
        flat, dots = (flat / C)[:, None], (dots / C)[:, None]
        store_part(dx, dx_start, head, live, C, (slope_a - flat - normed_a * dots) * scale)
        if TAIL:
            store_part(dx, dx_start, tail, live, C, (slope_b - flat - normed_b * dots) * scale)
    if WEIGHTS:
        own = partial + tl.program_id(0) * 2 * C
        tl.store(own + head, tl.sum(dw_a, 0), mask=head < C)
        tl.store(own + C + head, tl.sum(db_a, 0), mask=head < C)
        if TAIL:
            tl.store(own + tail, tl.sum(dw_b, 0), mask=tail < C)
            tl.store(own + C + tail, tl.sum(db_b, 0), mask=tail < C)


def layer_norm_fwd(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward.

    Args:
        x: ``(..., C)``, last stride 1, rows with at most two strides.
        weight_C: ``(C,)``, dtype of ``x``.
        bias_C: ``(C,)``, dtype of ``x``.
        eps: added to the variance.

    Returns:
        ``y`` with shape and dtype of ``x``, contiguous, and fp32 ``mean (R,)``, ``rstd (R,)``.
    """
    views = row_strides(x)
    assert views is not None, "rows that need more than two strides: the op refuses them"
    inner, [x_strides] = views
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    tile = tile_of(width)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    mean_R, rstd_R = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    if rows:
        with launching_on(x):
            _layer_norm_fwd_kernel[(cdiv(rows, tile.rows),)](
                x, weight_C, bias_C, y, mean_R, rstd_R, rows, inner, *x_strides, eps,
                width, tile.rows, tile.head, tile.tail, num_warps=tile.warps(FORWARD_ELEMENTS),
            )  # fmt: skip
    return y, mean_R, rstd_R


def layer_norm_bwd(
    x: Tensor, weight_C: Tensor, mean_R: Tensor, rstd_R: Tensor, grad: Tensor, weight_grads: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward.

    Args:
        x: input of the forward.
        weight_C: ``(C,)``.
        mean_R: fp32 ``(R,)`` from the forward.
        rstd_R: fp32 ``(R,)`` from the forward.
        grad: gradient of ``y``, last stride 1, rows that ``row_strides`` can describe together with those of ``x``.
        weight_grads: False = weight and bias are frozen.

    Returns:
        Gradients of ``x``, weight and bias, in their dtypes; the last two empty where they aren't wanted.
    """
    views = row_strides(x, grad)
    assert views is not None, "rows that need more than two strides: the op hands over copies"
    inner, strides = views
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    tile = backward_tile_of(width)
    warps = tile.warps(ELEMENTS)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    programs = programs_of(rows, tile, RESIDENT[warps], x.device)
    partial_P2C = torch.empty(programs if weight_grads else 0, 2 * width, dtype=torch.float32, device=x.device)
    with launching_on(x):
        if rows:
            _layer_norm_bwd_kernel[(programs,)](
                x, weight_C, mean_R, rstd_R, grad, dx, partial_P2C, rows, inner, *strides[0], *strides[1],
                weight_grads, width, tile.rows, tile.head, tile.tail,
                num_warps=warps, maxnreg=registers_for(warps, RESIDENT[warps]),
            )  # fmt: skip
        if not weight_grads:
            return dx, weight_C.new_empty(0), weight_C.new_empty(0)
        return dx, *column_sums(partial_P2C, weight_C.dtype, 2)
