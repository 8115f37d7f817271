"""Attention of a few given rows of each segment over the segment's keys: the scores that image tokens are pruned by.

``N * T_k`` products a row, no ``T x T`` map, so it stands beside any attention kernel. :func:`row_scores` is the general form, in fp32;
:func:`attention_of_cls` is what vision towers report of their CLS token, in the dtype of the tower.

A gradient is the reference's: the kernel is passed by where one is needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..spec import LmmError, Segments
from .activations import softcapped
from .call_checks import require_segments
from .dispatch import Implementation, dispatch
from .library import kernel_op
from .triton_gate import triton_distrust, triton_refusal

WIDEST_HEAD = 256
MOST_ROWS = 64
"""Query rows of a segment times heads of a group that a tile of the kernel holds."""

ROW_SCORES = kernel_op(
    "row_scores(Tensor q, Tensor k, Tensor cu_q, Tensor cu_k, SymInt longest_q, SymInt longest_k, bool even, float scale, SymInt? window, "
    "float? softcap, bool last=False) -> Tensor",
    "row_scores:row_scores",
    lambda q, k, cu_q, cu_k, longest_q, longest_k, even, scale, window, softcap, last=False: k.new_empty(k.shape[0], dtype=torch.float32),
)


def row_scores(
    q_RNE: Tensor,
    k_TKE: Tensor,
    segments: Segments,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return ``mean_r,n softmax_j(softcapped(q_r,n . k_j,n * scale))`` for each key ``j`` of each segment.

    Args:
        q_RNE: the rows that score ``(R, N, E)``, one or a few for each segment; each sees all keys of its segment.
        k_TKE: keys ``(T, K, E)`` with ``N % K == 0``.
        segments: rows and keys of each segment.
        scale: default ``E ** -0.5``.
        softcap: see ``ops.attention``.
        backend: ``auto`` or the name of an implementation.

    Returns:
        fp32 (fp64 for fp64) ``(T,)``, which adds up to 1 in each segment that has a row and a key; 0 in the others.

    Raises:
        LmmError: shapes that don't fit together.
    """
    require_segments("row_scores", "segments", segments)
    if q_RNE.dim() != 3 or k_TKE.dim() != 3 or q_RNE.shape[2] != k_TKE.shape[2] or q_RNE.shape[1] % k_TKE.shape[1]:
        raise LmmError(f"row_scores needs q (R,N,E) and k (T,K,E), N a multiple of K: found {tuple(q_RNE.shape)}, {tuple(k_TKE.shape)}")
    if q_RNE.shape[0] < sum(segments.lengths_q) or k_TKE.shape[0] < sum(segments.lengths_k):
        found = (q_RNE.shape[0], k_TKE.shape[0])
        raise LmmError(f"row_scores: segments need {sum(segments.lengths_q)} rows and {sum(segments.lengths_k)} keys, found {found}")
    scale = q_RNE.shape[-1] ** -0.5 if scale is None else scale
    return dispatch("row_scores", q_RNE, k_TKE, segments, scale, softcap, backend=backend)


def row_scores_reference(q_RNE: Tensor, k_TKE: Tensor, segments: Segments, scale: float, softcap: float | None) -> Tensor:
    """The formula in fp32, one segment at a time."""
    wide = torch.promote_types(q_RNE.dtype, torch.float32)
    group, parts = q_RNE.shape[1] // k_TKE.shape[1], []
    for q_rows, k_rows in _rows(segments):
        keys_TKE = k_TKE[k_rows].to(wide)
        if q_rows.start == q_rows.stop:
            parts.append(keys_TKE.new_zeros(keys_TKE.shape[0]))
            continue
        rows_RKGE = q_RNE[q_rows].to(wide).unflatten(1, (-1, group))
        products = torch.einsum("rkge,tke->rkgt", rows_RKGE, keys_TKE) * scale
        parts.append(softcapped(products, softcap).softmax(-1).mean((0, 1, 2)))
    slack = k_TKE.shape[0] - sum(segments.lengths_k)
    return torch.cat([*parts, torch.zeros(slack, dtype=wide, device=k_TKE.device)])


def _rows(segments: Segments) -> Iterator[tuple[slice, slice]]:
    q_end = k_end = 0
    for len_q, len_k in zip(segments.lengths_q, segments.lengths_k):
        q_end, k_end = q_end + len_q, k_end + len_k
        yield slice(q_end - len_q, q_end), slice(k_end - len_k, k_end)


def row_scores_triton(q_RNE: Tensor, k_TKE: Tensor, segments: Segments, scale: float, softcap: float | None) -> Tensor:
    """Keys read once; three launches."""
    return launched(q_RNE, k_TKE, segments, scale, None, softcap, last=False)


def launched(
    q: Tensor,
    k: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
    softcap: float | None,
    *,
    last: bool,
) -> Tensor:
    """Run the kernel for given rows, or for the last one of each segment."""
    even = len(set(segments.lengths_k)) == 1 and sum(segments.lengths_k) == k.shape[0]
    return ROW_SCORES(q, k, segments.cu_q, segments.cu_k, segments.max_q, segments.max_k, even, scale, window, softcap, last)


def kernel_refusal(q: Tensor, k: Tensor, rows: int, needs_gradient: bool) -> str | None:
    """Return why the kernel can't score ``rows`` rows a segment, or None."""
    if needs_gradient and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        return "it has no backward, and a gradient is asked for"
    if q.dtype != k.dtype:
        return f"q is {q.dtype} but k is {k.dtype}"
    if not 0 < q.shape[-1] <= WIDEST_HEAD:
        return f"heads of {q.shape[-1]}: it takes 1 to {WIDEST_HEAD}"
    if rows * q.shape[1] > MOST_ROWS * k.shape[1]:
        return f"{rows} rows of {q.shape[1]} heads on {k.shape[1]} kv heads: it takes {MOST_ROWS} a kv head"
    return triton_refusal(q, k, aligned=2)


def _supports(q: Tensor, k: Tensor, segments: Segments, scale: float, softcap: float | None) -> bool | str:
    return kernel_refusal(q, k, segments.max_q, True) or True


def _trusted(q: Tensor, k: Tensor, segments: Segments, scale: float, softcap: float | None) -> bool | str:
    return triton_distrust("row_scores", k) or True


def attention_of_cls(query_INE: Tensor, keys_ITNE: Tensor, prefix: int, *, scale: float | None = None, backend: str = "auto") -> Tensor:
    """Return the attention that the first token of each image pays to its patches, mean over heads.

    Args:
        query_INE: query of the CLS token of each image.
        keys_ITNE: keys of all tokens, over which the softmax runs.
        prefix: tokens before the patches, which are left out of the result.
        scale: default ``E ** -0.5``.
        backend: ``auto`` or the name of an implementation.

    Returns:
        ``(M,)``, ``M = I * (T - prefix)``, in the dtype of the keys.
    """
    scale = query_INE.shape[-1] ** -0.5 if scale is None else scale
    return dispatch("attention_of_cls", query_INE, keys_ITNE, prefix, scale, backend=backend)


def attention_of_cls_reference(query_INE: Tensor, keys_ITNE: Tensor, prefix: int, scale: float) -> Tensor:
    """The formula in the dtype of the tower, as its own attention would compute it."""
    scores = torch.einsum("ine,itne->int", query_INE, keys_ITNE) * scale
    return scores.softmax(-1)[..., prefix:].mean(1).flatten()


def attention_of_cls_triton(query_INE: Tensor, keys_ITNE: Tensor, prefix: int, scale: float) -> Tensor:
    """The kernel of :func:`row_scores`, rounded once at the end."""
    images, tokens = keys_ITNE.shape[:2]
    segments = Segments.uniform(images, 1, tokens, device=keys_ITNE.device)
    scores_T = launched(query_INE, keys_ITNE.flatten(0, 1), segments, scale, None, None, last=False)
    return scores_T.unflatten(0, (images, tokens))[:, prefix:].to(keys_ITNE.dtype).flatten()


def _cls_supports(query: Tensor, keys: Tensor, prefix: int, scale: float) -> bool | str:
    if query.dim() != 3 or keys.dim() != 4:
        return f"q {tuple(query.shape)} and k {tuple(keys.shape)} are not (I,N,E) and (I,T,N,E)"
    if keys.stride(0) != keys.shape[1] * keys.stride(1):
        return "the keys of several images would have to be copied"
    return kernel_refusal(query, keys, 1, True) or True


def _cls_trusted(query: Tensor, keys: Tensor, prefix: int, scale: float) -> bool | str:
    return triton_distrust("attention_of_cls", keys) or True


ROW_SCORES_TRITON = Implementation("triton", row_scores_triton, _supports, _trusted)
ROW_SCORES_REFERENCE = Implementation("reference", row_scores_reference)
ATTENTION_OF_CLS_TRITON = Implementation("triton", attention_of_cls_triton, _cls_supports, _cls_trusted)
ATTENTION_OF_CLS_REFERENCE = Implementation("reference", attention_of_cls_reference)
