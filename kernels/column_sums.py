"""Sums over the partial rows that programs of a backward left behind: ``out[c] = sum over p of partial[p, c]``, in a fixed order.

Shapes: ``partial [P, C]`` fp32 contiguous, one or two gradients beside each other in a row; ``out`` in the dtype of the weight. Reads ``4 P C``
bytes once, mostly from L2, and writes ``C`` elements.
One program owns a strip of columns and walks all of ``P``: no atomics, the same sum on every run.

Launch table: not measured on a GPU. A strip is 32 columns = one 128-byte line a row, so that 4096 columns keep 128 programs busy; a program
has 64 rows = 8 KiB in flight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .relaunch import relaunched
from .whole_numbers import cdiv

COLUMNS, ROWS = 32, 64


@relaunched
@triton.jit(do_not_specialize=["rows"])
def _column_sums_kernel(partial, first_out, second_out, rows, row_stride, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < columns)[None, :]
    partial += tl.program_id(1) * columns
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        offset = row.to(tl.int64)[:, None] * row_stride + column[None, :]
        total += tl.load(partial + offset, mask=(row < rows)[:, None] & inside, other=0.0)
    out = first_out
    if tl.program_id(1) == 1:
        out = second_out
    tl.store(out + column, tl.sum(total, 0).to(first_out.dtype.element_ty), mask=column < columns)


def column_sums(partial_PC: Tensor, dtype: torch.dtype, parts: int = 1) -> list[Tensor]:
    """Sum the partial rows; the caller has made the tensor's device the current one.

    Args:
        partial_PC: fp32 ``(P, C)``; ``P`` may be 0.
        dtype: of the result.
        parts: gradients that lie beside each other in a partial row, 1 or 2.

    Returns:
        ``parts`` tensors ``(C / parts,)``, each with memory of its own.
    """
    rows, columns = partial_PC.shape
    width = columns // parts
    outs = [torch.empty(width, dtype=dtype, device=partial_PC.device) for _ in range(parts)]
    _column_sums_kernel[(cdiv(width, COLUMNS), parts)](partial_PC, outs[0], outs[-1], rows, columns, width, ROWS, COLUMNS, num_warps=4)
    return outs
