"""Root-mean-square norm: ``y = x / sqrt(mean(x^2) + eps) * w``, statistics in fp32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Implementation, dispatch, register_implementation


def rms_norm(x: Tensor, weight_D: Tensor, eps: float = 1e-5, *, backend: str = "auto") -> Tensor:
    """Normalise the last dimension of ``x`` by its root mean square.

    Args:
        x: ``(..., D)``.
        weight_D: ``(D,)``.
        eps: added to the mean square.
        backend: ``auto`` or the name of an implementation.

    Returns:
        Shape and dtype of ``x``. The product with the weight is taken after rounding to the dtype of ``x``, as Llama does.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467.
    """
    return dispatch("rms_norm", x, weight_D, eps, backend=backend)


def rms_norm_reference(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The formula, with fp32 (or wider) statistics."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight_D * scaled.to(x.dtype)


def rms_norm_torch(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """``torch.nn.functional.rms_norm``."""
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


def _torch_supports(x: Tensor, weight_D: Tensor, eps: float) -> bool | str:
    if x.dtype != weight_D.dtype:
        return f"x is {x.dtype} but the weight is {weight_D.dtype}"
    return True if x.dtype in (torch.float32, torch.float64) else "rounds once instead of twice below fp32, unlike Llama"


register_implementation("rms_norm", Implementation("torch", rms_norm_torch, _torch_supports))
register_implementation("rms_norm", Implementation("reference", rms_norm_reference))
