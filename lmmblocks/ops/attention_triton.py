"""Packed attention in Triton: the step on the ladder of ``attention`` that takes every mask, forward and backward.

Both kernels find segments on the device; the host's lengths only say how long the longest is and whether all are alike, so that no call
waits for the device and a graph may be captured. The gradient of ``lse`` is a gradient like any other: it is subtracted from
``rowsum(dO * O)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..spec import Segments
from .attention_call import AttentionCall
from .library import kernel_op
from .triton_gate import misalignment, triton_distrust, triton_refusal

WIDEST_HEAD = 256
"""Head dim of the widest tile in the launch tables."""

_FWD = kernel_op(
    "attention_fwd(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, Tensor? kv_end, SymInt longest_q, bool even, bool causal, "
    "float scale, SymInt? window, float? softcap) -> (Tensor, Tensor)",
    "attention_forward:attention_fwd",
    lambda q, *_: (q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)),
)
_BWD = kernel_op(
    "attention_bwd(Tensor grad, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu_q, Tensor cu_k, "
    "Tensor? kv_end, SymInt longest_q, SymInt longest_k, bool even, bool causal, float scale, SymInt? window, float? softcap) "
    "-> (Tensor, Tensor, Tensor)",
    "attention_backward:attention_bwd",
    lambda grad, grad_lse, q, k, v, *_: tuple(x.new_empty(x.shape) for x in (q, k, v)),
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor | None, kv_end: Tensor | None,
        longest: tuple[int, int], even: bool, mask: tuple[bool, float, int | None, float | None],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        cu_k = cu_q if cu_k is None else cu_k
        out, lse = _FWD(q, k, v, cu_q, cu_k, kv_end, longest[0], even, *mask)
        ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_k, kv_end)
        ctx.longest, ctx.even, ctx.mask = longest, even, mask
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None and grad_lse is None:
            return (None,) * 9
        q, k, v, out, lse, *rest = ctx.saved_tensors
        grad = torch.zeros_like(out) if grad is None else _readable(grad)
        return (
            *_BWD(grad, grad_lse, q, k, v, out, lse, *rest, *ctx.longest, ctx.even, *ctx.mask),
            *(None,) * 6,
        )


def _readable(grad: Tensor) -> Tensor:
    """The gradient; a copy where its rows can't be read 16 bytes at a time (a broadcast gradient of a sum has strides of 0)."""
    return grad if grad.stride(-1) == 1 and misalignment(grad) is None else grad.contiguous()


def attention_triton(call: AttentionCall) -> Tensor | tuple[Tensor, Tensor]:
    """All segments in one launch forward and three backward; neither scores nor a mask are kept."""
    q, k, v, segments = call[:4]
    # torch.compile refuses a function that is given one tensor twice: no cu_k stands for that of the queries.
    cu_k = None if segments.cu_k is segments.cu_q else segments.cu_k
    out, lse_NT = _Attention.apply(
        q, k, v, segments.cu_q, cu_k, call.kv_end, (segments.max_q, segments.max_k),
        _are_even(segments, q.shape[0], k.shape[0]), (call.causal, call.scale, call.window, call.softcap),
    )  # fmt: skip
    return (out, lse_NT.t()) if call.return_lse else out


def _are_even(segments: Segments, rows_q: int, rows_k: int) -> bool:
    """Whether all segments have one length, on either side, and no rows are left over: the kernels then need not search.

    In compiled code each host length that is read is guarded, and another packing is compiled again: there only ``segments.even`` counts.
    """
    if segments.even or torch.compiler.is_compiling():
        count = segments.cu_q.shape[0] - 1
        return segments.even and rows_q == count * segments.max_q and rows_k == count * segments.max_k
    sides = ((segments.lengths_q, rows_q), (segments.lengths_k, rows_k))
    return all(sum(lengths) == rows and len(set(lengths)) <= 1 for lengths, rows in sides)


def triton_supports(call: AttentionCall) -> bool | str:
    """Return True, or why the kernels can't take the call."""
    q, k, v, segments, kv_end = call.q_TNE, call.k_TKE, call.v_TKE, call.segments, call.kv_end
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}: cast them to one dtype"
    if q.shape[-1] > WIDEST_HEAD:
        return f"a head dim of {q.shape[-1]} is above {WIDEST_HEAD}"
    if call.scale <= 0:
        return f"a scale of {call.scale} is not above 0"
    if kv_end is not None and (kv_end.dtype not in (torch.int32, torch.int64) or not kv_end.is_contiguous()):
        return f"kv_end must be contiguous int32 or int64, found {kv_end.dtype} with strides {kv_end.stride()}"
    return triton_refusal(q, k, v, segments.cu_q, segments.cu_k, kv_end) or misalignment(q, k, v) or True


def triton_trusted(call: AttentionCall) -> bool | str:
    """Return True, or why ``auto`` passes the kernels by."""
    return triton_distrust("attention", call.q_TNE) or True
