"""Bias and exact GELU as one op: what stands between the linear layers of LLaVA's connector."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.row_views import row_strides
from ..ops.call_checks import misfit
from ..ops.dispatch import Implementation, dispatch
from ..ops.library import kernel_op, unrecorded
from ..ops.row_refusal import rows_fit
from ..ops.triton_gate import triton_distrust, triton_refusal


def bias_gelu(x: Tensor, bias_D: Tensor, *, backend: str = "auto") -> Tensor:
    """``gelu(x + bias)`` with the exact (erf) GELU.

    Args:
        x: ``(..., D)``, a linear layer's product without its bias.
        bias_D: ``(D,)``; of another dtype it is rounded to that of ``x``, as autocast does with a linear layer's bias.
        backend: ``auto`` or the name of an implementation.

    Returns:
        Shape and dtype of ``x``.

    Raises:
        LmmError: a bias that isn't as wide as the rows, or a forced backend that refuses.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415.
    """
    if bias_D.dim() != 1 or bias_D.numel() != x.shape[-1]:
        raise misfit("bias_gelu needs x (..., D) and a bias (D,)", x=x, bias=bias_D)
    return dispatch("bias_gelu", x, bias_D, backend=backend)


def bias_gelu_reference(x: Tensor, bias_D: Tensor) -> Tensor:
    """The formula."""
    return F.gelu(x + bias_D.to(x.dtype))


_FWD = kernel_op(
    "bias_gelu_fwd(Tensor x, Tensor bias) -> Tensor",
    "bias_gelu:bias_gelu_fwd",
    lambda x, bias: x.new_empty(x.shape),
)
_BWD = kernel_op(
    "bias_gelu_bwd(Tensor x, Tensor bias, Tensor grad) -> (Tensor, Tensor)",
    "bias_gelu:bias_gelu_bwd",
    lambda x, bias, grad: (x.new_empty(x.shape), bias.new_empty(bias.shape)),
)


class _BiasGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, bias_D: Tensor) -> Tensor:
        ctx.save_for_backward(x_RD, bias_D)
        return _FWD(x_RD, bias_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x_RD, bias_D = ctx.saved_tensors
        return _BWD(x_RD, bias_D, rows_fit(grads[0], x_RD))


def bias_gelu_triton(x: Tensor, bias_D: Tensor) -> Tensor:
    """One pass forward; one pass and a short sum backward. ``x`` alone is kept."""
    run = _FWD if unrecorded(x, bias_D) else _BiasGELU.apply
    return run(x.reshape(-1, x.shape[-1]), bias_D).view(x.shape)


def _triton_supports(x: Tensor, bias_D: Tensor) -> bool | str:
    if not x.dim() or bias_D.shape != x.shape[-1:] or not bias_D.shape[0]:
        return f"x {tuple(x.shape)} needs a bias of its last dimension, at least 1 wide: found {tuple(bias_D.shape)}"
    problem = triton_refusal(x, bias_D)
    if problem is None and (row_strides(x) or (2,))[0] != 1:
        problem = f"rows of a tensor {tuple(x.shape)} with strides {x.stride()} need more than one stride"
    return problem or True


def _triton_trusted(x: Tensor, bias_D: Tensor) -> bool | str:
    return triton_distrust("bias_gelu", x) or True


BIAS_GELU_TRITON = Implementation("triton", bias_gelu_triton, _triton_supports, _triton_trusted)
BIAS_GELU_REFERENCE = Implementation("reference", bias_gelu_reference)
