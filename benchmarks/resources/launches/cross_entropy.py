"""Launches of linear cross-entropy: supervised rows of one batch, vocabularies of Llama 2 and 3, one that fills no line, a soft cap."""

import torch
from lmmblocks.kernels.cross_entropy import scale_in_place
from lmmblocks.kernels.linear_cross_entropy import linear_cross_entropy_grads, linear_cross_entropy_losses

ROWS, WIDTH = 1024, 4096


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _gradients(vocabulary: int, dtype: torch.dtype = torch.bfloat16, softcap: float | None = None) -> None:
    hidden, weight = _meta(ROWS, WIDTH, dtype=dtype), _meta(vocabulary, WIDTH, dtype=dtype)
    targets, factors = _meta(ROWS, dtype=torch.int64), _meta(ROWS, dtype=torch.float32)
    linear_cross_entropy_grads(hidden, weight, targets, factors, None, softcap, [True, True, False], dtype, dtype)


CASES = {
    "gradients V=32000 bf16": lambda: _gradients(32000),
    "gradients V=32003 bf16": lambda: _gradients(32003),
    "gradients V=256000 softcap bf16": lambda: _gradients(256000, softcap=30.0),
    "gradients V=32000 fp32": lambda: _gradients(32000, torch.float32),
    "losses V=128256 bf16": lambda: linear_cross_entropy_losses(_meta(ROWS, WIDTH), _meta(128256, WIDTH), _meta(ROWS, dtype=torch.int64), None, None),
    "scale bf16": lambda: scale_in_place(_meta(128256, WIDTH), _meta(1, dtype=torch.float32)),
}
