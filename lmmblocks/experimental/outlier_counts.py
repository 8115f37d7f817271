"""How many scores of each image are outliers: what PruMerge's adaptive rule would keep."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.dispatch import Implementation, dispatch
from ..ops.library import kernel_op
from ..ops.triton_gate import triton_distrust, triton_refusal
from ..reducers import merging
from ..reducers.merging import check_scores
from ..spec import Segments

MOST_ROWS = 4096
"""Rows of an image: a program of the kernels holds a number for each."""

OUTLIER_COUNTS = kernel_op(
    "outlier_counts(Tensor scores, Tensor cu, SymInt longest) -> Tensor",
    "row_choice:outlier_counts",
    lambda scores, cu, longest: scores.new_empty(cu.shape[0] - 1, dtype=torch.int64),
)


def outlier_counts(scores_M: Tensor, images: Segments, *, backend: str = "auto") -> Tensor:
    """Return how many scores of each image lie above ``Q3 + 1.5 (Q3 - Q1)``, quartiles as ``torch.quantile`` takes them.

    Args:
        scores_M: of packed rows.
        images: rows of each image.
        backend: ``auto`` or the name of an implementation.

    Returns:
        int64 ``(I,)``, on the device.

    Raises:
        LmmError: scores that aren't one for each row of the images.

    Source: Shang et al., "LLaVA-PruMerge", arXiv 2403.15388.
    """
    check_scores(scores_M, images)
    return dispatch("outlier_counts", scores_M, images, backend=backend)


def too_long(images: Segments) -> str | None:
    """Return why the kernels can't take these images, or None."""
    return f"an image of {images.max_k} rows: it takes {MOST_ROWS}" if images.max_k > MOST_ROWS else None


def outlier_counts_triton(scores_M: Tensor, images: Segments) -> Tensor:
    """Two launches for all images."""
    if not images.max_k:
        return torch.zeros(len(images.lengths_k), dtype=torch.int64, device=scores_M.device)
    return OUTLIER_COUNTS(scores_M, images.cu_k, images.max_k)


def _supports(scores: Tensor, images: Segments) -> bool | str:
    return too_long(images) or triton_refusal(scores) or True


def _trusted(scores: Tensor, images: Segments) -> bool | str:
    return triton_distrust("outlier_counts", scores) or True


OUTLIER_COUNTS_TRITON = Implementation("triton", outlier_counts_triton, _supports, _trusted)
OUTLIER_COUNTS_REFERENCE = Implementation("reference", merging.outlier_counts)
