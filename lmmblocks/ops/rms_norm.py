"""Root-mean-square norm: ``y = x / sqrt(mean(x^2) + eps) * w``, statistics in fp32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .call_checks import misfit
from .dispatch import Implementation, dispatch
from .library import kernel_op, unrecorded
from .row_refusal import row_refusal, rows_fit
from .triton_gate import triton_distrust


def rms_norm(x: Tensor, weight_D: Tensor, eps: float = 1e-5, *, offset: float = 0.0, backend: str = "auto") -> Tensor:
    """Normalise the last dimension of ``x`` by its root mean square.

    Args:
        x: ``(..., D)``.
        weight_D: ``(D,)``.
        eps: added to the mean square.
        offset: added to the weight, 1 for Gemma, whose files hold ``w - 1``. With an offset the product is taken in fp32 and rounded once;
            without one it is taken after rounding to the dtype of ``x``, as Llama does.
        backend: ``auto`` or the name of an implementation.

    Returns:
        Shape and dtype of ``x``.

    Raises:
        LmmError: a weight that isn't as wide as the rows, or a forced backend that refuses.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467; ``LlamaRMSNorm`` and ``Gemma2RMSNorm`` of
    transformers, and huggingface/transformers#29402 on where they round.
    """
    if weight_D.dim() != 1 or weight_D.numel() != x.shape[-1]:
        raise misfit("rms_norm needs x (..., D) and a weight (D,)", x=x, weight=weight_D)
    return dispatch("rms_norm", x, weight_D, eps, offset, backend=backend)


def rms_norm_reference(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """The formula, with fp32 (or wider) statistics."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if offset:
        return ((offset + weight_D.to(wide.dtype)) * scaled).to(x.dtype)
    return weight_D * scaled.to(x.dtype)


def rms_norm_torch(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """``torch.nn.functional.rms_norm``, in fp32 or wider."""
    if not offset:
        return F.rms_norm(x, weight_D.shape, weight_D, eps)
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), weight_D.shape, offset + weight_D.to(wide), eps).to(x.dtype)


def _torch_supports(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> bool | str:
    if offset:
        return True
    if x.dtype != weight_D.dtype:
        return f"x is {x.dtype} but the weight is {weight_D.dtype}"
    return True if x.dtype in (torch.float32, torch.float64) else "rounds once instead of twice below fp32, unlike Llama"


RMS_NORM_FWD = kernel_op(
    "rms_norm_fwd(Tensor x, Tensor weight, float eps, float offset=0.0) -> (Tensor, Tensor)",
    "rms_norm:rms_norm_fwd",
    lambda x, weight, eps, offset=0.0: (x.new_empty(x.shape), statistics_like(x)),
)
RMS_NORM_BWD = kernel_op(
    "rms_norm_bwd(Tensor x, Tensor weight, Tensor rstd, Tensor grad, float offset=0.0, bool weight_grad=True) -> (Tensor, Tensor)",
    "rms_norm:rms_norm_bwd",
    lambda x, weight, rstd, grad, offset=0.0, weight_grad=True: gradients_like(x, weight, weight_grad),
)


def statistics_like(x: Tensor) -> Tensor:
    """Return an empty fp32 number for each row of ``x``."""
    return x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)


def gradients_like(x: Tensor, weight: Tensor, weight_grad: bool) -> tuple[Tensor, Tensor]:
    """Return empty gradients of ``x`` and of its weight."""
    return x.new_empty(x.shape), weight.new_empty(weight.shape[0] if weight_grad else 0)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, offset: float) -> Tensor:
        y, rstd_R = RMS_NORM_FWD(x, weight_D, eps, offset)
        ctx.save_for_backward(x, weight_D, rstd_R)
        ctx.offset = offset
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, rstd_R = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1]
        dx, dw_D = RMS_NORM_BWD(x, weight_D, rstd_R, rows_fit(grads[0], x), ctx.offset, wanted)
        return dx, dw_D if wanted else None, None, None


def rms_norm_triton(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """One pass forward; one pass and a short sum backward. Nothing but ``rstd`` is kept beside the inputs, and no view is copied."""
    if unrecorded(x, weight_D):
        return RMS_NORM_FWD(x, weight_D, eps, offset)[0]
    return _RMSNorm.apply(x, weight_D, eps, offset)


def _triton_supports(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> bool | str:
    return row_refusal(x, weight_D) or True


def _triton_trusted(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> bool | str:
    return triton_distrust("rms_norm", x) or True


RMS_NORM_TRITON = Implementation("triton", rms_norm_triton, _triton_supports, _triton_trusted)
RMS_NORM_TORCH = Implementation("torch", rms_norm_torch, _torch_supports)
RMS_NORM_REFERENCE = Implementation("reference", rms_norm_reference)
