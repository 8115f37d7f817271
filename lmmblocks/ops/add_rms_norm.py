"""Residual sum and RMS norm in one op: what stands between attention and MLP of every decoder layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .call_checks import misfit
from .dispatch import Implementation, dispatch
from .library import kernel_op, unrecorded
from .rms_norm import RMS_NORM_BWD, gradients_like, rms_norm, rms_norm_reference, statistics_like
from .row_refusal import row_refusal, rows_fit
from .triton_gate import triton_distrust


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight_D: Tensor,
    eps: float = 1e-5,
    *,
    offset: float = 0.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Add a residual and normalise the sum: ``summed = x + residual``, ``normed = rms_norm(summed)``, in one pass where a kernel can.

    Args:
        x: ``(..., D)``.
        residual: shape of ``x``.
        weight_D: as in :func:`rms_norm`, like ``eps`` and ``offset``.
        eps: added to the mean square.
        offset: added to the weight.
        backend: ``auto`` or the name of an implementation; ``composed`` adds first and leaves the norm to the ladder of ``rms_norm``.

    Returns:
        ``(normed, summed)``, shape and dtype of ``x``; both may be used further.

    Raises:
        LmmError: shapes that don't fit together, or a forced backend that refuses.
    """
    if x.shape != residual.shape or weight_D.dim() != 1 or weight_D.numel() != x.shape[-1]:
        needs = "add_rms_norm needs x (..., D), a residual of its shape and a weight (D,)"
        raise misfit(needs, x=x, residual=residual, weight=weight_D)
    return dispatch("add_rms_norm", x, residual, weight_D, eps, offset, backend=backend)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """The sum, rounded to the dtype of ``x``, then the reference of the norm."""
    summed = x + residual
    return rms_norm_reference(summed, weight_D, eps, offset), summed


def add_rms_norm_composed(x: Tensor, residual: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """The sum, then :func:`rms_norm` as its own ladder has it."""
    summed = x + residual
    return rms_norm(summed, weight_D, eps, offset=offset), summed


_FWD = kernel_op(
    "add_rms_norm_fwd(Tensor x, Tensor residual, Tensor weight, float eps, float offset=0.0) -> (Tensor, Tensor, Tensor)",
    "rms_norm:add_rms_norm_fwd",
    lambda x, residual, weight, eps, offset=0.0: (
        x.new_empty(x.shape),
        x.new_empty(x.shape),
        statistics_like(x),
    ),
)
_BWD = kernel_op(
    "add_rms_norm_bwd(Tensor summed, Tensor weight, Tensor rstd, Tensor grad, Tensor grad_summed, float offset=0.0,"
    " bool weight_grad=True) -> (Tensor, Tensor)",
    "rms_norm:add_rms_norm_bwd",
    lambda summed, weight, rstd, grad, grad_summed, offset=0.0, weight_grad=True: gradients_like(summed, weight, weight_grad),
)


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, weight_D: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
        y, summed, rstd_R = _FWD(x, residual, weight_D, eps, offset)
        ctx.save_for_backward(summed, weight_D, rstd_R)
        ctx.offset = offset
        ctx.set_materialize_grads(False)  # where only one result is used, no zeros are read for the other
        return y, summed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        summed, weight_D, rstd_R = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2]
        if grads[0] is None:
            return grads[1], grads[1], None, None, None
        grad = rows_fit(grads[0], summed)
        if grads[1] is None:
            dx, dw_D = RMS_NORM_BWD(summed, weight_D, rstd_R, grad, ctx.offset, wanted)
        else:
            grad_summed = rows_fit(grads[1], summed, grad)
            dx, dw_D = _BWD(summed, weight_D, rstd_R, grad, grad_summed, ctx.offset, wanted)
        return dx, dx, dw_D if wanted else None, None, None


def add_rms_norm_triton(x: Tensor, residual: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """One pass forward, one pass and a short sum backward, which takes the gradients of both results."""
    if unrecorded(x, residual, weight_D):
        return _FWD(x, residual, weight_D, eps, offset)[:2]
    return _AddRMSNorm.apply(x, residual, weight_D, eps, offset)


def _triton_supports(x: Tensor, residual: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> bool | str:
    return row_refusal(x, weight_D, residual=residual) or True


def _triton_trusted(x: Tensor, residual: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> bool | str:
    return triton_distrust("add_rms_norm", x) or True


ADD_RMS_NORM_TRITON = Implementation("triton", add_rms_norm_triton, _triton_supports, _triton_trusted)
ADD_RMS_NORM_COMPOSED = Implementation("composed", add_rms_norm_composed)
ADD_RMS_NORM_REFERENCE = Implementation("reference", add_rms_norm_reference)
