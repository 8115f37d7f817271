"""Launches of the layer norm: widths of the vision towers it runs in."""

from functools import partial

import torch
from lmmblocks.kernels.layer_norm import layer_norm_bwd, layer_norm_fwd

ROWS = 16 * 577


def _both(width: int, dtype: torch.dtype) -> None:
    x, w = (torch.empty(*size, dtype=dtype, device="meta") for size in ((ROWS, width), (width,)))
    y, mean, rstd = layer_norm_fwd(x, w, w, 1e-5)
    layer_norm_bwd(x, w, mean, rstd, y)


CASES = {
    "C=1024 bf16": partial(_both, 1024, torch.bfloat16),
    "C=1152 bf16": partial(_both, 1152, torch.bfloat16),
    "C=1408 bf16": partial(_both, 1408, torch.bfloat16),
    "C=1024 fp32": partial(_both, 1024, torch.float32),
}
