"""Attention of a few new rows against a long cache, its keys split over the device: ``triton_decode`` on the ladder of ``attention``.

It stands before the kernel that splits rows only: a single row leaves all but a few multiprocessors of a GPU idle there. Choosing it, and
the number of parts, takes lengths that the host knows and nothing else, so a decoding step can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...spec import Segments
from ..dispatch import Implementation
from ..library import kernel_op
from ..triton_gate import triton_distrust, triton_refusal
from .call import AttentionCall

NAME = "triton_decode"

MOST_ROWS = 16
"""Query rows of a segment."""

LONG_KEYS = 512
"""Keys from which on ``auto`` prefers it: shorter segments would not be split."""

WIDEST_HEAD = 256

ATTENTION_DECODE = kernel_op(
    "attention_decode(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, SymInt longest_q, bool even, bool causal, float scale, "
    "SymInt? window, float? softcap, SymInt[] visible, SymInt parts=0) -> (Tensor, Tensor)",
    "attention_decode:attention_decode",
    lambda q, k, v, cu_q, cu_k, longest_q, even, causal, scale, window, softcap, visible, parts=0: (
        q.new_empty(q.shape),
        q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32),
    ),
)


def visible_lengths(segments: Segments, window: int | None) -> list[int]:
    """Return how many keys the rows of each segment see between them."""
    pairs = zip(segments.lengths_q, segments.lengths_k)
    return [0 if not len_q else len_k if window is None else min(len_k, window + len_q - 1) for len_q, len_k in pairs]


def attention_triton_decode(call: AttentionCall) -> Tensor | tuple[Tensor, Tensor]:
    """Run the split kernel; ``(out_TNE, lse_TN)`` with ``return_lse``."""
    segments = call.segments
    even = len(set(segments.lengths_q)) == 1 and sum(segments.lengths_q) == call.q_TNE.shape[0]
    out_TNE, lse_NT = ATTENTION_DECODE(
        *call[:3], segments.cu_q, segments.cu_k, segments.max_q, even, call.causal, call.scale, call.window, call.softcap,
        visible_lengths(segments, call.window),
    )  # fmt: skip
    return (out_TNE, lse_NT.t()) if call.return_lse else out_TNE


def decode_refusal(call: AttentionCall) -> str | None:
    """Return why no kernel that splits keys can take the call, or None: what binds all of them."""
    q, k, v, segments = call[:4]
    if segments.max_q > MOST_ROWS:
        found = "too many" if torch.compiler.is_compiling() else segments.max_q  # a number that is read there is guarded
        return f"a segment of {found} query rows: it splits the keys of at most {MOST_ROWS}"
    if call.wants_gradient:
        return "it has no backward, and a gradient is asked for"
    if k.dtype != q.dtype or v.dtype != q.dtype:
        return f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: they must agree"
    if call.scale <= 0:
        return f"a scale of {call.scale}: it takes one above 0"
    return call.refusal_beyond("window", "softcap", "return_lse")


def too_short(call: AttentionCall) -> str | None:
    """Return why ``auto`` splits no keys of the call, or None."""
    longest = max(visible_lengths(call.segments, call.window), default=0)
    if longest >= LONG_KEYS:
        return None
    return f"at most {longest} visible keys a segment: splitting pays from {LONG_KEYS} on"


def _supports(call: AttentionCall) -> bool | str:
    if not 0 < call.q_TNE.shape[-1] <= WIDEST_HEAD:
        return f"heads of {call.q_TNE.shape[-1]}: it takes 1 to {WIDEST_HEAD}"
    return decode_refusal(call) or triton_refusal(*call[:3], aligned=3) or True


def _trusted(call: AttentionCall) -> bool | str:
    return too_short(call) or triton_distrust("attention", call.q_TNE, NAME) or True


ATTENTION_TRITON_DECODE = Implementation(NAME, attention_triton_decode, _supports, _trusted)
