"""Launches of row scores: CLS over the tokens of CLIP, the last row of a decoder with a window and a softcap, any lengths, fp32."""

import torch
from lmmblocks.kernels.row_scores import row_scores

BATCH = 32


def _scores(
    heads: int, kv_heads: int, width: int, keys: int, *, even: bool = True, last: bool = False,
    window: int | None = None, softcap: float | None = None, dtype: torch.dtype = torch.bfloat16,
) -> None:  # fmt: skip
    q = torch.empty(BATCH * (keys if last else 1), heads, width, dtype=dtype, device="meta")
    k = torch.empty(BATCH * keys, kv_heads, width, dtype=dtype, device="meta")
    cu = torch.empty(BATCH + 1, dtype=torch.int32, device="meta")
    row_scores(q, k, cu, cu, keys if last else 1, keys, even, width**-0.5, window, softcap, last)


CASES = {
    "E=64, 577 keys": lambda: _scores(16, 16, 64, 577),
    "E=72, any number": lambda: _scores(16, 16, 72, 729, even=False),
    "E=128, groups of 4, last row": lambda: _scores(32, 8, 128, 2048, even=False, last=True),
    "E=256, last row, window, softcap": lambda: _scores(8, 4, 256, 2048, last=True, window=1024, softcap=50.0),
    "E=64, 577 keys, fp32": lambda: _scores(16, 16, 64, 577, dtype=torch.float32),
}
