"""What the kernels that work on whole rows ask of a call: the norms."""

from __future__ import annotations

from torch import Tensor

from ..kernels.row_views import row_strides
from .triton_gate import triton_refusal

WIDEST_KERNEL_ROW = 16384
"""One tile of the Triton kernels holds a whole row."""


def row_refusal(x: Tensor, *weights: Tensor, residual: Tensor | None = None) -> str | None:
    """Return why a kernel can't normalise the rows of ``x``, or None.

    Args:
        x: ``(..., D)``.
        weights: ``(D,)`` each.
        residual: added to ``x`` first.
    """
    width = x.shape[-1]
    for tensor in weights if residual is None else (*weights, residual):
        if tensor.dtype != x.dtype:
            return f"x is {x.dtype} but {'the weight' if tensor.dim() == 1 else 'the residual'} is {tensor.dtype}"
    for weight in weights:
        if weight.shape != (width,):
            return f"rows of {width} need weights ({width},), found {[tuple(each.shape) for each in weights]}"
    if residual is not None and residual.shape != x.shape:
        return f"x is {tuple(x.shape)} but the residual is {tuple(residual.shape)}"
    if not 0 < width <= WIDEST_KERNEL_ROW:
        return f"rows of {width} are none of 1 to {WIDEST_KERNEL_ROW} wide"
    problem = triton_refusal(x, *weights, residual)
    if problem is None and row_strides(*((x,) if residual is None else (x, residual))) is None:
        problem = f"rows of a tensor {tuple(x.shape)} with strides {x.stride()} need more than two strides"
    return problem


def rows_fit(grad: Tensor, *others: Tensor) -> Tensor:
    """Return a gradient as a kernel can read it beside the rows of ``others``: itself, or a copy where autograd made a view that it can't."""
    readable = (grad.stride(-1) == 1 or grad.shape[-1] == 1) and row_strides(*others, grad) is not None
    return grad if readable else grad.contiguous()
