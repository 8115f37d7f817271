"""Launches of the rotary embedding: heads of Llama, Qwen, Phi and Gemma, apart, in place, adjoint and after a norm of each head."""

from functools import partial

import torch
from lmmblocks.kernels.qk_norm_rope import qk_norm_rope_bwd, qk_norm_rope_fwd
from lmmblocks.kernels.rope import rope_apart, rope_in_place

TOKENS = 32768


def _views(heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of a fused projection."""
    fused = torch.empty(TOKENS, heads + 2 * kv_heads, width, dtype=dtype, device="meta")
    return fused[:, :heads], fused[:, heads : heads + kv_heads]


def _table(width: int) -> torch.Tensor:
    return torch.empty(TOKENS, width, device="meta")


def _rope(heads: int, kv_heads: int, width: int, turned: int, dtype: torch.dtype, in_place: bool, adjoint: bool) -> None:
    launch = rope_in_place if in_place else rope_apart
    launch(*_views(heads, kv_heads, width, dtype), _table(turned), _table(turned), adjoint)


def _norm_and_rope(heads: int, kv_heads: int, width: int, dtype: torch.dtype, offset: float = 0.0) -> None:
    views, weight = _views(heads, kv_heads, width, dtype), torch.empty(width, dtype=dtype, device="meta")
    grads = qk_norm_rope_fwd(*views, weight, weight, _table(width), _table(width), 1e-6, offset)
    qk_norm_rope_bwd(*views, weight, weight, _table(width), _table(width), *grads, 1e-6, offset)


CASES = {
    "32+8 heads of 128 bf16": partial(_rope, 32, 8, 128, 128, torch.bfloat16, False, False),
    "32+8 heads of 128 bf16 adjoint": partial(_rope, 32, 8, 128, 128, torch.bfloat16, False, True),
    "40+40 heads of 128 bf16 in place": partial(_rope, 40, 40, 128, 128, torch.bfloat16, True, False),
    "14+2 heads of 64 bf16": partial(_rope, 14, 2, 64, 64, torch.bfloat16, False, False),
    "24+8 heads of 128, 96 turned, bf16": partial(_rope, 24, 8, 128, 96, torch.bfloat16, False, False),
    "32+8 heads of 128 fp32": partial(_rope, 32, 8, 128, 128, torch.float32, False, False),
    "32+8 heads of 128 bf16 norm": partial(_norm_and_rope, 32, 8, 128, torch.bfloat16),
    "16+8 heads of 128 fp32 norm": partial(_norm_and_rope, 16, 8, 128, torch.float32),
    "8+4 heads of 256 bf16 norm offset": partial(_norm_and_rope, 8, 4, 256, torch.bfloat16, 1.0),
}
