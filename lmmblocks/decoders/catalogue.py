"""Decoders by one word: shape and hub id of the weights.

The shape serves where no weights are read (``weights="random"``, ``device="meta"``); otherwise the ``config.json`` beside the weights counts.
Sources: the ``config.json`` of each repository.
"""

from __future__ import annotations

from dataclasses import replace

from .transformer import TransformerConfig

_VICUNA = TransformerConfig()
_LLAMA3 = TransformerConfig(kv_heads=8, ffn_dim=14336, vocab=128256, rope_theta=500000.0, max_positions=8192)
_QWEN2_5 = TransformerConfig(
    dim=3584, layers=28, heads=28, kv_heads=4, ffn_dim=18944, vocab=152064, rope_theta=1e6, eps=1e-6, max_positions=32768, qkv_bias=True
)
_QWEN2_5_SMALL = replace(_QWEN2_5, vocab=151936, tied=True)
_QWEN3 = TransformerConfig(
    layers=36, kv_heads=8, head_dim=128, ffn_dim=12288, vocab=151936, rope_theta=1e6, eps=1e-6, max_positions=40960, qk_norm=True
)
_QWEN3_SMALL = replace(_QWEN3, layers=28, heads=16, tied=True)

DECODERS: dict[str, tuple[TransformerConfig, str]] = {
    "vicuna-7b": (_VICUNA, "lmsys/vicuna-7b-v1.5"),
    "vicuna-13b": (replace(_VICUNA, dim=5120, layers=40, heads=40, kv_heads=40, ffn_dim=13824), "lmsys/vicuna-13b-v1.5"),
    "llama3-8b": (_LLAMA3, "meta-llama/Meta-Llama-3-8B-Instruct"),
    "qwen2.5-0.5b": (replace(_QWEN2_5_SMALL, dim=896, layers=24, heads=14, kv_heads=2, ffn_dim=4864), "Qwen/Qwen2.5-0.5B-Instruct"),
    "qwen2.5-1.5b": (replace(_QWEN2_5_SMALL, dim=1536, heads=12, kv_heads=2, ffn_dim=8960), "Qwen/Qwen2.5-1.5B-Instruct"),
    "qwen2.5-7b": (_QWEN2_5, "Qwen/Qwen2.5-7B-Instruct"),
    "qwen3-0.6b": (replace(_QWEN3_SMALL, dim=1024, ffn_dim=3072), "Qwen/Qwen3-0.6B"),
    "qwen3-1.7b": (replace(_QWEN3_SMALL, dim=2048, ffn_dim=6144), "Qwen/Qwen3-1.7B"),
    "qwen3-4b": (replace(_QWEN3, dim=2560, ffn_dim=9728, tied=True), "Qwen/Qwen3-4B"),
    "qwen3-8b": (_QWEN3, "Qwen/Qwen3-8B"),
}
"""One word for ``build(decoder=...)``."""
