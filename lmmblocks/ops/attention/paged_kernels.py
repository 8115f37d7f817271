"""``paged_attention`` by the kernels that split keys: ``cuda`` and ``triton``, before its reference."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cuda_gate import cuda_distrust, cuda_refusal
from ..dispatch import Implementation
from ..library import kernel_op
from ..triton_gate import triton_distrust, triton_refusal
from .decode import MOST_ROWS, WIDEST_HEAD
from .decode_cuda_launch import STEP_KEYS, WIDTHS
from .paged import PagedCall

OP = "paged_attention"


def _fake(q: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


_ARGUMENTS = (
    "Tensor q, Tensor k_pages, Tensor v_pages, Tensor page_table, Tensor lengths, SymInt max_length, bool causal, float scale, "
    "SymInt? window, float? softcap, SymInt part_keys=0"
)
PAGED_CUDA = kernel_op(f"paged_attention_cuda({_ARGUMENTS}) -> (Tensor, Tensor)", "lmmblocks.ops.attention.decode_cuda_launch:paged_decode", _fake)
PAGED_TRITON = kernel_op(f"paged_attention_triton({_ARGUMENTS}) -> (Tensor, Tensor)", "attention_decode:paged_attention_decode", _fake)


def paged_attention_cuda(call: PagedCall) -> Tensor | tuple[Tensor, Tensor]:
    """Run the CUDA kernel; ``(out_TNE, lse_TN)`` with ``return_lse``."""
    return _result(call, PAGED_CUDA(*_arguments(call)))


def paged_attention_triton(call: PagedCall) -> Tensor | tuple[Tensor, Tensor]:
    """Run the Triton kernel; ``(out_TNE, lse_TN)`` with ``return_lse``."""
    return _result(call, PAGED_TRITON(*_arguments(call)))


def _arguments(call: PagedCall) -> tuple:
    return (*call[:5], call.max_length, call.causal, call.scale, call.window, call.softcap, call.part_keys or 0)


def _result(call: PagedCall, found: tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
    out_TNE, lse_NT = found
    return (out_TNE, lse_NT.t()) if call.return_lse else out_TNE


def _refusal(call: PagedCall) -> str | None:
    """Return what neither kernel takes, or None."""
    q, k, v = call[:3]
    if call.rows > MOST_ROWS:
        found = "too many" if torch.compiler.is_compiling() else call.rows
        return f"{found} query rows a sequence: it takes at most {MOST_ROWS}"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "it has no backward, and a gradient is asked for"
    if k.dtype != q.dtype or v.dtype != q.dtype:
        return f"q, k_pages, v_pages are {q.dtype}, {k.dtype}, {v.dtype}: they must agree"
    if call.scale <= 0:
        return f"a scale of {call.scale}: it takes one above 0"
    if call.page_table.stride(-1) != 1 or call.lengths.stride(0) != 1:
        return "page_table or lengths have a last stride other than 1"
    return None


def _cuda_supports(call: PagedCall) -> bool | str:
    if call.q_TNE.shape[-1] not in WIDTHS:
        return f"heads of {call.q_TNE.shape[-1]}: it is compiled for {', '.join(map(str, WIDTHS))}"
    if call.page_rows % STEP_KEYS:
        return f"pages of {call.page_rows} rows: it takes multiples of {STEP_KEYS}"
    return _refusal(call) or cuda_refusal(*call[:5], aligned=3) or True


def _triton_supports(call: PagedCall) -> bool | str:
    if not 0 < call.q_TNE.shape[-1] <= WIDEST_HEAD:
        return f"heads of {call.q_TNE.shape[-1]}: it takes 1 to {WIDEST_HEAD}"
    return _refusal(call) or triton_refusal(*call[:5], aligned=3) or True


def _cuda_trusted(call: PagedCall) -> bool | str:
    return cuda_distrust(OP, call.q_TNE) or True


def _triton_trusted(call: PagedCall) -> bool | str:
    return triton_distrust(OP, call.q_TNE) or True


PAGED_ATTENTION_CUDA = Implementation("cuda", paged_attention_cuda, _cuda_supports, _cuda_trusted)
PAGED_ATTENTION_TRITON = Implementation("triton", paged_attention_triton, _triton_supports, _triton_trusted)
