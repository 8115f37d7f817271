"""One decoder layer over packed rows: attention and a gated MLP, each after a norm and beside a residual; options of the family decide.

Parameter names are those of transformers' models: ``LlamaDecoderLayer``, ``Qwen3DecoderLayer``, ``Phi3DecoderLayer`` (fused
projections) and ``Gemma2DecoderLayer`` (norms after attention and MLP too).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn as nn
from torch import Tensor

from .. import ops
from .context import LayerContext

if TYPE_CHECKING:
    from .transformer import TransformerConfig


class RMSNorm(nn.Module):
    """``ops.rms_norm`` with its weight."""

    offset = 0.0

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``x``."""
        return ops.rms_norm(x, self.weight, self.eps, offset=self.offset)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised sum of both, and the sum."""
        return ops.add_rms_norm(x, residual, self.weight, self.eps, offset=self.offset)


class OffsetRMSNorm(RMSNorm):
    """RMS norm whose weight is stored less one, multiplied before rounding to the dtype of ``x``: Gemma's.

    Source: ``Gemma2RMSNorm`` of transformers; huggingface/transformers#29402.
    """

    offset = 1.0

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps)
        nn.init.zeros_(self.weight)


def make_norm(config: TransformerConfig, dim: int | None = None) -> RMSNorm:
    """Return a norm of the family, of the model's width if none is given."""
    kind = OffsetRMSNorm if config.offset_norms else RMSNorm
    return kind(dim or config.dim, config.eps)


class _Attention(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.head_dim = config.head_width
        self.widths = [heads * self.head_dim for heads in (config.heads, config.kv_heads, config.kv_heads)]
        self.fused = config.fused
        if self.fused:
            self.qkv_proj = nn.Linear(config.dim, sum(self.widths), bias=config.qkv_bias)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(config.dim, width, bias=config.qkv_bias) for width in self.widths)
        self.o_proj = nn.Linear(self.widths[0], config.dim, bias=False)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm, self.k_norm = make_norm(config, self.head_dim), make_norm(config, self.head_dim)
        self.kind = config.rotary_kind(layer)
        self.window = config.window if config.slides(layer) else None
        self.softcap = config.softcap
        self.scale = None if config.query_scalar is None else config.query_scalar**-0.5

    def forward(self, x_TD: Tensor, context: LayerContext) -> Tensor:
        q_TNE, k_TKE, v_TKE = (part.unflatten(-1, (-1, self.head_dim)) for part in self._projected(x_TD))
        q_TNE, k_TKE = self._turned(q_TNE, k_TKE, context.cos_TE[self.kind], context.sin_TE[self.kind])
        if context.cache is not None:
            k_TKE, v_TKE = context.cache.append(context.layer, k_TKE, v_TKE, context.segments.lengths_q)
        if context.wants_scores:
            context.last_row_scores = ops.last_row_scores(q_TNE, k_TKE, context.segments, scale=self.scale, window=self.window, softcap=self.softcap)
        out_TNE = ops.attention(
            q_TNE,
            k_TKE,
            v_TKE,
            context.segments,
            causal=True,
            kv_end=context.kv_end,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
        )
        return self.o_proj(out_TNE.flatten(1))

    def _turned(self, q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> tuple[Tensor, Tensor]:
        if not self.qk_norm:
            return ops.rope(q_TNE, k_TKE, cos_TE, sin_TE)
        q, k = self.q_norm, self.k_norm
        return ops.qk_norm_rope(q_TNE, k_TKE, q.weight, k.weight, cos_TE, sin_TE, q.eps, offset=q.offset)

    def _projected(self, x_TD: Tensor) -> tuple[Tensor, ...]:
        if self.fused:
            return self.qkv_proj(x_TD).split(self.widths, -1)
        return self.q_proj(x_TD), self.k_proj(x_TD), self.v_proj(x_TD)


GATES = {"silu": ops.swiglu, "gelu_tanh": ops.geglu}
"""``TransformerConfig.activation`` -> the gated activation."""


class _MLP(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate, self.fused = GATES[config.activation], config.fused
        if self.fused:
            self.gate_up_proj = nn.Linear(config.dim, 2 * config.ffn_dim, bias=False)
        else:
            self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
            self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.fused:
            return self.down_proj(self.gate(*self.gate_up_proj(x_TD).chunk(2, -1)))
        return self.down_proj(self.gate(self.gate_proj(x_TD), self.up_proj(x_TD)))


class TransformerLayer(nn.Module):
    """Attention and a gated MLP, each after a norm and beside a residual: Llama's."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = _Attention(config, layer)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = _MLP(config)

    def forward(self, x_TD: Tensor, context: LayerContext) -> Tensor:
        """Run one layer over packed rows ``(T, D)``."""
        attended_TD = self.self_attn(self.input_layernorm(x_TD), context)
        normed_TD, x_TD = self.post_attention_layernorm.of_sum(attended_TD, x_TD)
        return x_TD + self.mlp(normed_TD)


class SandwichLayer(TransformerLayer):
    """The same with a norm after attention and MLP too, before each residual: Gemma's. ``post_attention_layernorm`` is one of these."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.pre_feedforward_layernorm = make_norm(config)
        self.post_feedforward_layernorm = make_norm(config)

    def forward(self, x_TD: Tensor, context: LayerContext) -> Tensor:
        """Run one layer over packed rows ``(T, D)``."""
        attended_TD = self.post_attention_layernorm(self.self_attn(self.input_layernorm(x_TD), context))
        normed_TD, x_TD = self.pre_feedforward_layernorm.of_sum(attended_TD, x_TD)
        return x_TD + self.post_feedforward_layernorm(self.mlp(normed_TD))
