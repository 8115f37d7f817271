"""Packed attention in Triton: the step on the ladder of ``attention`` that takes every mask, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ..constant import constant
from ..triton_gate import shared_refusal, triton_distrust, triton_refusal
from .autograd import are_even, attend, define_kernels, refusal_of_both
from .call import AttentionCall

WIDEST_HEAD = 256
"""Head dim of the widest tile in the launch tables."""

_MASK = "bool even, bool causal, float scale, SymInt? window, float? softcap"

define_kernels(
    "triton",
    "",
    ("attention_forward:attention_fwd", "attention_backward:attention_bwd"),
    (f"SymInt longest_q, {_MASK}", f"SymInt longest_q, SymInt longest_k, {_MASK}"),
)


def attention_triton(call: AttentionCall) -> Tensor | tuple[Tensor, Tensor]:
    """All segments in one launch forward and three backward; neither scores nor a mask are kept."""
    segments = call.segments
    even = are_even(segments, call.q_TNE.shape[0], call.k_TKE.shape[0])
    mask = (even, call.causal, call.scale, call.window, call.softcap)
    return attend("triton", call, (segments.max_q, *mask), (segments.max_q, segments.max_k, *mask))


def triton_supports(call: AttentionCall) -> bool | str:
    """Return True, or why the kernels can't take the call."""
    if call.q_TNE.shape[-1] > WIDEST_HEAD:
        return f"a head dim of {call.q_TNE.shape[-1]} is above {WIDEST_HEAD}"
    tensors = (*call[:3], call.segments.cu_q, call.segments.cu_k, call.kv_end)
    problem = refusal_of_both(call) or triton_refusal(*tensors, aligned=3)
    return problem or tiles_refusal(call.q_TNE.shape[-1], call.q_TNE.dtype, call.wants_gradient, call.q_TNE.device) or True


@constant
def tiles_refusal(width: int, dtype: torch.dtype, gradient: bool, device: torch.device) -> str | None:
    """Return that a kernel's shared memory doesn't fit the device, the backward's too where a gradient is wanted, or None."""
    from ...kernels.attention_tiles import tiles_for
    from ...kernels.device import capability

    tiles = tiles_for(width, dtype, capability(device))
    forward = shared_refusal(tiles.forward_bytes, device, f"attention of heads of {width}")
    return forward or (shared_refusal(tiles.backward_bytes, device, f"the gradient of heads of {width}") if gradient else None)


def triton_trusted(call: AttentionCall) -> bool | str:
    """Return True, or why ``auto`` passes the kernels by."""
    return triton_distrust("attention", call.q_TNE) or True
