"""``delta = rowsum(dO O) - dlse``: what the backward of packed attention subtracts from the gradient of each weight.

Shapes: ``out [T_q, N, E]`` contiguous, ``dO`` with strides for rows and heads, ``dlse [N, T_q]`` with any, ``delta [N, T_q]`` fp32. Reads
``2 T_q N E b`` bytes, writes ``4 T_q N``; floor: bytes / bandwidth. Rows after the last segment are neither read nor written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_heads import aligned, load_rows, row_sums
from .attention_tiles import DELTA_ROWS
from .device import launching_on
from .head_parts import head_parts
from .relaunch import relaunched
from .whole_numbers import cdiv


@relaunched
@triton.jit(do_not_specialize=["segments", "rows_q"])
def _attention_delta_kernel(
    out, grad, grad_lse, delta, cu_q, grad_row, grad_head, grad_lse_row, grad_lse_head, rows_q, segments, heads,
    E: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    live = row < tl.load(cu_q + segments)
    values = load_rows(out, row * (heads * E) + head * E, live, E, MAIN, REST, True)
    at = row * aligned(grad_row, VECTOR) + head * aligned(grad_head, VECTOR)
    slopes = load_rows(grad, at, live, E, MAIN, REST, True)
    found = row_sums(values, slopes)
    if grad_lse is not None:
        found -= tl.load(grad_lse + row * grad_lse_row + head * grad_lse_head, mask=live, other=0.0)
    tl.store(delta + head * rows_q + row, found, mask=live)


def attention_delta(grad: Tensor, grad_lse: Tensor | None, out: Tensor, cu_q: Tensor) -> Tensor:
    """Launch the kernel.

    Args:
        grad: gradient of ``out``, last stride 1, rows and heads on 16 bytes.
        grad_lse: fp32 ``(N, T_q)``, or None.
        out: ``(T_q, N, E)``, contiguous.
        cu_q: int32 ``(S + 1,)``.

    Returns:
        fp32 ``(N, T_q)``.
    """
    rows, heads, width = out.shape
    delta = torch.empty((heads, rows), dtype=torch.float32, device=out.device)
    strides = (0, 0) if grad_lse is None else (grad_lse.stride(1), grad_lse.stride(0))
    if rows and heads:
        with launching_on(out):
            _attention_delta_kernel[(cdiv(rows, DELTA_ROWS), heads)](
                out, grad, grad_lse, delta, cu_q, grad.stride(0), grad.stride(1), *strides, rows, cu_q.shape[0] - 1, heads,
                width, *head_parts(width), 16 // out.element_size(), DELTA_ROWS,
            )  # fmt: skip
    return delta
