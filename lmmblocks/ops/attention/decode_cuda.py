"""Attention of a few new rows against a long cache in CUDA: ``cuda_decode``, first on the ladder of ``attention``.

It takes what ``triton_decode`` takes, in 16 bits and with the head dims that it is compiled for. How long the parts of the keys are is decided on the
device, so that compiled code and a captured graph serve every length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cuda_gate import cuda_distrust, cuda_refusal
from ..dispatch import Implementation
from ..library import kernel_op
from .call import AttentionCall
from .decode import decode_refusal, too_short
from .decode_cuda_launch import WIDTHS

NAME = "cuda_decode"

ATTENTION_DECODE = kernel_op(
    "attention_decode_cuda(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, SymInt longest_q, SymInt longest_k, bool causal, "
    "float scale, SymInt? window, float? softcap, SymInt part_keys=0) -> (Tensor, Tensor)",
    "lmmblocks.ops.attention.decode_cuda_launch:packed_decode",
    lambda q, *_, **__: (q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)),
)


def attention_cuda_decode(call: AttentionCall) -> Tensor | tuple[Tensor, Tensor]:
    """Run the split kernel; ``(out_TNE, lse_TN)`` with ``return_lse``."""
    segments = call.segments
    out_TNE, lse_NT = ATTENTION_DECODE(
        *call[:3], segments.cu_q, segments.cu_k, segments.max_q, segments.max_k, call.causal, call.scale, call.window, call.softcap
    )
    return (out_TNE, lse_NT.t()) if call.return_lse else out_TNE


def _supports(call: AttentionCall) -> bool | str:
    if call.q_TNE.shape[-1] not in WIDTHS:
        return f"heads of {call.q_TNE.shape[-1]}: it is compiled for {', '.join(map(str, WIDTHS))}"
    places = (call.segments.cu_q, call.segments.cu_k)
    return decode_refusal(call) or cuda_refusal(*call[:3], *places, aligned=3) or True


def _trusted(call: AttentionCall) -> bool | str:
    return too_short(call) or cuda_distrust("attention", call.q_TNE, NAME) or True


ATTENTION_CUDA_DECODE = Implementation(NAME, attention_cuda_decode, _supports, _trusted)
