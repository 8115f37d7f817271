"""Packed attention: every segment attends to itself, no padding, no ``T x T`` mask.

``reference`` is the formula in fp32, one segment at a time. ``torch`` gives each run of equal-length segments to
``scaled_dot_product_attention``; with a window, one chunk of queries at a time with only the keys that the chunk may see. Both walk
host lengths, so neither asks the device for anything. The kernels stand in ``attention_cuda.py`` and ``attention_triton.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...spec import LmmError, Segments
from ..activations import softcapped
from ..autocast import as_autocast_has_them, without_autocast
from ..call_checks import require_segments
from ..dispatch import Implementation, dispatch
from .call import AttentionCall
from .cuda import attention_cuda, cuda_supports, cuda_trusted
from .triton import attention_triton, triton_supports, triton_trusted

WINDOW_ROWS = 128
"""Fewest queries of one call with a window: shorter chunks read fewer hidden keys, but make more calls."""


def attention(
    q_TNE: Tensor,
    k_TKE: Tensor,
    v_TKE: Tensor,
    segments: Segments,
    *,
    causal: bool = True,
    kv_end: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Any:
    """Softmax attention within each packed segment.

    Args:
        q_TNE: queries ``(T_q, N, E)``, of one floating-point dtype with keys and values. Autocast makes its own of all three, but for fp64.
        k_TKE: keys ``(T_k, K, E)`` with ``N % K == 0`` (grouped-query attention).
        v_TKE: values, shape of the keys.
        segments: boundaries; ``len_q != len_k`` is aligned bottom-right (the last query sees the last key).
        causal: a query sees keys up to its own place; False: the whole segment.
        kv_end: int32 ``(T_q,)`` packed key index one past the last key each query sees; overrides ``causal``.
        scale: default ``E ** -0.5``.
        window: a query sees no key older than the newest ``window`` up to its own place, itself included; None = all. What it sees ahead
            of itself is up to ``causal`` and ``kv_end``.
        softcap: scores become ``softcap * tanh(scores / softcap)`` before the softmax (Gemma 2).
        return_lse: also return the logarithm of the sum that the softmax divides by.
        backend: ``auto`` or the name of an implementation.

    Returns:
        ``out_TNE``, dtype of ``q`` (under autocast its own, as torch's attention has it); rows that see no key are zero. With ``return_lse`` a
        pair ``(out_TNE, lse_TN)``, ``lse`` natural and in fp32 (fp64 for fp64), ``-inf`` for rows that see no key.

    Raises:
        LmmError: shapes or dtypes that don't fit together, lengths that aren't ``Segments``, or a forced backend that refuses.
    """
    scale = q_TNE.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = as_autocast_has_them(q_TNE, k_TKE, v_TKE)
    call = AttentionCall(q, k, v, segments, causal, kv_end, scale, window, softcap, return_lse)
    _check(call)
    result = dispatch("attention", call, backend=backend)
    if return_lse and isinstance(result, Tensor):
        raise LmmError("attention: an implementation that returns no lse must refuse return_lse in its supports")
    return result


def _check(call: AttentionCall) -> None:
    q, k, v, segments = call[:4]
    require_segments("attention", "segments", segments)
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or q.shape[-1] != k.shape[-1]:
        raise LmmError(f"attention needs q (T,N,E) and equal k, v (T,K,E): found {[tuple(x.shape) for x in (q, k, v)]}")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        found = [str(x.dtype) for x in (q, k, v)]
        raise LmmError(f"attention needs q, k, v of one floating-point dtype: found {found}: cast them to one dtype, as k.to(q.dtype)")
    if q.shape[1] % k.shape[1]:
        raise LmmError(f"attention: {q.shape[1]} query heads are not a multiple of {k.shape[1]} kv heads")
    compiling = torch.compiler.is_compiling()  # host lengths that are read there are guarded: every packing would be compiled anew
    if not compiling and (q.shape[0] < sum(segments.lengths_q) or k.shape[0] < sum(segments.lengths_k)):
        rows = (q.shape[0], k.shape[0])
        raise LmmError(f"attention: segments need {sum(segments.lengths_q)} q and {sum(segments.lengths_k)} k rows, found {rows}")
    if call.kv_end is not None and call.kv_end.shape != (q.shape[0],):
        raise LmmError(f"attention: kv_end must be ({q.shape[0]},), one per query row, found {tuple(call.kv_end.shape)}")
    if (call.window is not None and call.window < 1) or (call.softcap is not None and call.softcap <= 0):
        raise LmmError(f"attention: window and softcap must be above 0 or None, found window={call.window}, softcap={call.softcap}")


def visible_keys(places_Q: Tensor, keys_K: Tensor, causal: bool, ends_Q: Tensor | None, window: int | None) -> Tensor | None:
    """Return which keys of a segment some of its queries see.

    Args:
        places_Q: index of the key at each query's own place.
        keys_K: indices of the keys.
        causal: see :func:`attention`.
        ends_Q: index one past the last visible key of each query, instead of ``causal``.
        window: see :func:`attention`.

    Returns:
        bool ``(Q, K)``, or None when every key is visible.
    """
    mask = None
    if ends_Q is not None:
        mask = keys_K[None, :] < ends_Q[:, None]
    elif causal:
        mask = keys_K[None, :] <= places_Q[:, None]
    if window is None:
        return mask
    near = keys_K[None, :] > places_Q[:, None] - window
    return near if mask is None else mask & near


def _segment_starts(segments: Segments) -> Iterator[tuple[int, int, int, int]]:
    q_start = k_start = 0
    for len_q, len_k in zip(segments.lengths_q, segments.lengths_k):
        yield q_start, k_start, len_q, len_k
        q_start, k_start = q_start + len_q, k_start + len_k


def attention_reference(call: AttentionCall) -> Tensor | tuple[Tensor, Tensor]:
    """``softmax(softcapped(q k^T * scale)) v`` per segment in fp32 (fp64 stays fp64): the specification."""
    q_TNE, device = call.q_TNE, call.q_TNE.device
    wide = torch.promote_types(q_TNE.dtype, torch.float32)
    outputs: list[Tensor] = []
    sums = [q_TNE.new_empty(0, q_TNE.shape[1], dtype=wide)]
    for q_start, k_start, len_q, len_k in _segment_starts(call.segments):
        q = q_TNE[q_start : q_start + len_q].to(wide).transpose(0, 1)
        own = (x[k_start : k_start + len_k].to(wide) for x in (call.k_TKE, call.v_TKE))
        k, v = (x.repeat_interleave(call.group, 1).transpose(0, 1) for x in own)
        with without_autocast(device):
            scores = softcapped(q @ k.transpose(1, 2) * call.scale, call.softcap)
        ends = None if call.kv_end is None else call.kv_end[q_start : q_start + len_q] - k_start
        places, keys = torch.arange(len_k - len_q, len_k, device=device), torch.arange(len_k, device=device)
        mask = visible_keys(places, keys, call.causal, ends, call.window)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = torch.nan_to_num(scores.softmax(-1)) if len_k else scores
        with without_autocast(device):
            outputs.append((weights @ v).transpose(0, 1).to(q_TNE.dtype))
        if call.return_lse:
            sums.append(scores.logsumexp(-1).t())
    out_TNE = call.joined(outputs)
    return (out_TNE, _lse_with_slack(sums, q_TNE)) if call.return_lse else out_TNE


def attention_torch(call: AttentionCall) -> Tensor:
    """``scaled_dot_product_attention`` over runs of equal-length segments."""
    outputs = []
    for first, k_first, len_q, len_k, count in _runs(call.segments, together=call.kv_end is None):
        q, k, v = (
            x.narrow(0, start, count * n).unflatten(0, (count, n)).transpose(1, 2)
            for x, start, n in zip(call[:3], (first, k_first, k_first), (len_q, len_k, len_k))
        )
        ends = None if call.kv_end is None else call.kv_end[first : first + len_q] - k_first
        near = call.window if call.window is not None and call.window < len_k else None
        out = _chunked(q, k, v, call.causal, ends, call.scale, near)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return call.joined(outputs)


def _chunked(q: Tensor, k: Tensor, v: Tensor, causal: bool, ends_Q: Tensor | None, scale: float, window: int | None) -> Tensor:
    """Attention of equal segments ``(B, N, L, E)``: at once, or with a window in chunks of queries and the keys that they may see."""
    len_q, len_k, grouped = q.shape[2], k.shape[2], q.shape[1] != k.shape[1]
    rows, shift = len_q if window is None else max(window, WINDOW_ROWS), len_k - len_q
    parts = []
    for first in range(0, len_q, rows):
        last = min(first + rows, len_q)
        low = 0 if window is None else max(0, first + shift - window + 1)
        high = last + shift if causal and ends_Q is None else len_k
        square = causal and ends_Q is None and window is None and not shift
        mask = None
        if not square and not (last - first == 1 and ends_Q is None):
            places, keys = torch.arange(first + shift, last + shift, device=q.device), torch.arange(low, high, device=q.device)
            mask = visible_keys(places, keys, causal, None if ends_Q is None else ends_Q[first:last], window)
        q_part, k_part, v_part = q[:, :, first:last], k[:, :, low:high], v[:, :, low:high]
        parts.append(F.scaled_dot_product_attention(q_part, k_part, v_part, mask, is_causal=square, scale=scale, enable_gqa=grouped))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _runs(segments: Segments, *, together: bool) -> list[tuple[int, int, int, int, int]]:
    """Return (first q row, first k row, len_q, len_k, segments) of batched calls: neighbours of equal lengths, or each segment alone."""
    runs: list[tuple[int, int, int, int, int]] = []
    for q_start, k_start, len_q, len_k in _segment_starts(segments):
        if together and runs and runs[-1][2:4] == (len_q, len_k):
            runs[-1] = (*runs[-1][:4], runs[-1][4] + 1)
        else:
            runs.append((q_start, k_start, len_q, len_k, 1))
    return runs


def _lse_with_slack(sums: list[Tensor], q_TNE: Tensor) -> Tensor:
    """Join the segments; rows after the last one see no key."""
    lse_TN = torch.cat(sums)
    return F.pad(lse_TN, (0, 0, 0, q_TNE.shape[0] - lse_TN.shape[0]), value=float("-inf"))


def _torch_supports(call: AttentionCall) -> bool | str:
    problem, lengths = call.refusal_beyond("kv_end", "window"), (call.segments.lengths_q, call.segments.lengths_k)
    if problem is not None:
        return problem
    if any(0 in side for side in lengths):
        return "a segment of length 0"
    if call.kv_end is not None:
        on_gpu = call.q_TNE.device.type == "cuda"
        return "kv_end may hide every key of a row, which SDPA returns as NaN" if on_gpu else True
    if call.causal and any(len_q > len_k for len_q, len_k in zip(*lengths)):
        return "a segment with more queries than keys has rows that see no key, which SDPA returns as NaN"
    return True


ATTENTION_CUDA = Implementation("cuda", attention_cuda, cuda_supports, cuda_trusted)
ATTENTION_TRITON = Implementation("triton", attention_triton, triton_supports, triton_trusted)
ATTENTION_TORCH = Implementation("torch", attention_torch, _torch_supports)
ATTENTION_REFERENCE = Implementation("reference", attention_reference)
