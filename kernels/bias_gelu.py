"""Bias and exact (erf) GELU in one pass: ``y = gelu(x + b)``; backward with a deterministic ``db``.

``gelu(z) = z (1 + erf(z / sqrt 2)) / 2``, ``gelu'(z) = (1 + erf(z / sqrt 2)) / 2 + z exp(-z^2 / 2) / sqrt(2 pi)``;
``dx = dy gelu'(x + b)``, ``db = sum_r dx_r``.

Shapes: ``x, dy [R, D]`` with row strides, ``y, dx [R, D]`` contiguous, ``b, db [D]``. Arithmetic in fp32, rounded once at the store.

Bytes per call (``b`` = bytes of an element): forward ``2 R D b``; backward ``3 R D b`` and ``8 P D`` for partial sums of ``db``, one row
for each of the ``P`` programs of a column strip, written and read. Apart, the sum and the GELU move ``4 R D b`` forward, their gradients
``4 R D b`` backward. Only ``x`` is kept: the pre-activation without the bias. Floor: bytes / bandwidth.

``db`` is the same on every run: a program adds its rows in order, lane by lane, and ``column_sums`` adds the programs in order.

Launch table: not measured on a GPU. Tiles as in ``activations.py``; in the backward a tile is narrower, 4 rows of 512 columns (1 KiB pieces in
bf16), so that a few column strips times ``P`` fill every multiprocessor with 4 programs while partials stay few.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import TILE_ELEMENTS, WARPS, tile_shape
from .column_sums import column_sums
from .device import launching_on, multiprocessors
from .relaunch import relaunched
from .whole_numbers import cdiv, next_power_of_2

STRIP = 512
"""Columns of a program of the backward."""

PROGRAMS_PER_MULTIPROCESSOR = 4


@triton.jit
def _gelu_cdf(z):
    """``(1 + erf(z / sqrt 2)) / 2``."""
    return 0.5 + 0.5 * tl.math.erf(z * 0.7071067811865476)


@relaunched
@triton.jit(do_not_specialize=["rows"])
def _bias_gelu_fwd_kernel(x, bias, y, x_stride, rows, width, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    live = (row < rows) & (column < width)[None, :]
    shift = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    z = tl.load(x + row * x_stride + column[None, :], mask=live, other=0.0).to(tl.float32) + shift[None, :]
    tl.store(y + row * width + column[None, :], (z * _gelu_cdf(z)).to(y.dtype.element_ty), mask=live)


@relaunched
@triton.jit(do_not_specialize=["rows"])
def _bias_gelu_bwd_kernel(x, bias, dy, dx, db_partial, x_stride, dy_stride, rows, width, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = column < width
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        live = (row < rows) & inside[None, :]
        z = tl.load(x + row * x_stride + column[None, :], mask=live, other=0.0).to(tl.float32) + shift
        slope = tl.load(dy + row * dy_stride + column[None, :], mask=live, other=0.0).to(tl.float32)
        slope *= _gelu_cdf(z) + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
        total += slope
        tl.store(dx + row * width + column[None, :], slope.to(dx.dtype.element_ty), mask=live)
    tl.store(db_partial + tl.program_id(0) * width + column, tl.sum(total, 0), mask=inside)


def bias_gelu_fwd(x_RD: Tensor, bias_D: Tensor) -> Tensor:
    """Launch the forward.

    Args:
        x_RD: ``(R, D)``, last stride 1.
        bias_D: ``(D,)``, contiguous, of any floating dtype.

    Returns:
        Shape and dtype of ``x``, contiguous.
    """
    (rows, width), (tile_rows, block) = x_RD.shape, tile_shape(x_RD.shape[1])
    y_RD = torch.empty((rows, width), dtype=x_RD.dtype, device=x_RD.device)
    if rows:
        with launching_on(x_RD):
            _bias_gelu_fwd_kernel[(cdiv(rows, tile_rows), cdiv(width, block))](
                x_RD, bias_D, y_RD, x_RD.stride(0), rows, width, tile_rows, block, num_warps=WARPS
            )
    return y_RD


def bias_gelu_bwd(x_RD: Tensor, bias_D: Tensor, grad_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the backward.

    Args:
        x_RD: of the forward.
        bias_D: of the forward.
        grad_RD: gradient of ``y``, last stride 1.

    Returns:
        Gradients of ``x``, contiguous, and of the bias, in their dtypes.
    """
    rows, width = x_RD.shape
    block = min(STRIP, next_power_of_2(width))
    tile_rows, strips = TILE_ELEMENTS // block, cdiv(width, block)
    most = max(1, PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(x_RD.device) // strips)
    programs = max(1, min(cdiv(rows, tile_rows), most))
    dx_RD = torch.empty((rows, width), dtype=x_RD.dtype, device=x_RD.device)
    partial_PD = torch.empty((programs, width), dtype=torch.float32, device=x_RD.device)
    with launching_on(x_RD):
        _bias_gelu_bwd_kernel[(programs, strips)](
            x_RD, bias_D, grad_RD, dx_RD, partial_PD, x_RD.stride(0), grad_RD.stride(0), rows, width,
            tile_rows, block, num_warps=WARPS,
        )  # fmt: skip
        return dx_RD, column_sums(partial_PD, bias_D.dtype)[0]
