"""Launches of the splice and of its plan: a batch of 16 samples of 2048 rows, one image of 576 rows each."""

from functools import partial

import torch
from lmmblocks.kernels.splice import splice_fwd
from lmmblocks.kernels.splice_bwd import splice_bwd_rows, splice_bwd_table, splice_bwd_table_into
from lmmblocks.kernels.splice_plan import splice_plan

SAMPLES, ROWS, IMAGE_ROWS = 16, 32768, 576


def _empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _splice(width: int, vocabulary: int, dtype: torch.dtype, scale: float | None = None, into: bool = False) -> None:
    """Forward and backward; the images are a view without the class token."""
    table = _empty(vocabulary, width, dtype=dtype)
    images = _empty(SAMPLES, IMAGE_ROWS + 1, width, dtype=dtype)[:, 1:]
    source, image_rows, order = (
        _empty(ROWS),
        _empty(SAMPLES * IMAGE_ROWS),
        _empty(ROWS - SAMPLES * IMAGE_ROWS),
    )
    grad = splice_fwd(table, images, source, scale)
    _, sums, bounds = splice_bwd_rows(grad, source, image_rows, order, vocabulary, dtype)
    if into:
        splice_bwd_table_into(_empty(vocabulary, width, dtype=torch.float32), grad, order, sums, bounds, scale)
    else:
        splice_bwd_table(grad, order, sums, bounds, scale, dtype)


def _plan(packed: bool, expanded: bool, labelled: bool, bidirectional: bool) -> None:
    shape = (ROWS,) if packed else (SAMPLES, ROWS // SAMPLES)
    splice_plan(
        _empty(*shape, dtype=torch.int64),
        _empty(SAMPLES + 1) if packed else None,
        None if packed else _empty(*shape, dtype=torch.int64),
        _empty(*shape, dtype=torch.int64) if labelled else None,
        None if expanded else _empty(SAMPLES + 1),
        _empty(4),
        -200, 32000, SAMPLES * IMAGE_ROWS, ROWS, 2048, True, bidirectional,
    )  # fmt: skip


CASES = {
    "D=4096 bf16": partial(_splice, 4096, 32000, torch.bfloat16),
    "D=3072 bf16 scaled": partial(_splice, 3072, 256000, torch.bfloat16, scale=55.5),
    "D=5120 bf16 into fp32": partial(_splice, 5120, 32000, torch.bfloat16, into=True),
    "D=896 fp32": partial(_splice, 896, 151936, torch.float32),
    "plan packed, one mark an image": partial(_plan, True, False, True, True),
    "plan padded, expanded marks": partial(_plan, False, True, False, False),
}
