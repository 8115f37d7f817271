"""Launches of split decoding: one new row a sequence of the decoders it runs in, a few rows, a window with a softcap, one part and many."""

import torch
from lmmblocks.kernels.attention_decode import attention_decode


def _decode(
    heads: int, kv_heads: int, width: int, *, keys: int = 4096, rows: int = 1, batch: int = 4, even: bool = True,
    window: int | None = None, softcap: float | None = None, dtype: torch.dtype = torch.bfloat16,
) -> None:  # fmt: skip
    q = torch.empty(batch * rows, heads, width, dtype=dtype, device="meta")
    k, v = torch.empty(batch * keys, 2 * kv_heads, width, dtype=dtype, device="meta").split(kv_heads, 1)
    cu = torch.empty(batch + 1, dtype=torch.int32, device="meta")
    attention_decode(q, k, v, cu, cu, rows, even, True, width**-0.5, window, softcap, (window or keys,) * batch)


CASES = {
    "E=64, groups of 7": lambda: _decode(14, 2, 64),
    "E=128": lambda: _decode(32, 32, 128, batch=1),
    "E=128, groups of 4": lambda: _decode(32, 8, 128),
    "E=128, groups of 4, 16 rows of any number": lambda: _decode(32, 8, 128, rows=16, even=False),
    "E=128, one part": lambda: _decode(32, 8, 128, batch=64),
    "E=256, window, softcap": lambda: _decode(8, 4, 256, window=4096, softcap=50.0, keys=8192),
    "E=128, groups of 4, fp32": lambda: _decode(32, 8, 128, dtype=torch.float32),
}
