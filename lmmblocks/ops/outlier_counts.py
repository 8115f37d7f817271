"""How many scores of each image are outliers: what PruMerge's adaptive rule would keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from ..spec import Segments
from .call_checks import misfit, require_segments
from .dispatch import Implementation, dispatch
from .library import kernel_op
from .triton_gate import triton_distrust, triton_refusal

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
    require_segments("outlier_counts", "images", images)
    compiling = torch.compiler.is_compiling()  # host lengths that are read there are guarded
    if scores_M.dim() != 1 or (not compiling and scores_M.shape[0] != sum(images.lengths_k)):
        raise misfit(f"outlier_counts needs scores (M,) of M = {sum(images.lengths_k)} rows of images", scores=scores_M)
    return dispatch("outlier_counts", scores_M, images, backend=backend)


def equal_segments(lengths: Sequence[int], *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Yield each run of neighbouring segments of one length as views ``(I, P, ...)`` of every packed tensor ``(M, ...)``."""
    start = 0
    for length, run in groupby(lengths):
        count = len(list(run))
        yield [tensor[start : start + count * length].unflatten(0, (count, length)) for tensor in tensors]
        start += count * length


def too_long(images: Segments) -> str | None:
    """Return why the kernels can't take these images, or None."""
    return f"an image of {images.max_k} rows: it takes {MOST_ROWS}" if images.max_k > MOST_ROWS else None


def outlier_counts_reference(scores_M: Tensor, images: Segments) -> Tensor:
    """Quartiles in fp32 (fp64 stays fp64), images of one size together."""
    wide = scores_M.to(torch.promote_types(scores_M.dtype, torch.float32))
    counts = [torch.zeros(0, dtype=torch.int64, device=scores_M.device)]
    for (scores_IP,) in equal_segments(images.lengths_k, wide):
        if not scores_IP.shape[1]:
            counts.append(scores_IP.new_zeros(scores_IP.shape[0], dtype=torch.int64))
            continue
        low, high = (
            scores_IP.quantile(0.25, dim=1, keepdim=True),
            scores_IP.quantile(0.75, dim=1, keepdim=True),
        )
        counts.append((scores_IP > high + 1.5 * (high - low)).sum(1))
    return torch.cat(counts)


def outlier_counts_triton(scores_M: Tensor, images: Segments) -> Tensor:
    """Two launches for all images."""
    if not images.max_k:
        return torch.zeros(len(images.lengths_k), dtype=torch.int64, device=scores_M.device)
    return OUTLIER_COUNTS(scores_M, images.cu_k, images.max_k)


def _supports(scores: Tensor, images: Segments) -> bool | str:
    return too_long(images) or triton_refusal(scores) or True


def _trusted(scores: Tensor, images: Segments) -> bool | str:
    return triton_distrust("outlier_counts", scores) or True


OUTLIER_COUNTS_TRITON = Implementation('triton', outlier_counts_triton, _supports, _trusted)
OUTLIER_COUNTS_REFERENCE = Implementation('reference', outlier_counts_reference)
