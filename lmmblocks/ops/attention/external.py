"""Attention of other packages on the ladder of ``attention``: flash-attn, torch's own FlashAttention, cuDNN, xFormers.

They stand after our kernels and before ``torch`` (``ops/ladders.py``). Each says in ``supports`` what it can't do, so that
``auto`` never meets an error of theirs inside a model; a package is imported when a call on a CUDA device first asks for it, and one that
is there but doesn't import (built for another torch) is a reason like any other. They are proven by their own projects: ``auto`` takes them.

None of them takes ``kv_end``, and all are given only the rows that the segments own: FlashAttention leaves the rest of its outputs and
gradients unwritten. Where a package lets us choose, the gradients are deterministic.

Sources: Dao, "FlashAttention-2", arXiv 2307.08691; ``flash_attn/flash_attn_interface.py`` and ``hopper/flash_attn_interface.py`` of
Dao-AILab/flash-attention; ``xformers/ops/fmha/attn_bias.py``; ``torch/nn/attention/varlen.py``.
"""

from __future__ import annotations

import functools
import importlib
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...spec import first_line
from ..constant import constant
from ..dispatch import Implementation
from .call import AttentionCall
from .reference import attention_torch

OLDEST_CAPABILITY = (8, 0)
WIDEST_HEAD = 256
HALVES = (torch.float16, torch.bfloat16)


def _sides(call: AttentionCall) -> tuple[int, int]:
    """Return how many keys a query sees behind and ahead of its own, as FlashAttention counts them; -1 = all."""
    return (-1 if call.window is None else call.window - 1), (0 if call.causal else -1)


def _flash_attn(call: AttentionCall) -> Tensor:
    """``flash_attn_varlen_func`` of FlashAttention-3 where it is installed and the device is a Hopper, else of FlashAttention-2."""
    segments = call.segments
    out = _flash_function(call.q_TNE.device)(
        *call.owned(),
        segments.cu_q,
        segments.cu_k,
        max_seqlen_q=segments.max_q,
        max_seqlen_k=segments.max_k,
        softmax_scale=call.scale,
        causal=call.causal,
        window_size=_sides(call),
        softcap=call.softcap or 0.0,
        deterministic=True,
    )
    return call.joined([out[0] if isinstance(out, tuple) else out])


def _sdpa_flash(call: AttentionCall) -> Tensor:
    """The FlashAttention-2 inside torch, on packed rows; torch derives its backward."""
    segments, (left, right) = call.segments, _sides(call)
    windowed = left >= 0
    out = _varlen_of_torch()(
        *call.owned(),
        segments.cu_q,
        segments.cu_k,
        segments.max_q,
        segments.max_k,
        0.0,  # no dropout
        call.causal and not windowed,
        False,  # no weights for debugging
        scale=call.scale,
        window_size_left=left if windowed else None,
        window_size_right=right if windowed and right >= 0 else None,
    )[0]
    return call.joined([out])


def _cudnn(call: AttentionCall) -> Tensor:
    """``scaled_dot_product_attention`` on equal segments, by cuDNN alone."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return attention_torch(call)


def _xformers(call: AttentionCall) -> Tensor:
    """``memory_efficient_attention`` with a block-diagonal mask; with grouped heads, ``(1, T, K, N / K, E)``, without a backward."""
    q, k, v = call.owned()
    if call.group > 1:
        q = q.unflatten(1, (-1, call.group))
        k, v = (x[:, :, None].expand(-1, -1, call.group, -1) for x in (k, v))
    mask = _block_diagonal(call.segments.lengths_q, call.segments.lengths_k, call.causal, call.window, q.device)
    attend = _module("xformers.ops").memory_efficient_attention
    out = attend(q[None], k[None], v[None], attn_bias=mask, scale=call.scale)[0]
    return call.joined([out.flatten(1, -2)])


@functools.lru_cache(maxsize=64)
def _block_diagonal(
    lengths_q: tuple[int, ...],
    lengths_k: tuple[int, ...],
    causal: bool,
    window: int | None,
    device: torch.device,
) -> Any:
    """Return xFormers' mask; made once per set of lengths, as it copies them to the device."""
    mask = _module("xformers.ops.fmha.attn_bias").BlockDiagonalMask.from_seqlens(lengths_q, lengths_k, device=device)
    if window is not None:
        return mask.make_local_attention_from_bottomright(window)
    return mask.make_causal_from_bottomright() if causal else mask


@constant
def _module(name: str) -> Any:
    """Import a module, once; a string says why it can't be."""
    package = name.partition(".")[0]
    if find_spec(package) is None:
        return f"{package} is not installed"
    try:
        return importlib.import_module(name)
    except Exception as error:  # a package built for another torch raises whatever its loader raises
        first = first_line(error)
        return f"{package} is installed but can't be imported ({type(error).__name__}: {first}): install a build for torch {torch.__version__}"


@constant
def _flash_function(device: torch.device) -> Any:
    """Return the function to call on a device; a string says why there is none."""
    third = _module("flash_attn_interface")
    if not isinstance(third, str) and torch.cuda.get_device_capability(device)[0] == 9:
        return third.flash_attn_varlen_func
    second = _module("flash_attn")
    return second if isinstance(second, str) else getattr(second, "flash_attn_varlen_func", "flash_attn has no flash_attn_varlen_func")


def _varlen_of_torch() -> Any:
    return torch.ops.aten._flash_attention_forward.default


@constant
def _hardware_refusal(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"tensors are on {device.type}: it needs a CUDA device"
    found = torch.cuda.get_device_capability(device)
    if found < OLDEST_CAPABILITY:
        return f"compute capability {found[0]}.{found[1]} is below {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}"
    return None


def _packed_refusal(call: AttentionCall) -> str | None:
    """Return what none of them can do, or None."""
    q, k, v = call[:3]
    problem = _hardware_refusal(q.device)
    if problem is not None:
        return problem
    if q.dtype not in HALVES or k.dtype != q.dtype or v.dtype != q.dtype:
        return f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: it computes float16 and bfloat16"
    if q.shape[-1] > WIDEST_HEAD or q.shape[-1] % 8:
        return f"heads of {q.shape[-1]}: it takes multiples of 8 up to {WIDEST_HEAD}"
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        return "the last dimension of q, k or v is not contiguous"
    problem = call.refusal_beyond("window", "softcap")
    if problem is not None:
        return problem
    lengths = tuple(zip(call.segments.lengths_q, call.segments.lengths_k))
    if not lengths or min(map(min, lengths)) == 0:
        return "a segment of length 0, or none at all"
    if call.causal and any(len_q > len_k for len_q, len_k in lengths):
        return "a causal segment with more queries than keys, whose first rows see no key"
    return None


def _flash_attn_supports(call: AttentionCall) -> bool | str:
    problem = _packed_refusal(call)
    if problem is not None:
        return problem
    found = _flash_function(call.q_TNE.device)
    return found if isinstance(found, str) else True


def _sdpa_flash_supports(call: AttentionCall) -> bool | str:
    problem = _packed_refusal(call)
    if problem is not None:
        return problem
    if call.softcap is not None:
        return "torch's FlashAttention has no softcap"
    return torch.backends.cuda.is_flash_attention_available() or "this build of torch has no FlashAttention"


def _cudnn_supports(call: AttentionCall) -> bool | str:
    problem = _packed_refusal(call)
    if problem is not None:
        return problem
    lengths = set(zip(call.segments.lengths_q, call.segments.lengths_k))
    if len(lengths) > 1:
        return "segments of different lengths: SDPA would be called once for each"
    if call.window is not None or call.softcap is not None:
        return "SDPA has no softcap, and needs a mask for a window"
    len_q, len_k = lengths.pop()
    if call.causal and len_q != len_k:
        return "SDPA aligns a causal mask at the top left where queries and keys differ in number"
    count = len(call.segments.lengths_q)
    q, k, v = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in call.owned())
    params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, call.causal, q.shape[1] != k.shape[1])
    return torch.backends.cuda.can_use_cudnn_attention(params) or "torch says that cuDNN can't take this call"


def _xformers_supports(call: AttentionCall) -> bool | str:
    problem = _packed_refusal(call)
    if problem is not None:
        return problem
    for name in ("xformers.ops", "xformers.ops.fmha.attn_bias"):
        if isinstance(_module(name), str):
            return _module(name)
    # With a compiled part for another torch, its operators still import, with a warning only, and fail when they are called.
    if getattr(_module("xformers"), "_has_cpp_library", True) is False:
        return f"xformers' compiled part does not fit torch {torch.__version__}: install a build for it"
    if call.softcap is not None:
        return "xFormers has no softcap"
    if call.window is not None and not call.causal:
        return "xFormers' windows are causal"
    if torch.are_deterministic_algorithms_enabled():
        return "its backward is not deterministic, which torch.use_deterministic_algorithms asks for"
    if call.group > 1 and call.wants_gradient:
        return "its backward takes no grouped heads"
    return True


ATTENTION_FLASH_ATTN = Implementation("flash_attn", _flash_attn, _flash_attn_supports, foreign=True)
ATTENTION_SDPA_FLASH = Implementation("sdpa_flash", _sdpa_flash, _sdpa_flash_supports, foreign=True)
ATTENTION_CUDNN = Implementation("cudnn", _cudnn, _cudnn_supports, foreign=True)
ATTENTION_XFORMERS = Implementation("xformers", _xformers, _xformers_supports, foreign=True)
