"""Launches of merged rows: the papers' budgets on CLIP's and SigLIP's patches, projected rows, images of many tiles in fp32."""

from functools import partial

import torch
from lmmblocks.kernels.merge_rows import merge_neighbours
from lmmblocks.kernels.merge_to_nearest import merge_to_nearest
from lmmblocks.kernels.row_choice import outlier_counts

IMAGES = 16


def _tensors(patches: int, width: int, key_width: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    rows = IMAGES * patches
    tensors = (torch.empty(rows, size, dtype=dtype, device="meta") for size in (width, key_width))
    return (
        *tensors,
        torch.empty(rows, dtype=dtype, device="meta"),
        torch.empty(IMAGES + 1, dtype=torch.int32, device="meta"),
    )


def _prumerge(patches: int, width: int, key_width: int, dtype: torch.dtype = torch.bfloat16) -> None:
    *tensors, cu = _tensors(patches, width, key_width, dtype)
    merge_neighbours(*tensors, cu, patches, 64, 64, 32, True)
    outlier_counts(tensors[-1], cu, patches)


def _visionzip(patches: int, width: int, key_width: int, dtype: torch.dtype = torch.bfloat16) -> None:
    merge_to_nearest(*_tensors(patches, width, key_width, dtype), patches, 54, 10)


CASES = {
    "neighbours, 576 rows": partial(_prumerge, 576, 1024, 1024),
    "neighbours, 2880 rows, fp32": partial(_prumerge, 2880, 1152, 1152, torch.float32),
    "nearest, 576 rows": partial(_visionzip, 576, 1024, 64),
    "nearest, 729 rows of 72": partial(_visionzip, 729, 4096, 72),
}
