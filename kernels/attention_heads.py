"""Rows of one head in two parts, so that a head dim of 72, 80 or 96 is not padded to 128.

A matrix product needs powers of two. A head dim ``E`` is therefore kept as ``MAIN`` columns and, after them, ``REST`` columns: 64 + 16 for 72
and 80, 64 + 32 for 96, 128 + 0 for 128. What comes after ``E`` reads as zero and is never written. 72 thus costs 80 columns of MMA, not 128.
256 is 128 + 128: warps lie along the rows of a tile, where an online softmax wants them, as long as a part is no wider than the tile has rows.

A tile of rows is a tuple of one or two tensors ``[ROWS, MAIN]`` and ``[ROWS, REST]``; these functions are all that knows how many.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def aligned(stride, VECTOR: tl.constexpr):
    """The stride itself: callers made sure that rows start on 16 bytes, and this tells the compiler, which then loads 128 bits at a time."""
    return stride // VECTOR * VECTOR


@triton.jit
def _load_part(base, offset, live, FIRST: tl.constexpr, WIDTH: tl.constexpr, E: tl.constexpr, CHECK: tl.constexpr):
    column = FIRST + tl.arange(0, WIDTH)
    at = base + offset[:, None] + column[None, :]
    if FIRST + WIDTH > E:
        inside = (column < E)[None, :]
        if CHECK:
            inside = live[:, None] & inside
        return tl.load(at, mask=inside, other=0.0)
    else:
        if CHECK:
            return tl.load(at, mask=live[:, None], other=0.0)
        else:
            return tl.load(at)


@triton.jit
def load_rows(base, offset, live, E: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, CHECK: tl.constexpr):
    """Rows that start at ``base + offset``; zeros where not ``live``, which is looked at only if ``CHECK``."""
    main = _load_part(base, offset, live, 0, MAIN, E, CHECK)
    if REST == 0:
        return (main,)
    else:
        return main, _load_part(base, offset, live, MAIN, REST, E, CHECK)


@triton.jit
def _store_part(base, offset, live, part, FIRST: tl.constexpr, WIDTH: tl.constexpr, E: tl.constexpr):
    column = FIRST + tl.arange(0, WIDTH)
    inside = live[:, None] & (column < E)[None, :]
    tl.store(base + offset[:, None] + column[None, :], part.to(base.dtype.element_ty), mask=inside)


@triton.jit
def store_rows(base, offset, live, rows, factor, E: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    """Write ``rows * factor``, one factor a row, where ``live``."""
    _store_part(base, offset, live, rows[0] * factor[:, None], 0, MAIN, E)
    if REST > 0:
        _store_part(base, offset, live, rows[1] * factor[:, None], MAIN, REST, E)


@triton.jit
def zero_rows(ROWS: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    """Accumulators."""
    if REST == 0:
        return (tl.zeros((ROWS, MAIN), tl.float32),)
    else:
        return tl.zeros((ROWS, MAIN), tl.float32), tl.zeros((ROWS, REST), tl.float32)


@triton.jit
def scaled_rows(rows, factor):
    """``rows * factor``, one factor a row."""
    if len(rows) == 2:
        return rows[0] * factor[:, None], rows[1] * factor[:, None]
    else:
        return (rows[0] * factor[:, None],)


@triton.jit
def products(a, b):
    """``a b^T`` over the head dim: fp32 ``[rows of a, rows of b]``."""
    found = tl.dot(a[0], tl.trans(b[0]), input_precision="ieee")
    if len(a) == 2:
        found = tl.dot(a[1], tl.trans(b[1]), found, input_precision="ieee")
    return found


@triton.jit
def added(total, weights, rows):
    """``total + weights rows``; the weights are rounded to the dtype of the rows."""
    weights = weights.to(rows[0].dtype)
    if len(rows) == 2:
        main = tl.dot(weights, rows[0], total[0], input_precision="ieee")
        return main, tl.dot(weights, rows[1], total[1], input_precision="ieee")
    else:
        return (tl.dot(weights, rows[0], total[0], input_precision="ieee"),)


@triton.jit
def row_sums(a, b):
    """Sum over the head dim of ``a b``, in fp32."""
    found = tl.sum(a[0].to(tl.float32) * b[0].to(tl.float32), 1)
    if len(a) == 2:
        found += tl.sum(a[1].to(tl.float32) * b[1].to(tl.float32), 1)
    return found
