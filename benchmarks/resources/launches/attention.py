"""Launches of packed attention: encoders see whole images, decoders see the past; every head dim and mask that has code of its own."""

import torch
from lmmblocks.kernels.attention_backward import attention_bwd
from lmmblocks.kernels.attention_forward import attention_fwd

IMAGES, ROWS = 64, 32768


def _both(
    heads: int, kv_heads: int, width: int, *, length: int | None = None, causal: bool = True, kv_end: bool = False,
    window: int | None = None, softcap: float | None = None, dtype: torch.dtype = torch.bfloat16, backward: bool = True,
) -> None:  # fmt: skip
    """Views of a fused projection; segments of one length, or of any."""
    rows, segments = (ROWS, 16) if length is None else (IMAGES * length, IMAGES)
    fused = torch.empty(rows, heads + 2 * kv_heads, width, dtype=dtype, device="meta")
    q, k, v = fused.split([heads, kv_heads, kv_heads], 1)
    cu = torch.empty(segments + 1, dtype=torch.int32, device="meta")
    ends = torch.empty(rows, dtype=torch.int32, device="meta") if kv_end else None
    longest, even, mask = length or 4096, length is not None, (causal, width**-0.5, window, softcap)
    out, lse = attention_fwd(q, k, v, cu, cu, ends, longest, even, *mask)
    if backward:
        attention_bwd(out, None, q, k, v, out, lse, cu, cu, ends, longest, longest, even, *mask)


CASES = {
    "E=64 full, 577 rows": lambda: _both(16, 16, 64, length=577, causal=False),
    "E=72 full, 729 rows": lambda: _both(16, 16, 72, length=729, causal=False),
    "E=128 causal": lambda: _both(32, 32, 128),
    "E=128 kv_end, groups of 4": lambda: _both(32, 8, 128, kv_end=True),
    "E=128 causal, groups of 4, 16 rows": lambda: _both(32, 8, 128, length=16, backward=False),
    "E=256 causal, window, softcap": lambda: _both(8, 4, 256, window=4096, softcap=50.0),
    "E=64 causal, fp32": lambda: _both(32, 32, 64, dtype=torch.float32),
    "E=96 causal": lambda: _both(32, 32, 96),
    "E=128 causal, fp32": lambda: _both(32, 32, 128, dtype=torch.float32),
    "E=256 causal, window, softcap, fp32": lambda: _both(8, 4, 256, window=4096, softcap=50.0, dtype=torch.float32),
}
