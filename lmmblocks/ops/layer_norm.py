"""Layer norm of the vision transformers: ``y = (x - mean) / sqrt(var + eps) * w + b``, statistics in fp32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .call_checks import misfit
from .dispatch import Implementation, dispatch
from .library import kernel_op, unrecorded
from .rms_norm import gradients_like, statistics_like
from .row_refusal import row_refusal, rows_fit
from .triton_gate import triton_distrust


def layer_norm(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float = 1e-5, *, backend: str = "auto") -> Tensor:
    """Normalise the last dimension of ``x`` by its mean and variance.

    Args:
        x: ``(..., C)``.
        weight_C: ``(C,)``.
        bias_C: ``(C,)``.
        eps: added to the variance.
        backend: ``auto`` or the name of an implementation.

    Returns:
        Shape and dtype of ``x``, rounded once.

    Raises:
        LmmError: a weight or a bias that isn't as wide as the rows, or a forced backend that refuses.

    Source: Ba, Kiros and Hinton, "Layer Normalization", arXiv 1607.06450.
    """
    if weight_C.dim() != 1 or weight_C.shape != bias_C.shape or weight_C.numel() != x.shape[-1]:
        raise misfit("layer_norm needs x (..., C), a weight (C,) and a bias (C,)", x=x, weight=weight_C, bias=bias_C)
    return dispatch("layer_norm", x, weight_C, bias_C, eps, backend=backend)


def layer_norm_reference(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """``torch.nn.functional.layer_norm``, the same bits."""
    return F.layer_norm(x, weight_C.shape, weight_C, bias_C, eps)


class LayerNorm(nn.LayerNorm):
    """``torch.nn.LayerNorm`` over the last dimension, with weight and bias, through the op; parameter names are the same.

    >>> LayerNorm(4)(torch.ones(2, 4)).shape
    torch.Size([2, 4])
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``x``."""
        return layer_norm(x, self.weight, self.bias, self.eps)


_FWD = kernel_op(
    "layer_norm_fwd(Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)",
    "layer_norm:layer_norm_fwd",
    lambda x, weight, bias, eps: (x.new_empty(x.shape), statistics_like(x), statistics_like(x)),
)
_BWD = kernel_op(
    "layer_norm_bwd(Tensor x, Tensor weight, Tensor mean, Tensor rstd, Tensor grad, bool weight_grads=True) -> (Tensor, Tensor, Tensor)",
    "layer_norm:layer_norm_bwd",
    lambda x, weight, mean, rstd, grad, weight_grads=True: (
        *gradients_like(x, weight, weight_grads),
        gradients_like(x, weight, weight_grads)[1],
    ),
)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
        y, mean_R, rstd_R = _FWD(x, weight_C, bias_C, eps)
        ctx.save_for_backward(x, weight_C, mean_R, rstd_R)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_R, rstd_R = ctx.saved_tensors
        weight_wanted, bias_wanted = ctx.needs_input_grad[1:3]
        grad = rows_fit(grads[0], x)
        dx, dw_C, db_C = _BWD(x, weight_C, mean_R, rstd_R, grad, weight_wanted or bias_wanted)
        return dx, dw_C if weight_wanted else None, db_C if bias_wanted else None, None


def layer_norm_triton(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """One pass forward; one pass and a short sum backward."""
    if unrecorded(x, weight_C, bias_C):
        return _FWD(x, weight_C, bias_C, eps)[0]
    return _LayerNorm.apply(x, weight_C, bias_C, eps)


def _triton_supports(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> bool | str:
    return row_refusal(x, weight_C, bias_C) or True


def _triton_trusted(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> bool | str:
    return triton_distrust("layer_norm", x) or True


LAYER_NORM_TRITON = Implementation("triton", layer_norm_triton, _triton_supports, _triton_trusted)
LAYER_NORM_REFERENCE = Implementation("reference", layer_norm_reference)
