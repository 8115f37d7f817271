"""Rows of images merged by the similarity of their keys: what PruMerge and VisionZip do, for all images of a packed batch at once.

In the references images of one size are computed together; the kernels take any sizes in the same launches. Ties are resolved alike: of equal
scores, and of equal similarities, the earlier row counts as the larger. Gradients (of rows and scores; a choice has none) are the references'.

Sources: Shang et al., "LLaVA-PruMerge", arXiv 2403.15388; Yang et al., "VisionZip", arXiv 2412.04467.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.dispatch import Implementation, dispatch
from ..ops.library import kernel_op
from ..ops.triton_gate import triton_distrust, triton_refusal
from ..reducers import merging
from ..reducers.merging import check_rows
from ..spec import Segments
from .outlier_counts import too_long

MERGE_NEIGHBOURS = kernel_op(
    "merge_neighbours(Tensor x, Tensor keys, Tensor scores, Tensor cu, SymInt longest, int keep, int spread, int neighbours, bool rest) -> Tensor",
    "merge_rows:merge_neighbours",
    lambda x, keys, scores, cu, longest, keep, spread, neighbours, rest: x.new_empty((cu.shape[0] - 1) * (keep + spread + rest), x.shape[1]),
)
MERGE_TO_NEAREST = kernel_op(
    "merge_to_nearest(Tensor x, Tensor keys, Tensor scores, Tensor cu, SymInt longest, int keep, int targets) -> Tensor",
    "merge_to_nearest:merge_to_nearest",
    lambda x, keys, scores, cu, longest, keep, targets: x.new_empty((cu.shape[0] - 1) * (keep + targets), x.shape[1]),
)


def merge_neighbours(
    x_MD: Tensor,
    keys_MC: Tensor,
    scores_M: Tensor,
    images: Segments,
    *,
    keep: int,
    spread: int = 0,
    neighbours: int = 32,
    rest: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Keep some rows of each image and add to each what its nearest neighbours hold: ``x_i + sum_j scores_j x_j``.

    Args:
        x_MD: packed rows of images.
        keys_MC: by whose cosine rows are similar.
        scores_M: which rows stay, and the weights of the sums.
        images: rows of each image.
        keep: rows of the highest score, which stay.
        spread: this many more, evenly spread over the others.
        neighbours: the most similar rows of the image that are added to each.
        rest: append the row ``sum_j scores_j x_j`` of what doesn't stay.
        backend: ``auto`` or the name of an implementation.

    Returns:
        ``(I * (keep + spread + rest), D)``, in falling order of the scores, then the spread ones, then the rest.

    Raises:
        LmmError: shapes that don't fit together, or an image with too few rows.
    """
    check_rows("merge_neighbours", x_MD, keys_MC, scores_M, images, keep, spread)
    return dispatch("merge_neighbours", x_MD, keys_MC, scores_M, images, keep, spread, neighbours, rest, backend=backend)


def merge_to_nearest(
    x_MD: Tensor,
    keys_MC: Tensor,
    scores_M: Tensor,
    images: Segments,
    *,
    keep: int,
    targets: int,
    backend: str = "auto",
) -> Tensor:
    """Keep some rows of each image and merge the others into a few of them: ``x_t`` plus the mean of the rows most similar to ``t``.

    Args:
        x_MD: packed rows of images.
        keys_MC: by whose cosine rows are similar.
        scores_M: which rows stay.
        images: rows of each image.
        keep: rows of the highest score, which stay as they are.
        targets: of the others, in their order, every ``count // targets``-th is one.
        backend: ``auto`` or the name of an implementation.

    Returns:
        ``(I * (keep + targets), D)``: for each image what stays in the order of its rows, then the targets in theirs.

    Raises:
        LmmError: shapes that don't fit together, or an image with too few rows.
    """
    check_rows("merge_to_nearest", x_MD, keys_MC, scores_M, images, keep, targets)
    return dispatch("merge_to_nearest", x_MD, keys_MC, scores_M, images, keep, targets, backend=backend)


def merge_neighbours_triton(
    x_MD: Tensor,
    keys_MC: Tensor,
    scores_M: Tensor,
    images: Segments,
    keep: int,
    spread: int,
    neighbours: int,
    rest: bool,
) -> Tensor:
    """Five launches for all images."""
    if not images.max_k:
        return x_MD[:0]
    return MERGE_NEIGHBOURS(x_MD, keys_MC, scores_M, images.cu_k, images.max_k, keep, spread, neighbours, rest)


def merge_to_nearest_triton(x_MD: Tensor, keys_MC: Tensor, scores_M: Tensor, images: Segments, keep: int, targets: int) -> Tensor:
    """Four launches for all images."""
    if not images.max_k:
        return x_MD[:0]
    return MERGE_TO_NEAREST(x_MD, keys_MC, scores_M, images.cu_k, images.max_k, keep, targets)


def _supports(x: Tensor, keys: Tensor, scores: Tensor, images: Segments, *options: int) -> bool | str:
    if torch.is_grad_enabled() and (x.requires_grad or scores.requires_grad):
        return "it has no backward, and a gradient is asked for"
    return too_long(images) or triton_refusal(x, keys, scores, aligned=2) or True


def _neighbours_trusted(x: Tensor, *others: object) -> bool | str:
    return triton_distrust("merge_neighbours", x) or True


def _nearest_trusted(x: Tensor, *others: object) -> bool | str:
    return triton_distrust("merge_to_nearest", x) or True


MERGE_NEIGHBOURS_TRITON = Implementation("triton", merge_neighbours_triton, _supports, _neighbours_trusted)
MERGE_NEIGHBOURS_REFERENCE = Implementation("reference", merging.merge_neighbours)
MERGE_TO_NEAREST_TRITON = Implementation("triton", merge_to_nearest_triton, _supports, _nearest_trusted)
MERGE_TO_NEAREST_REFERENCE = Implementation("reference", merging.merge_to_nearest)
