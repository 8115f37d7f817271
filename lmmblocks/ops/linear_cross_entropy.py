"""Cross-entropy of a linear head over supervised rows only, without keeping all logits.

``loss_r = logsumexp(z_r) - z_{r, target_r}`` with logits ``z_r = h_r W^T + b``, soft-capped where the decoder says so, computed in fp32.
The ``torch`` implementation walks chunks of rows and recomputes each chunk in the backward, so that the memory is one chunk of logits, not
``R x V``. The ``triton`` implementation is in ``linear_cross_entropy_triton.py``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import LmmError
from .activations import softcapped
from .autocast import autocast_dtype
from .call_checks import misfit
from .dispatch import Implementation, dispatch

CHUNK_ROWS = 1024
REDUCTIONS = ("mean", "sum", "none")
IGNORED = -100
"""Target of a row without loss, torch's default."""


def linear_cross_entropy(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    targets_R: Tensor,
    *,
    weights: Tensor | None = None,
    reduction: str = "mean",
    normalizer: Tensor | float | None = None,
    softcap: float | None = None,
    bias_V: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Cross-entropy between ``hidden @ weight.T`` and ``targets``.

    Args:
        hidden_RD: supervised hidden rows.
        weight_VD: the head.
        targets_R: int64 ids in ``[0, V)``; a row with target -100 has no loss, no gradient and no part in the mean, but costs as much as
            another. Any other id outside the vocabulary raises on the CPU and stops the process's CUDA context with an assertion, as
            ``torch.nn.functional.cross_entropy`` does; in the Triton kernel it makes the row's loss and gradient NaN.
        weights: ``(R,)`` weight of each row, default 1.
        reduction: ``mean`` divides by the sum of the weights (0 rows give 0, not NaN), ``sum``, or ``none`` for ``(R,)``.
        normalizer: what ``mean`` divides by instead: the tokens of all micro-batches, say. A tensor may stay on the device.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2); None = they stay.
        bias_V: of the head (Phi-2, GPT-J); None = 0.
        backend: ``auto`` or the name of an implementation.

    Returns:
        fp32 scalar, or ``(R,)`` for ``none``.

    Raises:
        LmmError: an unknown reduction, a normalizer without ``mean``, or shapes that don't fit.
    """
    if reduction not in REDUCTIONS:
        raise LmmError(f"linear_cross_entropy: reduction {reduction!r} is none of {REDUCTIONS}")
    if normalizer is not None and reduction != "mean":
        raise LmmError(f"linear_cross_entropy: a normalizer is what 'mean' divides by, reduction is {reduction!r}: leave one of them out")
    if hidden_RD.dim() != 2 or weight_VD.dim() != 2 or hidden_RD.shape[1] != weight_VD.shape[1]:
        raise misfit("linear_cross_entropy needs hidden rows (R,D) and a head (V,D)", hidden=hidden_RD, weight=weight_VD)
    if bias_V is not None and bias_V.shape != weight_VD.shape[:1]:
        raise misfit("linear_cross_entropy needs a head (V,D) and a bias (V,)", weight=weight_VD, bias=bias_V)
    rows = hidden_RD.shape[0]
    if targets_R.shape != (rows,) or (weights is not None and weights.shape != (rows,)):
        raise LmmError(f"linear_cross_entropy: {rows} hidden rows need {rows} targets and weights, found {tuple(targets_R.shape)}")
    if reduction == "mean" and normalizer is None:
        normalizer = weight_sum(targets_R, weights)
    return dispatch("linear_cross_entropy", hidden_RD, weight_VD, targets_R, softcap, bias_V, weights, normalizer, reduction, backend=backend)


def weight_sum(targets_R: Tensor, weights_R: Tensor | None) -> Tensor:
    """Sum of the weights of the rows that have a loss, never 0; stays on the device."""
    kept_R = targets_R != IGNORED
    if weights_R is None:
        return kept_R.sum().clamp_min(1)
    return torch.where(kept_R, weights_R, 0).sum().clamp_min(torch.finfo(torch.float32).tiny)


def reduced(losses_R: Tensor, weights_R: Tensor | None, normalizer: Tensor | float | None, reduction: str) -> Tensor:
    """Weigh the losses of rows and reduce them; ``normalizer`` is given for ``mean`` alone."""
    if weights_R is not None:
        losses_R = losses_R * weights_R
    if reduction == "none":
        return losses_R
    return losses_R.sum() if normalizer is None else losses_R.sum() / normalizer


def linear_cross_entropy_reference(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    targets_R: Tensor,
    softcap: float | None,
    bias_V: Tensor | None,
    weights_R: Tensor | None,
    normalizer: Tensor | float | None,
    reduction: str,
) -> Tensor:
    """All logits at once."""
    return reduced(_row_losses(hidden_RD, weight_VD, targets_R, softcap, bias_V), weights_R, normalizer, reduction)


def _row_losses(hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, softcap: float | None, bias_V: Tensor | None) -> Tensor:
    logits_RV = F.linear(hidden_RD, weight_VD, bias_V)
    wide_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    return F.cross_entropy(softcapped(wide_RV, softcap), targets_R, reduction="none", ignore_index=IGNORED)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, softcap: float | None, bias_V: Tensor | None) -> Tensor:
        ctx.compute, ctx.softcap = compute_dtype(hidden_RD), softcap
        head_VD, shift_V = weight_VD.to(ctx.compute), None if bias_V is None else bias_V.to(ctx.compute)
        chunks = [slice(i, i + CHUNK_ROWS) for i in range(0, hidden_RD.shape[0], CHUNK_ROWS)]
        losses = [_row_losses(hidden_RD[c].to(ctx.compute), head_VD, targets_R[c], softcap, shift_V) for c in chunks]
        ctx.save_for_backward(hidden_RD, weight_VD, targets_R, bias_V)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, Tensor | None]:
        hidden_RD, weight_VD, targets_R, bias_V = ctx.saved_tensors
        grad_R = torch.where(targets_R == IGNORED, 0, grads[0])
        need_hidden, need_weight, _, _, need_bias = ctx.needs_input_grad
        head_VD = weight_VD.to(ctx.compute)
        hidden_grad = torch.empty_like(hidden_RD) if need_hidden else None
        weight_grad = torch.zeros_like(weight_VD, dtype=grad_R.dtype) if need_weight else None
        bias_grad = torch.zeros_like(bias_V, dtype=grad_R.dtype) if need_bias else None
        shift_V = None if bias_V is None else bias_V.to(ctx.compute)
        for i in range(0, hidden_RD.shape[0], CHUNK_ROWS):
            rows = slice(i, i + CHUNK_ROWS)
            hidden_rD = hidden_RD[rows].to(ctx.compute)
            logits_rV = softcapped(F.linear(hidden_rD, head_VD, shift_V).to(grad_R.dtype), ctx.softcap)
            slope_rV = logits_rV.softmax(-1)
            slope_rV[torch.arange(slope_rV.shape[0], device=slope_rV.device), targets_R[rows].clamp_min(0)] -= 1
            if ctx.softcap is not None:
                slope_rV *= 1 - (logits_rV / ctx.softcap).square()
            slope_rV *= grad_R[rows, None]
            if bias_grad is not None:
                bias_grad += slope_rV.sum(0)
            slope_rV = slope_rV.to(ctx.compute)
            if hidden_grad is not None:
                hidden_grad[rows] = slope_rV @ head_VD
            if weight_grad is not None:
                _add_product(weight_grad, slope_rV.T, hidden_rD)
        weight_grad = None if weight_grad is None else weight_grad.to(weight_VD.dtype)
        return hidden_grad, weight_grad, None, None, None if bias_grad is None else bias_grad.to(bias_V.dtype)


def _add_product(total_VD: Tensor, left_Vr: Tensor, right_rD: Tensor) -> None:
    """Add a product to a sum in place; in one dtype without a second ``V x D``."""
    if total_VD.dtype == left_Vr.dtype:
        total_VD.addmm_(left_Vr, right_rD)
    else:
        total_VD += left_Vr @ right_rD


def compute_dtype(hidden_RD: Tensor) -> torch.dtype:
    """What the products are taken in: autocast's dtype inside of it, which a backward is not, else that of the rows."""
    return autocast_dtype(hidden_RD.device) or hidden_RD.dtype


def linear_cross_entropy_torch(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    targets_R: Tensor,
    softcap: float | None,
    bias_V: Tensor | None,
    weights_R: Tensor | None,
    normalizer: Tensor | float | None,
    reduction: str,
) -> Tensor:
    """One chunk of logits at a time, recomputed in the backward."""
    losses_R = _Chunked.apply(hidden_RD, weight_VD, targets_R, softcap, bias_V)
    return reduced(losses_R, weights_R, normalizer, reduction)


def _torch_supports(hidden_RD: Tensor, *others: Any) -> bool | str:
    return True if hidden_RD.shape[0] > CHUNK_ROWS else f"the rows fit one chunk of {CHUNK_ROWS}: nothing to save"


LINEAR_CROSS_ENTROPY_TORCH = Implementation("torch", linear_cross_entropy_torch, _torch_supports)
LINEAR_CROSS_ENTROPY_REFERENCE = Implementation("reference", linear_cross_entropy_reference)
