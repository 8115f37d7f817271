"""What the Triton and the CUDA attention share: ops with their shapes, autograd, and what both ask of a call.

Motivation: both families read the same tensors and return the same ones; a family differs in its launchers and in the numbers that these are given.

How it works: :func:`define_kernels` defines the two ops of a family under its name, and :class:`KernelAttention` is given the name. Segments are
found on the device; the host's lengths only say how long the longest is and whether all are alike, so that no call waits for the device and a graph
may be captured. The gradient of ``lse`` is a gradient like any other: it is subtracted from ``rowsum(dO * O)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...spec import Segments
from ..library import kernel_op, unrecorded
from ..triton_gate import misalignment
from .call import AttentionCall


class AttentionKernels(NamedTuple):
    """The ops of one family of kernels."""

    fwd: Any
    bwd: Any


KERNELS: dict[str, AttentionKernels] = {}
"""By the name of the implementation, so that compiled code holds a name and not the ops."""

_TENSORS = "Tensor q, Tensor k, Tensor v"
_BOUNDS = "Tensor cu_q, Tensor cu_k, Tensor? kv_end"


def define_kernels(name: str, suffix: str, launchers: tuple[str, str], numbers: tuple[str, str]) -> None:
    """Define the ops of a family and put them into :data:`KERNELS`.

    Args:
        name: of the implementation.
        suffix: of the ops' names.
        launchers: of the forward and the backward, as :func:`kernel_op` takes them.
        numbers: what these take after their tensors, as it stands in the ops' schemas.
    """
    fwd = kernel_op(
        f"attention_fwd{suffix}({_TENSORS}, {_BOUNDS}, {numbers[0]}) -> (Tensor, Tensor)",
        launchers[0],
        lambda q, *_: (q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)),
    )
    bwd = kernel_op(
        f"attention_bwd{suffix}(Tensor grad, Tensor? grad_lse, {_TENSORS}, Tensor out, Tensor lse, {_BOUNDS}, {numbers[1]}) "
        "-> (Tensor, Tensor, Tensor)",
        launchers[1],
        lambda grad, grad_lse, q, k, v, *_: tuple(x.new_empty(x.shape) for x in (q, k, v)),
    )
    KERNELS[name] = AttentionKernels(fwd, bwd)


class KernelAttention(torch.autograd.Function):
    """Attention by the kernels of one family: ``apply(family, q, k, v, cu_q, cu_k, kv_end, numbers, numbers_of_backward)``; see :func:`attend`."""

    @staticmethod
    def forward(
        ctx: Any, family: str, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor | None, kv_end: Tensor | None,
        numbers: tuple[Any, ...], of_backward: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        cu_k = cu_q if cu_k is None else cu_k
        out, lse = KERNELS[family].fwd(q, k, v, cu_q, cu_k, kv_end, *numbers)
        ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_k, kv_end)
        ctx.family, ctx.numbers = family, of_backward
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None and grad_lse is None:
            return (None,) * 9
        saved = ctx.saved_tensors  # asked for once: recomputed activations are given out once
        grad = torch.zeros_like(saved[3]) if grad is None else _readable(grad)
        return (None, *KERNELS[ctx.family].bwd(grad, grad_lse, *saved, *ctx.numbers), *(None,) * 5)


def _readable(grad: Tensor) -> Tensor:
    """The gradient; a copy where its rows can't be read 16 bytes at a time (a broadcast gradient of a sum has strides of 0)."""
    return grad if grad.stride(-1) == 1 and misalignment(grad) is None else grad.contiguous()


def attend(family: str, call: AttentionCall, numbers: tuple[Any, ...], of_backward: tuple[Any, ...]) -> Tensor | tuple[Tensor, Tensor]:
    """Run a call by the kernels of a family; ``(out_TNE, lse_TN)`` with ``return_lse``.

    Args:
        family: a name in :data:`KERNELS`.
        call: its tensors are passed on.
        numbers: of the forward, after its tensors.
        of_backward: likewise.
    """
    segments = call.segments
    # torch.compile refuses a function that is given one tensor twice: no cu_k stands for that of the queries.
    cu_k = None if segments.cu_k is segments.cu_q else segments.cu_k
    if unrecorded(*call[:3]):
        out, lse_NT = KERNELS[family].fwd(*call[:3], segments.cu_q, segments.cu_k, call.kv_end, *numbers)
    else:
        out, lse_NT = KernelAttention.apply(family, *call[:3], segments.cu_q, cu_k, call.kv_end, numbers, of_backward)
    return (out, lse_NT.t()) if call.return_lse else out


def are_even(segments: Segments, rows_q: int, rows_k: int) -> bool:
    """Return whether all segments have one length, on either side, and no rows are left over: the kernels then need not search.

    In compiled code each host length that is read is guarded, and another packing is compiled again: there only ``segments.even`` counts.
    """
    if segments.even or torch.compiler.is_compiling():
        count = segments.cu_q.shape[0] - 1
        return segments.even and rows_q == count * segments.max_q and rows_k == count * segments.max_k
    sides = ((segments.lengths_q, rows_q), (segments.lengths_k, rows_k))
    return all(sum(lengths) == rows and len(set(lengths)) <= 1 for lengths, rows in sides)


def refusal_of_both(call: AttentionCall) -> str | None:
    """Return why neither family can take the call, or None."""
    q, k, v, _, _, kv_end = call[:6]
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}: cast them to one dtype"
    if call.scale <= 0:
        return f"a scale of {call.scale} is not above 0"
    if kv_end is not None and (kv_end.dtype not in (torch.int32, torch.int64) or not kv_end.is_contiguous()):
        return f"kv_end must be contiguous int32 or int64, found {kv_end.dtype} with strides {kv_end.stride()}"
    return None
