"""Rows of images merged by the similarity of their keys: what PruMerge and VisionZip do, for all images of a packed batch at once.

In the references images of one size are computed together; the kernels take any sizes in the same launches. Ties are resolved alike: of equal
scores, and of equal similarities, the earlier row counts as the larger. Gradients (of rows and scores; a choice has none) are the references'.

Sources: Shang et al., "LLaVA-PruMerge", arXiv 2403.15388; Yang et al., "VisionZip", arXiv 2412.04467.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import LmmError, Segments
from .call_checks import require_segments
from .dispatch import Implementation, dispatch
from .library import kernel_op
from .outlier_counts import equal_segments, too_long
from .triton_gate import triton_distrust, triton_refusal

MERGE_NEIGHBOURS = kernel_op(
    "merge_neighbours(Tensor x, Tensor keys, Tensor scores, Tensor cu, SymInt longest, int keep, int spread, int neighbours, bool rest) -> Tensor",
    "merge_rows:merge_neighbours",
    lambda x, keys, scores, cu, longest, keep, spread, neighbours, rest: x.new_empty(
        (cu.shape[0] - 1) * (keep + spread + rest), x.shape[1]
    ),
)
MERGE_TO_NEAREST = kernel_op(
    "merge_to_nearest(Tensor x, Tensor keys, Tensor scores, Tensor cu, SymInt longest, int keep, int targets) -> Tensor",
    "merge_to_nearest:merge_to_nearest",
    lambda x, keys, scores, cu, longest, keep, targets: x.new_empty(
        (cu.shape[0] - 1) * (keep + targets), x.shape[1]
    ),
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
    _check("merge_neighbours", x_MD, keys_MC, scores_M, images, keep, spread)
    return dispatch(
        "merge_neighbours", x_MD, keys_MC, scores_M, images, keep, spread, neighbours, rest, backend=backend
    )


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
    _check("merge_to_nearest", x_MD, keys_MC, scores_M, images, keep, targets)
    return dispatch("merge_to_nearest", x_MD, keys_MC, scores_M, images, keep, targets, backend=backend)


def _check(
    op: str, x: Tensor, keys: Tensor, scores: Tensor, images: Segments, keep: int, others: int
) -> None:
    require_segments(op, "images", images)
    rows = sum(images.lengths_k)
    if (
        x.dim() != 2
        or keys.dim() != 2
        or x.shape[0] != rows
        or keys.shape[0] != rows
        or tuple(scores.shape) != (rows,)
    ):
        found = [tuple(tensor.shape) for tensor in (x, keys, scores)]
        raise LmmError(
            f"{op} needs x (M,D), keys (M,C) and scores (M,) of M = {rows} rows of images: found {found}"
        )
    fewest = min(images.lengths_k, default=keep + others)
    if keep < 1 or others < 0 or fewest < keep + others:
        raise LmmError(
            f"{op} keeps {keep} + {others} rows, an image has {fewest}: it needs at least one, and no more than there are"
        )


def _highest(scores_IP: Tensor, count: int) -> Tensor:
    """Return the ``count`` largest of the last dimension in falling order; of equals the earlier."""
    return scores_IP.argsort(dim=-1, descending=True, stable=True)[..., :count]


def merge_neighbours_reference(
    x_MD: Tensor,
    keys_MC: Tensor,
    scores_M: Tensor,
    images: Segments,
    keep: int,
    spread: int,
    neighbours: int,
    rest: bool,
) -> Tensor:
    """Two batched products for images of one size: similarities, and sums weighted by the scores of the nearest."""
    parts = [x_MD[:0]]
    for x_IPD, keys_IPC, scores_IP in equal_segments(images.lengths_k, x_MD, keys_MC, scores_M):
        kept_IK = _kept(scores_IP, keep, spread)
        keys_IPC = _unit(keys_IPC)
        picked = kept_IK[..., None].expand(-1, -1, keys_IPC.shape[-1])
        similar_IKP = (keys_IPC.gather(1, picked) @ keys_IPC.transpose(1, 2)).scatter(
            2, kept_IK[..., None], float("-inf")
        )
        nearest_IKn = _highest(similar_IKP, min(neighbours, x_IPD.shape[1] - 1))
        everyone = scores_IP[:, None].expand(-1, kept_IK.shape[1], -1)
        weights_IKP = torch.zeros_like(similar_IKP, dtype=x_IPD.dtype).scatter(
            2, nearest_IKn, everyone.gather(2, nearest_IKn).to(x_IPD.dtype)
        )
        weights_IKP = weights_IKP.scatter(2, kept_IK[..., None], 1.0)
        if rest:
            left_IP = scores_IP.to(x_IPD.dtype).scatter(1, kept_IK, 0.0)
            weights_IKP = torch.cat([weights_IKP, left_IP[:, None]], 1)
        parts.append((weights_IKP @ x_IPD).flatten(0, 1))
    return torch.cat(parts)


def _kept(scores_IP: Tensor, keep: int, spread: int) -> Tensor:
    """Rows of the largest score, then those spread evenly over the others."""
    top_IK = _highest(scores_IP, keep)
    if not spread:
        return top_IK
    others_IP = (
        torch.zeros_like(scores_IP, dtype=torch.uint8).scatter(1, top_IK, 1).argsort(dim=1, stable=True)
    )
    steps = torch.arange(spread, device=scores_IP.device)
    return torch.cat(
        [top_IK, others_IP.index_select(1, (2 * steps + 1) * (scores_IP.shape[1] - keep) // (2 * spread))], 1
    )


def merge_to_nearest_reference(
    x_MD: Tensor, keys_MC: Tensor, scores_M: Tensor, images: Segments, keep: int, targets: int
) -> Tensor:
    """Images of one size together: rows put in the order others, stayers; one product for similarities, one for the means."""
    parts = [x_MD[:0]]
    for x_IPD, keys_IPC, scores_IP in equal_segments(images.lengths_k, x_MD, keys_MC, scores_M):
        stays_IP = torch.zeros_like(scores_IP, dtype=torch.uint8).scatter(1, _highest(scores_IP, keep), 1)
        order_IP = stays_IP.argsort(
            dim=1, stable=True
        )  # the others in their order, then those that stay in theirs
        x_IPD = x_IPD.gather(1, order_IP[..., None].expand_as(x_IPD))
        others_IRD, stayers_IKD = x_IPD.tensor_split([x_IPD.shape[1] - keep], 1)
        keys_IPC = _unit(keys_IPC).gather(1, order_IP[..., None].expand_as(keys_IPC))
        merged_ITD = _joined(others_IRD, keys_IPC[:, : others_IRD.shape[1]], targets)
        parts.append(torch.cat([stayers_IKD, merged_ITD], 1).flatten(0, 1))
    return torch.cat(parts)


def _joined(x_IRD: Tensor, keys_IRC: Tensor, targets: int) -> Tensor:
    step = max(1, x_IRD.shape[1] // max(1, targets))
    chosen = slice(0, step * targets, step)
    if not targets:
        return x_IRD[:, chosen]
    similar_IRT = keys_IRC @ keys_IRC[:, chosen].transpose(1, 2)
    joins_IRT = torch.zeros_like(similar_IRT, dtype=x_IRD.dtype).scatter(
        2, similar_IRT.argmax(2, keepdim=True), 1
    )
    joins_IRT[:, chosen] = 0
    mean_ITD = joins_IRT.transpose(1, 2) @ x_IRD / joins_IRT.sum(1).clamp_min(1)[..., None]
    return x_IRD[:, chosen] + mean_ITD


def _unit(keys: Tensor) -> Tensor:
    return F.normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)), dim=-1)


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
    return MERGE_NEIGHBOURS(
        x_MD, keys_MC, scores_M, images.cu_k, images.max_k, keep, spread, neighbours, rest
    )


def merge_to_nearest_triton(
    x_MD: Tensor, keys_MC: Tensor, scores_M: Tensor, images: Segments, keep: int, targets: int
) -> Tensor:
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


MERGE_NEIGHBOURS_TRITON = Implementation('triton', merge_neighbours_triton, _supports, _neighbours_trusted)
MERGE_NEIGHBOURS_REFERENCE = Implementation('reference', merge_neighbours_reference)
MERGE_TO_NEAREST_TRITON = Implementation('triton', merge_to_nearest_triton, _supports, _nearest_trusted)
MERGE_TO_NEAREST_REFERENCE = Implementation('reference', merge_to_nearest_reference)
