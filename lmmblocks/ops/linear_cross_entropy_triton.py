"""Linear cross-entropy by cuBLAS and one Triton kernel a chunk: the loss and, where it can be, the gradient come out of the forward.

A gradient made in the forward saves the product that a backward would have to repeat: ``6 R D V`` FLOP instead of ``8 R D V``. It needs the factor
of each row beforehand: ``weight / normalizer`` for ``mean`` and ``sum``. What comes from behind them, one number, is multiplied in where
the backward runs; a kernel reads that number on the device and touches nothing when it is 1.

Three cases recompute the logits in the backward instead, a chunk at a time: ``none``, where the gradient of each row comes from behind; weights or
a normalizer that have gradients themselves; and fp16, whose loss scale comes from behind and must be in the gradients before they are rounded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import Implementation
from .library import kernel_op
from .linear_cross_entropy import compute_dtype, reduced
from .triton_gate import DTYPES, triton_distrust, triton_refusal


def _fake_grads(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    factors: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    needs: list[bool],
    hidden_dtype: torch.dtype,
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape[0], dtype=torch.float32),
        hidden.new_empty(hidden.shape if needs[0] else 0, dtype=hidden_dtype),
        hidden.new_empty(weight.shape if needs[1] else 0, dtype=weight_dtype),
        hidden.new_empty(weight.shape[0] if needs[2] else 0, dtype=torch.float32),
    )


_LOSSES = kernel_op(
    "linear_cross_entropy_losses(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, float? softcap) -> Tensor",
    "linear_cross_entropy:linear_cross_entropy_losses",
    lambda hidden, weight, targets, bias, softcap: hidden.new_empty(hidden.shape[0], dtype=torch.float32),
)
_GRADS = kernel_op(
    "linear_cross_entropy_grads(Tensor hidden, Tensor weight, Tensor targets, Tensor factors, Tensor? bias, float? softcap, bool[] needs,"
    " ScalarType hidden_dtype, ScalarType weight_dtype) -> (Tensor, Tensor, Tensor, Tensor)",
    "linear_cross_entropy:linear_cross_entropy_grads",
    _fake_grads,
)
_SCALE = kernel_op(
    "scale_in_place(Tensor(a!) x, Tensor factor) -> ()",
    "cross_entropy:scale_in_place",
    lambda x, factor: None,
)


class _MadeInForward(torch.autograd.Function):
    """``sum_r factor_r loss_r``; keeps its gradients instead of its inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_R: Tensor,
        factors_R: Tensor,
        softcap: float | None,
        needs: list[bool],
        compute: torch.dtype,
    ) -> Tensor:
        shift_V, dtypes = _cast(bias_V, compute), (hidden_RD.dtype, weight_VD.dtype)
        losses_R, *grads = _GRADS(
            hidden_RD.to(compute),
            weight_VD.to(compute),
            targets_R,
            factors_R,
            shift_V,
            softcap,
            needs,
            *dtypes,
        )
        ctx.save_for_backward(*grads)
        ctx.needs, ctx.bias_dtype = needs, None if bias_V is None else bias_V.dtype
        return (losses_R * factors_R).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        factor = grads[0]
        given: list[Tensor | None] = []
        for needed, grad in zip(ctx.needs, ctx.saved_tensors):
            if needed:
                _SCALE(grad, factor)
                # A second backward would scale it again: with this, autograd refuses that one.
                torch.autograd.graph.increment_version(grad)
            given.append(grad if needed else None)
        given[2] = _cast(given[2], ctx.bias_dtype)
        return (*given, None, None, None, None, None)


class _Recomputed(torch.autograd.Function):
    """Losses of rows; their logits are made once more in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_R: Tensor,
        softcap: float | None,
        compute: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(hidden_RD, weight_VD, bias_V, targets_R)
        ctx.softcap, ctx.compute = softcap, compute
        return _LOSSES(hidden_RD.to(compute), weight_VD.to(compute), targets_R, _cast(bias_V, compute), softcap)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_RD, weight_VD, bias_V, targets_R = ctx.saved_tensors
        needs, dtypes = list(ctx.needs_input_grad[:3]), (hidden_RD.dtype, weight_VD.dtype)
        hidden_RD, head_VD, shift_V = (_cast(tensor, ctx.compute) for tensor in (hidden_RD, weight_VD, bias_V))
        _, dh, dw, db = _GRADS(hidden_RD, head_VD, targets_R, grads[0].contiguous(), shift_V, ctx.softcap, needs, *dtypes)
        db = _cast(db, None if bias_V is None else bias_V.dtype)
        return (*(grad if needed else None for needed, grad in zip(needs, (dh, dw, db))), None, None, None)


def _cast(tensor: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    return tensor if tensor is None or dtype is None else tensor.to(dtype)


def linear_cross_entropy_triton(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    targets_R: Tensor,
    softcap: float | None,
    bias_V: Tensor | None,
    weights_R: Tensor | None,
    normalizer: Tensor | float | None,
    reduction: str,
) -> Tensor:
    """Gradients from the forward where the factors of the rows are known there, else from logits made twice."""
    compute, targets_R = compute_dtype(hidden_RD), targets_R.contiguous()
    needs = [_has_gradient(tensor) for tensor in (hidden_RD, weight_VD, bias_V)]
    known = reduction != "none" and not _has_gradient(weights_R) and not _has_gradient(normalizer)
    if any(needs) and known and compute != torch.float16:
        factors_R = hidden_RD.new_ones(hidden_RD.shape[0], dtype=torch.float32)
        if weights_R is not None:
            factors_R = factors_R * weights_R
        if normalizer is not None:
            factors_R = factors_R / normalizer
        return _MadeInForward.apply(hidden_RD, weight_VD, bias_V, targets_R, factors_R.float().contiguous(), softcap, needs, compute)
    losses_R = _Recomputed.apply(hidden_RD, weight_VD, bias_V, targets_R, softcap, compute)
    return reduced(losses_R, weights_R, normalizer, reduction)


def _has_gradient(value: Tensor | float | None) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()


def _triton_supports(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    targets_R: Tensor,
    softcap: float | None,
    bias_V: Tensor | None,
    *others: Any,
) -> bool | str:
    compute = compute_dtype(hidden_RD)
    if compute not in DTYPES:
        return f"products in {compute}: none of {', '.join(str(dtype) for dtype in DTYPES)}"
    return triton_refusal(hidden_RD, weight_VD, targets_R, bias_V) or True


def _triton_trusted(hidden_RD: Tensor, *others: Any) -> bool | str:
    return triton_distrust("linear_cross_entropy", hidden_RD) or True


LINEAR_CROSS_ENTROPY_TRITON = Implementation("triton", linear_cross_entropy_triton, _triton_supports, _triton_trusted)
