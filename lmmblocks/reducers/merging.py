"""Rows of images merged by the similarity of their keys: what PruMerge and VisionZip do, for all images of a packed batch at once.

Images of one size are computed together. Of equal scores, and of equal similarities, the earlier row counts as the larger.

Sources: Shang et al., "LLaVA-PruMerge", arXiv 2403.15388; Yang et al., "VisionZip", arXiv 2412.04467.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.call_checks import misfit, require_segments
from ..spec import LmmError, Segments


def check_rows(op: str, x: Tensor, keys: Tensor, scores: Tensor, images: Segments, keep: int, others: int) -> None:
    require_segments(op, "images", images)
    rows = sum(images.lengths_k)
    if x.dim() != 2 or keys.dim() != 2 or x.shape[0] != rows or keys.shape[0] != rows or tuple(scores.shape) != (rows,):
        found = [tuple(tensor.shape) for tensor in (x, keys, scores)]
        raise LmmError(f"{op} needs x (M,D), keys (M,C) and scores (M,) of M = {rows} rows of images: found {found}")
    fewest = min(images.lengths_k, default=keep + others)
    if keep < 1 or others < 0 or fewest < keep + others:
        raise LmmError(f"{op} keeps {keep} + {others} rows, an image has {fewest}: it needs at least one, and no more than there are")


def _highest(scores_IP: Tensor, count: int) -> Tensor:
    """Return the ``count`` largest of the last dimension in falling order; of equals the earlier."""
    return scores_IP.argsort(dim=-1, descending=True, stable=True)[..., :count]


def merge_neighbours(
    x_MD: Tensor,
    keys_MC: Tensor,
    scores_M: Tensor,
    images: Segments,
    keep: int,
    spread: int = 0,
    neighbours: int = 32,
    rest: bool = True,
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

    Returns:
        ``(I * (keep + spread + rest), D)``, in falling order of the scores, then the spread ones, then the rest.

    Raises:
        LmmError: shapes that don't fit together, or an image with too few rows.
    """
    check_rows("merge_neighbours", x_MD, keys_MC, scores_M, images, keep, spread)
    # Two batched products for images of one size: similarities, and sums weighted by the scores of the nearest.
    parts = [x_MD[:0]]
    for x_IPD, keys_IPC, scores_IP in equal_segments(images.lengths_k, x_MD, keys_MC, scores_M):
        kept_IK = _kept(scores_IP, keep, spread)
        keys_IPC = _unit(keys_IPC)
        picked = kept_IK[..., None].expand(-1, -1, keys_IPC.shape[-1])
        similar_IKP = (keys_IPC.gather(1, picked) @ keys_IPC.transpose(1, 2)).scatter(2, kept_IK[..., None], float("-inf"))
        nearest_IKn = _highest(similar_IKP, min(neighbours, x_IPD.shape[1] - 1))
        everyone = scores_IP[:, None].expand(-1, kept_IK.shape[1], -1)
        weights_IKP = torch.zeros_like(similar_IKP, dtype=x_IPD.dtype).scatter(2, nearest_IKn, everyone.gather(2, nearest_IKn).to(x_IPD.dtype))
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
    others_IP = torch.zeros_like(scores_IP, dtype=torch.uint8).scatter(1, top_IK, 1).argsort(dim=1, stable=True)
    steps = torch.arange(spread, device=scores_IP.device)
    return torch.cat([top_IK, others_IP.index_select(1, (2 * steps + 1) * (scores_IP.shape[1] - keep) // (2 * spread))], 1)


def merge_to_nearest(x_MD: Tensor, keys_MC: Tensor, scores_M: Tensor, images: Segments, keep: int, targets: int) -> Tensor:
    """Keep some rows of each image and merge the others into a few of them: ``x_t`` plus the mean of the rows most similar to ``t``.

    Args:
        x_MD: packed rows of images.
        keys_MC: by whose cosine rows are similar.
        scores_M: which rows stay.
        images: rows of each image.
        keep: rows of the highest score, which stay as they are.
        targets: of the others, in their order, every ``count // targets``-th is one.

    Returns:
        ``(I * (keep + targets), D)``: for each image what stays in the order of its rows, then the targets in theirs.

    Raises:
        LmmError: shapes that don't fit together, or an image with too few rows.
    """
    check_rows("merge_to_nearest", x_MD, keys_MC, scores_M, images, keep, targets)
    # Images of one size together: rows put in the order others, stayers; one product for similarities, one for the means.
    parts = [x_MD[:0]]
    for x_IPD, keys_IPC, scores_IP in equal_segments(images.lengths_k, x_MD, keys_MC, scores_M):
        stays_IP = torch.zeros_like(scores_IP, dtype=torch.uint8).scatter(1, _highest(scores_IP, keep), 1)
        order_IP = stays_IP.argsort(dim=1, stable=True)  # the others in their order, then those that stay in theirs
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
    joins_IRT = torch.zeros_like(similar_IRT, dtype=x_IRD.dtype).scatter(2, similar_IRT.argmax(2, keepdim=True), 1)
    joins_IRT[:, chosen] = 0
    mean_ITD = joins_IRT.transpose(1, 2) @ x_IRD / joins_IRT.sum(1).clamp_min(1)[..., None]
    return x_IRD[:, chosen] + mean_ITD


def _unit(keys: Tensor) -> Tensor:
    return F.normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)), dim=-1)


def check_scores(scores_M: Tensor, images: Segments) -> None:
    """Raise LmmError unless there is a score for each row of the images."""
    require_segments("outlier_counts", "images", images)
    compiling = torch.compiler.is_compiling()  # host lengths that are read there are guarded
    if scores_M.dim() != 1 or (not compiling and scores_M.shape[0] != sum(images.lengths_k)):
        raise misfit(f"outlier_counts needs scores (M,) of M = {sum(images.lengths_k)} rows of images", scores=scores_M)


def outlier_counts(scores_M: Tensor, images: Segments) -> Tensor:
    """Return how many scores of each image lie above ``Q3 + 1.5 (Q3 - Q1)``, quartiles as ``torch.quantile`` takes them.

    Args:
        scores_M: of packed rows.
        images: rows of each image.

    Returns:
        int64 ``(I,)``, on the device.

    Raises:
        LmmError: scores that aren't one for each row of the images.

    Source: Shang et al., "LLaVA-PruMerge", arXiv 2403.15388.
    """
    check_scores(scores_M, images)
    # Quartiles in fp32 (fp64 stays fp64), images of one size together.
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


def equal_segments(lengths: Sequence[int], *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Yield each run of neighbouring segments of one length as views ``(I, P, ...)`` of every packed tensor ``(M, ...)``."""
    start = 0
    for length, run in groupby(lengths):
        count = len(list(run))
        yield [tensor[start : start + count * length].unflatten(0, (count, length)) for tensor in tensors]
        start += count * length
