"""Norm of each head of queries and keys, then rotary embedding: what Qwen3 and Gemma 3 do before attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .call_checks import misfit
from .dispatch import Implementation, dispatch
from .library import kernel_op, unrecorded
from .rms_norm import rms_norm, rms_norm_reference
from .rope import check_turn, rope, rope_reference, rope_refusal, unit_stride
from .triton_gate import triton_distrust, triton_refusal


def qk_norm_rope(
    q_TNE: Tensor, k_TKE: Tensor, q_weight_E: Tensor, k_weight_E: Tensor, cos_TE: Tensor, sin_TE: Tensor,
    eps: float = 1e-6, *, offset: float = 0.0, backend: str = "auto",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``rope(rms_norm(q), rms_norm(k))`` in one pass where a kernel can.

    Args:
        q_TNE: ``(T, N, E)``.
        k_TKE: ``(T, K, E)``.
        q_weight_E: ``(E,)``, of the norm of queries.
        k_weight_E: ``(E,)``, of the norm of keys.
        cos_TE: ``(T, E)`` from :func:`rope_table`; a narrower table turns the first dimensions only.
        sin_TE: shape of ``cos_TE``.
        eps: added to the mean squares.
        offset: added to the weights, as in :func:`rms_norm`.
        backend: ``auto`` or the name of an implementation; ``composed`` leaves norm and rotation to their own ladders.

    Returns:
        The pair, shapes and dtypes unchanged.

    Raises:
        LmmError: shapes that don't fit together, or a forced backend that refuses.

    Source: Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters", arXiv 2302.05442, on norms of queries and keys;
    ``Qwen3Attention`` and ``Gemma3Attention`` of transformers.
    """
    check_turn("qk_norm_rope", q_TNE, k_TKE, cos_TE, sin_TE)
    if q_weight_E.dim() != 1 or q_weight_E.shape != k_weight_E.shape or q_weight_E.numel() != q_TNE.shape[2]:
        raise misfit("qk_norm_rope needs weights (E,) for q (T,N,E)", q=q_TNE, q_weight=q_weight_E, k_weight=k_weight_E)
    return dispatch("qk_norm_rope", q_TNE, k_TKE, q_weight_E, k_weight_E, cos_TE, sin_TE, eps, offset, backend=backend)


def _in_turn(norm: Callable[..., Tensor], turn: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the implementation that runs the two ops one after the other."""

    def run(
        q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        return turn(norm(q, q_weight, eps, offset=offset), norm(k, k_weight, eps, offset=offset), cos, sin)

    return run


qk_norm_rope_reference = _in_turn(rms_norm_reference, rope_reference)
qk_norm_rope_composed = _in_turn(rms_norm, rope)


_FWD = kernel_op(
    "qk_norm_rope_fwd(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, Tensor cos, Tensor sin, float eps, float offset=0.0) -> (Tensor, Tensor)",
    "qk_norm_rope:qk_norm_rope_fwd",
    lambda q, k, q_weight, k_weight, cos, sin, eps, offset=0.0: (q.new_empty(q.shape), k.new_empty(k.shape)),
)


def _gradients(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, q_grad: Tensor, k_grad: Tensor,
    eps: float, offset: float = 0.0, weight_grads: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    width = q.shape[-1] if weight_grads else 0
    return q.new_empty(q.shape), k.new_empty(k.shape), q_weight.new_empty(width), k_weight.new_empty(width)


_BWD = kernel_op(
    "qk_norm_rope_bwd(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, Tensor cos, Tensor sin, Tensor q_grad, Tensor k_grad,"
    " float eps, float offset=0.0, bool weight_grads=True) -> (Tensor, Tensor, Tensor, Tensor)",
    "qk_norm_rope:qk_norm_rope_bwd",
    _gradients,
)


class _QKNormRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, eps: float, offset: float
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(q, k, q_weight, k_weight, cos, sin)
        ctx.eps, ctx.offset = eps, offset
        return _FWD(q, k, q_weight, k_weight, cos, sin, eps, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_wanted, k_wanted = ctx.needs_input_grad[2:4]
        # No generator: Dynamo traces this again where a stride stops it, and finds the generator still running.
        both = unit_stride(grads[0]), unit_stride(grads[1])
        dq, dk, dq_weight, dk_weight = _BWD(*ctx.saved_tensors, *both, ctx.eps, ctx.offset, q_wanted or k_wanted)
        return dq, dk, dq_weight if q_wanted else None, dk_weight if k_wanted else None, *(None,) * 4


def qk_norm_rope_triton(*call: Any) -> tuple[Tensor, Tensor]:
    """One launch forward; one and a short sum backward. Nothing is kept beside the inputs."""
    return _FWD(*call) if unrecorded(*call[:4]) else _QKNormRope.apply(*call)


def _triton_supports(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, *constants: float) -> bool | str:
    problem = rope_refusal(q, k, cos, sin)
    if problem is not None:
        return problem
    if cos.shape[1] != q.shape[-1]:
        return f"a table of {cos.shape[1]} columns turns a part of {q.shape[-1]} dimensions: norm and rotation run apart"
    for weight in (q_weight, k_weight):
        if weight.dtype != q.dtype or tuple(weight.shape) != (q.shape[-1],):
            return f"heads are {q.dtype} of {q.shape[-1]}, a weight is {weight.dtype} {tuple(weight.shape)}"
    return triton_refusal(q, q_weight, k_weight) or True


def _triton_trusted(q: Tensor, *others: Any) -> bool | str:
    return triton_distrust("qk_norm_rope", q) or True


QK_NORM_ROPE_TRITON = Implementation("triton", qk_norm_rope_triton, _triton_supports, _triton_trusted)
QK_NORM_ROPE_COMPOSED = Implementation("composed", qk_norm_rope_composed)
QK_NORM_ROPE_REFERENCE = Implementation("reference", qk_norm_rope_reference)
