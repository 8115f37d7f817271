"""Gated and plain activations of the shape ``x sigmoid(u(x))``: SwiGLU, GeGLU by tanh, QuickGELU; forward and backward.

``u(x) = factor (x + cubic x^3)``, as ``1 + tanh(v) = 2 sigmoid(2 v)``:

===============  ==================  ========
activation       factor              cubic
===============  ==================  ========
SiLU             1                   0
GELU by tanh     2 sqrt(2 / pi)      0.044715
QuickGELU        1.702               0
===============  ==================  ========

``y = x s(x) up`` with ``s = sigmoid(u)``, and ``d(x s)/dx = s + x s (1 - s) u'(x)``; ``up`` is missing in a plain activation.

Shapes: ``gate, up, dy`` of one shape ``(..., D)``, their rows numbered in C order and found by two strides (``row_views.py``): both halves of a fused
projection are read where they lie. ``y, dgate, dup`` contiguous. All arithmetic in fp32, rounded once at the store.

Bytes per call of ``n`` elements of ``b`` bytes, each tensor once: forward gated ``3 n b``, plain ``2 n b``; backward gated ``5 n b``, plain
``3 n b``. Floor: bytes / bandwidth. Nothing is kept for the backward but the inputs.

Launch table: not measured on a GPU. A program holds 2048 elements, 16 a thread: two 16-byte loads of each input in flight in bf16, 8 KiB a CTA of a
gated forward, of which an A100 multiprocessor takes 8 or more; its bandwidth times latency asks for about 10 KiB.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import launching_on
from .relaunch import relaunched
from .row_tiles import row_start
from .row_views import RowStrides, row_strides
from .whole_numbers import cdiv, next_power_of_2

TILE_ELEMENTS = 2048
WARPS = 4


@triton.jit
def _sigmoid_and_argument_slope(x, FACTOR: tl.constexpr, CUBIC: tl.constexpr):
    """``sigmoid(u(x))`` and ``u'(x)``."""
    square = x * x
    return tl.sigmoid(FACTOR * x * (1.0 + CUBIC * square)), FACTOR * (1.0 + 3.0 * CUBIC * square)


@triton.jit
def _place(rows, width, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows and columns of this program's tile and which of them exist."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    return row, column[None, :], (row < rows)[:, None] & (column < width)[None, :]


@triton.jit
def _load(base, row, inner, outer_stride, inner_stride, column, live):
    """A tile in fp32."""
    start = row_start(row, inner, outer_stride, inner_stride)[:, None]
    return tl.load(base + start + column, mask=live, other=0.0).to(tl.float32)


@relaunched
@triton.jit(do_not_specialize=["rows"])
def _activation_fwd_kernel(
    gate, up, y, gate_outer, gate_inner, up_outer, up_inner, rows, inner, width,
    FACTOR: tl.constexpr, CUBIC: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, column, live = _place(rows, width, ROWS, BLOCK_D)
    x = _load(gate, row, inner, gate_outer, gate_inner, column, live)
    sigmoid, _ = _sigmoid_and_argument_slope(x, FACTOR, CUBIC)
    out = x * sigmoid
    if GATED:
        out *= _load(up, row, inner, up_outer, up_inner, column, live)
    tl.store(y + row.to(tl.int64)[:, None] * width + column, out.to(y.dtype.element_ty), mask=live)


@relaunched
@triton.jit(do_not_specialize=["rows"])
def _activation_bwd_kernel(
    gate, up, dy, dgate, dup, gate_outer, gate_inner, up_outer, up_inner, dy_outer, dy_inner, rows, inner, width,
    FACTOR: tl.constexpr, CUBIC: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, column, live = _place(rows, width, ROWS, BLOCK_D)
    out = row.to(tl.int64)[:, None] * width + column
    x = _load(gate, row, inner, gate_outer, gate_inner, column, live)
    slope = _load(dy, row, inner, dy_outer, dy_inner, column, live)
    sigmoid, argument_slope = _sigmoid_and_argument_slope(x, FACTOR, CUBIC)
    value = x * sigmoid
    if GATED:
        factor = _load(up, row, inner, up_outer, up_inner, column, live)
        tl.store(dup + out, (slope * value).to(dup.dtype.element_ty), mask=live)
        slope *= factor
    slope *= sigmoid + value * (1.0 - sigmoid) * argument_slope
    tl.store(dgate + out, slope.to(dgate.dtype.element_ty), mask=live)


def tile_shape(width: int) -> tuple[int, int]:
    """Return rows and columns of a tile."""
    block = min(TILE_ELEMENTS, next_power_of_2(width))
    return TILE_ELEMENTS // block, block


def activation_fwd(gate: Tensor, up: Tensor | None, factor: float, cubic: float) -> Tensor:
    """Launch the forward.

    Args:
        gate: ``(..., D)``, rows in two strides or fewer (``row_views.row_strides``).
        up: shape and dtype of ``gate``, or None for a plain activation.
        factor: of the table above.
        cubic: of the table above.

    Returns:
        Shape and dtype of ``gate``, contiguous.
    """
    y = torch.empty_like(gate, memory_format=torch.contiguous_format)
    inner, strides = _strides(gate, up)
    width, (tile_rows, block) = gate.shape[-1], tile_shape(gate.shape[-1])
    rows = gate.numel() // max(1, width)
    if rows and width:
        with launching_on(gate):
            _activation_fwd_kernel[(cdiv(rows, tile_rows), cdiv(width, block))](
                gate, up, y, *strides[0], *strides[1], rows, inner, width,
                factor, cubic, up is not None, tile_rows, block, num_warps=WARPS,
            )  # fmt: skip
    return y


def activation_bwd(gate: Tensor, up: Tensor | None, grad: Tensor, factor: float, cubic: float) -> tuple[Tensor, Tensor]:
    """Launch the backward.

    Args:
        gate: of the forward.
        up: of the forward.
        grad: gradient of ``y``; with ``gate`` and ``up`` in two strides or fewer.
        factor: of the forward.
        cubic: of the forward.

    Returns:
        Gradients of ``gate`` and ``up``, contiguous; that of a missing ``up`` has no elements.
    """
    dgate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    dup = torch.empty(0 if up is None else gate.shape, dtype=gate.dtype, device=gate.device)
    inner, strides = _strides(gate, up, grad)
    width, (tile_rows, block) = gate.shape[-1], tile_shape(gate.shape[-1])
    rows = gate.numel() // max(1, width)
    if rows and width:
        with launching_on(gate):
            _activation_bwd_kernel[(cdiv(rows, tile_rows), cdiv(width, block))](
                gate, up, grad, dgate, dup, *strides[0], *strides[1], *strides[2], rows, inner, width,
                factor, cubic, up is not None, tile_rows, block, num_warps=WARPS,
            )  # fmt: skip
    return dgate, dup


def _strides(gate: Tensor, up: Tensor | None, *others: Tensor) -> tuple[int, list[RowStrides]]:
    found = row_strides(gate, gate if up is None else up, *others)
    assert found is not None, "the op has checked it"
    return found
