"""Attention of the last row of each segment over the segment's keys, mean over heads: what FastV and its kin prune by.

One query row per segment: ``N * T_k`` products, no ``T x T`` map, so it stands beside any attention kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec import Segments
from .activations import softcapped
from .call_checks import misfit, require_segments
from .dispatch import Implementation, dispatch
from .row_scores import kernel_refusal, launched
from .triton_gate import triton_distrust


@torch.no_grad()
def last_row_scores(
    q_TNE: Tensor,
    k_TKE: Tensor,
    segments: Segments,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return ``mean_n softmax_j(softcapped(q_last,n . k_j,n * scale))`` for each key ``j`` of each segment.

    Args:
        q_TNE: queries ``(T_q, N, E)``.
        k_TKE: keys ``(T_k, K, E)``.
        segments: boundaries; the last query of a segment sees all its keys.
        scale: default ``E ** -0.5``.
        window: the last row sees only this many keys; the others score 0.
        softcap: see ``ops.attention``.
        backend: ``auto`` or the name of an implementation.

    Returns:
        fp32 ``(T_k,)``, which adds up to 1 in each segment that has a query; 0 in the others. Carries no gradient.

    Raises:
        LmmError: shapes that don't fit together, or a forced backend that refuses.
    """
    require_segments("last_row_scores", "segments", segments)
    if q_TNE.dim() != 3 or k_TKE.dim() != 3 or q_TNE.shape[2] != k_TKE.shape[2] or q_TNE.shape[1] % k_TKE.shape[1]:
        raise misfit("last_row_scores needs q (T,N,E) and k (T,K,E), N a multiple of K", q=q_TNE, k=k_TKE)
    scale = q_TNE.shape[-1] ** -0.5 if scale is None else scale
    return dispatch("last_row_scores", q_TNE, k_TKE, segments, scale, window, softcap, backend=backend)


def last_row_scores_reference(q_TNE: Tensor, k_TKE: Tensor, segments: Segments, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """The formula in fp32, one segment at a time."""
    wide = torch.promote_types(q_TNE.dtype, torch.float32)
    group = q_TNE.shape[1] // k_TKE.shape[1]
    scores_Tk = torch.zeros(k_TKE.shape[0], dtype=wide, device=k_TKE.device)
    q_end = k_end = 0
    for len_q, len_k in zip(segments.lengths_q, segments.lengths_k):
        q_end, k_end = q_end + len_q, k_end + len_k
        if not len_q or not len_k:
            continue
        first = k_end - (len_k if window is None else min(window, len_k))
        query_KGE = q_TNE[q_end - 1].to(wide).unflatten(0, (-1, group))
        products = torch.einsum("kge,tke->kgt", query_KGE, k_TKE[first:k_end].to(wide)) * scale
        scores_Tk[first:k_end] = softcapped(products, softcap).softmax(-1).mean((0, 1))
    return scores_Tk


def last_row_scores_triton(q_TNE: Tensor, k_TKE: Tensor, segments: Segments, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """The kernel of ``ops.row_scores``, which finds the last row of each segment on the device."""
    return launched(q_TNE, k_TKE, segments, scale, window, softcap, last=True)


def _triton_supports(q: Tensor, k: Tensor, segments: Segments, scale: float, window: int | None, softcap: float | None) -> bool | str:
    return kernel_refusal(q, k, 1, False) or True


def _triton_trusted(q: Tensor, k: Tensor, segments: Segments, scale: float, window: int | None, softcap: float | None) -> bool | str:
    return triton_distrust("last_row_scores", k) or True


LAST_ROW_SCORES_TRITON = Implementation("triton", last_row_scores_triton, _triton_supports, _triton_trusted)
LAST_ROW_SCORES_REFERENCE = Implementation("reference", last_row_scores_reference)
