"""Launches of the RMS norm: widths of the decoders it runs in, heads of a fused projection, with a residual and with Gemma's offset."""

from functools import partial

import torch
from lmmblocks.kernels.rms_norm import add_rms_norm_bwd, add_rms_norm_fwd, rms_norm_bwd, rms_norm_fwd

ROWS = 32768


def _both(width: int, dtype: torch.dtype, offset: float = 0.0) -> None:
    x, w = (torch.empty(*size, dtype=dtype, device="meta") for size in ((ROWS, width), (width,)))
    y, rstd = rms_norm_fwd(x, w, 1e-5, offset)
    rms_norm_bwd(x, w, rstd, y, offset)


def _heads(heads: int, width: int, dtype: torch.dtype) -> None:
    fused = torch.empty(ROWS, 2 * heads * width, dtype=dtype, device="meta")
    x, w = fused[:, : heads * width].unflatten(1, (heads, width)), fused.new_empty(width)
    y, rstd = rms_norm_fwd(x, w, 1e-5)
    rms_norm_bwd(x, w, rstd, y)


def _behind_a_sum(width: int, dtype: torch.dtype, offset: float = 0.0) -> None:
    x, w = (torch.empty(*size, dtype=dtype, device="meta") for size in ((ROWS, width), (width,)))
    y, summed, rstd = add_rms_norm_fwd(x, x, w, 1e-5, offset)
    add_rms_norm_bwd(summed, w, rstd, y, summed, offset)


CASES = {
    "D=2560 bf16 offset": partial(_both, 2560, torch.bfloat16, 1.0),
    "D=4096 bf16": partial(_both, 4096, torch.bfloat16),
    "D=4096 fp32": partial(_both, 4096, torch.float32),
    "D=16384 bf16": partial(_both, 16384, torch.bfloat16),
    "32 heads of 128 bf16": partial(_heads, 32, 128, torch.bfloat16),
    "D=3584 bf16 behind a sum": partial(_behind_a_sum, 3584, torch.bfloat16),
    "D=4096 bf16 behind a sum": partial(_behind_a_sum, 4096, torch.bfloat16),
    "D=5120 bf16 behind a sum": partial(_behind_a_sum, 5120, torch.bfloat16),
}
