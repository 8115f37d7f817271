"""Packed attention in CUDA (``csrc/attention``): Python allocates what the launchers write; a row that sees no key is their zero.

CTAs start the longest tiles of rows first, by a list made of host lengths, which one copy from pinned memory brings to the device for all layers of
a batch. In compiled code and in a captured graph, which serve other lengths too, each CTA looks at the boundaries instead; where all segments are
alike it divides, but not in a captured graph, which doesn't know that they still are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.device import capturing
from ...spec.segments import on_device
from ..constant import constant
from ..cuda_gate import check, cuda_distrust, cuda_refusal, extension, launcher, pointers, raw_stream
from ..triton_gate import ALIGNMENT_BYTES, shared_refusal
from .autograd import are_even, attend, define_kernels, refusal_of_both
from .call import AttentionCall
from .decode_cuda_launch import DTYPES

WIDTHS = (64, 128)
"""Head dims the kernels are compiled for."""

_BOUNDS = "cu_q cu_k kv_end"
_STRIDES = "q_row q_head k_row k_head v_row v_head"
_SHAPE = "heads kv_heads head_dim mask dtype device scale stream"
FORWARD = f"q k v out lse {_BOUNDS} tiles {_STRIDES} rows_q tile_count longest_q even segments {_SHAPE}"
BACKWARD = (
    f"q k v out grad lse grad_lse dq dk dv {_BOUNDS} workspace workspace_bytes {_STRIDES} grad_row grad_head grad_lse_row grad_lse_head "
    f"rows_q rows_k segments {_SHAPE}"
)
"""Arguments of the launchers, as the structs of csrc/attention/attention.h list them."""

LISTS_KEPT = 8
"""Batches whose tiles are remembered: those between whose layers another one runs."""

define_kernels(
    "cuda",
    "_cuda",
    (f"{__name__}:attention_fwd", f"{__name__}:attention_bwd"),
    ("int[] lengths_q, int[] lengths_k, SymInt longest_q, bool even, bool causal, float scale", "bool causal, float scale"),
)


def attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, kv_end: Tensor | None,
    lengths_q: list[int], lengths_k: list[int], longest_q: int, even: bool, causal: bool, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the forward.

    Args:
        q: ``(T_q, N, E)``, last stride 1, rows and heads on 16 bytes.
        k: ``(T_k, K, E)``, likewise.
        v: shape of ``k``.
        cu_q: int32 ``(S + 1,)``.
        cu_k: int32 ``(S + 1,)``.
        kv_end: int32 ``(T_q,)`` or None.
        lengths_q: of the segments, on the host; none: tiles start in the order of their rows.
        lengths_k: likewise.
        longest_q: rows of the longest segment.
        even: all segments have that many and leave no slack.
        causal: without ``kv_end``: a row sees keys up to its own place.
        scale: of the scores, above 0.

    Returns:
        ``out (T_q, N, E)`` and fp32 ``lse (N, T_q)``, contiguous.
    """
    q, k, v, device = _aligned(q), _aligned(k), _aligned(v), q.device
    rows, heads, width = q.shape
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(heads, rows, dtype=torch.float32)
    mask, segments = _mask(causal, kv_end), cu_q.shape[0] - 1
    tiles = _tiles(lengths_q, lengths_k, rows, mask, device)
    code = launcher("attention_forward", device, FORWARD)(
        *pointers(q, k, v, out, lse, cu_q, cu_k, kv_end, tiles), *_strides(q, k, v),
        rows, 0 if tiles is None else tiles.shape[0] // 2, longest_q, int(even and not capturing(device)), segments,
        heads, k.shape[1], width, mask, DTYPES[q.dtype], device.index or 0, scale, raw_stream(device),
    )  # fmt: skip
    check(code, "attention_forward")
    return out, lse


def attention_bwd(
    grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    cu_q: Tensor, cu_k: Tensor, kv_end: Tensor | None, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the two kernels of the backward.

    Args:
        grad: gradient of ``out``, last stride 1, rows and heads on 16 bytes.
        grad_lse: fp32 ``(N, T_q)`` gradient of ``lse``, any strides, or None.
        q: of the forward, like every argument not named here.
        k: of the forward.
        v: of the forward.
        out: what the forward returned.
        lse: what the forward returned.
        cu_q: of the forward.
        cu_k: of the forward.
        kv_end: of the forward.
        causal: of the forward.
        scale: of the forward.

    Returns:
        Gradients of ``q, k, v``, contiguous, in their dtypes.
    """
    q, k, v, grad, device = _aligned(q), _aligned(k), _aligned(v), _aligned(grad), q.device
    (rows, heads, width), segments = q.shape, cu_q.shape[0] - 1
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    needed = extension(device).attention_backward_workspace(rows, segments, heads, width)
    workspace = q.new_empty(needed, dtype=torch.uint8)
    lse_head, lse_row = (0, 0) if grad_lse is None else grad_lse.stride()
    code = launcher("attention_backward", device, BACKWARD)(
        *pointers(q, k, v, out, grad, lse, grad_lse, dq, dk, dv, cu_q, cu_k, kv_end, workspace), needed, *_strides(q, k, v, grad), lse_row, lse_head,
        rows, k.shape[0], segments, heads, k.shape[1], width, _mask(causal, kv_end), DTYPES[q.dtype], device.index or 0, scale, raw_stream(device),
    )  # fmt: skip
    check(code, "attention_backward")
    return dq, dk, dv


def _strides(*tensors: Tensor) -> list[int]:
    """Of rows and heads. Nothing lies after the stride of a dimension of one: torch lets it be any number."""
    found = []
    for tensor in tensors:
        (rows, heads, _), (row, head, _) = tensor.shape, tensor.stride()
        found += [row if rows > 1 else 0, head if heads > 1 else 0]
    return found


def _aligned(x: Tensor) -> Tensor:
    """Return the tensor, or a copy if its data doesn't start on 16 bytes.

    ``supports`` refuses such tensors, but compiled code chose this kernel before it knew their addresses.
    """
    return x if x.data_ptr() % ALIGNMENT_BYTES == 0 else x.clone(memory_format=torch.contiguous_format)


def _mask(causal: bool, kv_end: Tensor | None) -> int:
    """As ``AttentionMask`` in csrc/attention/attention.h numbers them."""
    return 2 if kv_end is not None else int(causal)


def _tiles(lengths_q: Sequence[int], lengths_k: Sequence[int], rows: int, mask: int, device: torch.device) -> Tensor | None:
    """The list of tiles on the device; None where it can't be, or must not be, copied there."""
    if not lengths_q or capturing(device):
        return None  # what is copied while a graph is captured is there only when it is replayed
    return _listed(tuple(lengths_q), tuple(lengths_k), rows, mask, device, raw_stream(device))


@functools.lru_cache(LISTS_KEPT)
def _listed(lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], rows: int, mask: int, device: torch.device, stream: int) -> Tensor:
    """Made once for all layers; for each stream of its own, so that it is there, and its memory still its own, for whoever comes later on it."""
    return on_device(extension(device).attention_tiles(lengths_q, lengths_k, rows, mask), device)


def attention_cuda(call: AttentionCall) -> Tensor | tuple[Tensor, Tensor]:
    """All segments in one launch forward and two backward; neither scores nor a mask are kept."""
    segments, mask = call.segments, (call.causal, call.scale)
    even = are_even(segments, call.q_TNE.shape[0], call.k_TKE.shape[0])
    listed = not even and not torch.compiler.is_compiling()  # host lengths that are read there are guarded
    lengths = (segments.lengths_q, segments.lengths_k) if listed else ((), ())
    return attend("cuda", call, (*lengths, segments.max_q, even, *mask), mask)


def cuda_supports(call: AttentionCall) -> bool | str:
    """Return True, or why the kernels can't take the call."""
    if call.q_TNE.shape[-1] not in WIDTHS:
        return f"heads of {call.q_TNE.shape[-1]}: it is compiled for {' and '.join(map(str, WIDTHS))}"
    places = (call.segments.cu_q, call.segments.cu_k, call.kv_end)
    problem = call.refusal_beyond("kv_end", "return_lse") or refusal_of_both(call) or cuda_refusal(*call[:3], *places, aligned=3)
    if problem is None and call.wants_gradient:
        problem = backward_refusal(call.q_TNE.shape[-1], call.q_TNE.device)
    return problem or places_refusal(places) or True


def places_refusal(places: Sequence[Tensor | None]) -> str | None:
    """Return that boundaries or ends aren't as the kernels read them, or None."""
    for tensor in places:
        if tensor is not None and (tensor.dtype != torch.int32 or not tensor.is_contiguous()):
            return "boundaries and kv_end must be contiguous int32"
    return None


@constant
def backward_refusal(width: int, device: torch.device) -> str | None:
    """Return that the backward's shared memory doesn't fit the device, which the forward's always does, or None."""
    return shared_refusal(extension(device).attention_backward_shared(width), device, f"the gradient of heads of {width}")


def cuda_trusted(call: AttentionCall) -> bool | str:
    """Return True, or why ``auto`` passes the kernels by."""
    return cuda_distrust("attention", call.q_TNE) or True
