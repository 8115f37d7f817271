"""Packed attention in CUDA (``csrc/attention``): Python allocates what the launchers write; a row that sees no key is their zero.

CTAs start the longest tiles of rows first, by a list made of host lengths, which one copy from pinned memory brings to the device for all layers of
a batch. In compiled code and in a captured graph, which serve other lengths too, each CTA looks at the boundaries instead; where all segments are
alike it divides, but not in a captured graph, which doesn't know that they still are.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..spec.segments import on_device
from .attention_call import AttentionCall
from .attention_kernels import are_even, attend, define_kernels, refusal_of_both
from .constant import constant
from .cuda_gate import check, cuda_distrust, cuda_refusal, extension, raw_stream
from .decode_cuda import DTYPES
from .triton_gate import ALIGNMENT_BYTES, misalignment, shared_refusal

WIDTHS = (64, 128)
"""Head dims the kernels are compiled for."""

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
    from ..kernels.device import capturing

    q, k, v = map(_aligned, (q, k, v))
    out, lse = q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    tiles = _tiles(tuple(lengths_q), tuple(lengths_k), q.shape[0], _mask(causal, kv_end), q.device)
    _launch(
        "attention_forward",
        {"q": q, "k": k, "v": v},
        {"out": out, "lse": lse, "cu_q": cu_q, "cu_k": cu_k, "kv_end": kv_end, "tiles": tiles},
        segments=cu_q.shape[0] - 1,
        tile_count=0 if tiles is None else tiles.shape[0] // 2,
        longest_q=longest_q,
        even=int(even and not capturing(q.device)),
        mask=_mask(causal, kv_end),
        scale=scale,
    )
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
    q, k, v, grad = map(_aligned, (q, k, v, grad))
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    needed = extension(q.device).attention_backward_workspace(q.shape[0], cu_q.shape[0] - 1, *q.shape[1:])
    workspace = q.new_empty(needed, dtype=torch.uint8)
    _launch(
        "attention_backward",
        {"q": q, "k": k, "v": v, "grad": grad},
        {
            "out": out, "lse": lse, "grad_lse": grad_lse, "dq": dq, "dk": dk, "dv": dv,
            "cu_q": cu_q, "cu_k": cu_k, "kv_end": kv_end, "workspace": workspace,
        },
        segments=cu_q.shape[0] - 1,
        workspace_bytes=needed,
        grad_lse_row=0 if grad_lse is None else grad_lse.stride(1),
        grad_lse_head=0 if grad_lse is None else grad_lse.stride(0),
        rows_k=k.shape[0],
        mask=_mask(causal, kv_end),
        scale=scale,
    )  # fmt: skip
    return dq, dk, dv


def _launch(name: str, strided: dict[str, Tensor], others: dict[str, Tensor | None], **numbers: int | float) -> None:
    """Launch with the pointers of all tensors, the strides of the first ones, and what both launchers want to know of the shapes."""
    (rows, heads, width), kv_heads, device = strided["q"].shape, strided["k"].shape[1], strided["q"].device
    pointers = {place: 0 if x is None else x.data_ptr() for place, x in (strided | others).items()}
    # Nothing lies behind the stride of a dimension of one: torch lets it be any number.
    strides = {
        f"{place}_{axis}": x.stride(dim) if x.shape[dim] > 1 else 0
        for place, x in strided.items()
        for dim, axis in enumerate(("row", "head"))
    }
    code = getattr(extension(device), name)(
        **pointers,
        **strides,
        **numbers,
        rows_q=rows,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        dtype=DTYPES[strided["q"].dtype],
        device=device.index or 0,
        stream=raw_stream(device),
    )
    check(code, name)


def _aligned(x: Tensor) -> Tensor:
    """The tensor; a copy where its data doesn't start on 16 bytes, which compiled code doesn't know when it chooses this kernel."""
    return x if x.data_ptr() % ALIGNMENT_BYTES == 0 else x.clone(memory_format=torch.contiguous_format)


def _mask(causal: bool, kv_end: Tensor | None) -> int:
    """As ``AttentionMask`` in csrc/attention/attention.h numbers them."""
    return 2 if kv_end is not None else int(causal)


def _tiles(
    lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], rows: int, mask: int, device: torch.device
) -> Tensor | None:
    """The list of tiles on the device; None where it can't be, or must not be, copied there."""
    from ..kernels.device import capturing

    if not lengths_q or capturing(device):
        return None  # what is copied while a graph is captured is there only when it is replayed
    return _listed(lengths_q, lengths_k, rows, mask, device, raw_stream(device))


@functools.lru_cache(LISTS_KEPT)
def _listed(
    lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], rows: int, mask: int, device: torch.device, stream: int
) -> Tensor:
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
    places = [x for x in (call.segments.cu_q, call.segments.cu_k, call.kv_end) if x is not None]
    problem = call.refusal_beyond("kv_end", "return_lse") or refusal_of_both(call)
    if problem is None and call.wants_gradient:
        problem = cuda_refusal(*call[:3]) or backward_refusal(call.q_TNE.shape[-1], call.q_TNE.device)
    if problem is None and not all(x.dtype == torch.int32 and x.is_contiguous() for x in places):
        problem = "boundaries and kv_end must be contiguous int32"
    return problem or cuda_refusal(*call[:3], *places) or misalignment(*call[:3]) or True


@constant
def backward_refusal(width: int, device: torch.device) -> str | None:
    """Return that the backward's shared memory doesn't fit the device, which the forward's always does, or None."""
    return shared_refusal(extension(device).attention_backward_shared(width), device, f"the gradient of heads of {width}")


def cuda_trusted(call: AttentionCall) -> bool | str:
    """Return True, or why ``auto`` passes the kernels by."""
    return cuda_distrust("attention", call.q_TNE) or True
