"""The Llama family of decoders over packed rows, with Hugging Face's parameter names.

Typed options describe the family member; Llama and Vicuna are the defaults. Each segment of a batch is a conversation of its own: positions
restart, attention stays inside. The module returns hidden states; the loss owns the head. Source: Touvron et al., arXiv 2302.13971 and
2307.09288; names as ``LlamaForCausalLM`` of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..field_checks import field_problems
from ..spec import LayerHook, LmmError, Segments
from .cache import KVCache


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a decoder; defaults are Vicuna-7B v1.5 (Llama 2).

    Attributes:
        dim: model width ``D``.
        layers: transformer layers.
        heads: query heads ``N``.
        kv_heads: key and value heads ``K``.
        head_dim: ``E``; None = ``dim / heads``.
        ffn_dim: hidden width of the SwiGLU.
        vocab: rows of the embedding table.
        rope_theta: base of the rotary frequencies.
        eps: of the RMS norms.
        tied: the head shares the embedding table.
        max_positions: longest sequence the weights were trained for.
        recompute: recompute each layer in the backward instead of keeping its activations.
    """

    dim: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_dim: int | None = None
    ffn_dim: int = 11008
    vocab: int = 32000
    rope_theta: float = 10000.0
    eps: float = 1e-5
    tied: bool = False
    max_positions: int = 4096
    recompute: bool = False

    def __post_init__(self) -> None:
        problems = field_problems(self) or list(self._disagreements())
        if problems:
            raise LmmError("TransformerConfig: " + "; ".join(problems))

    def _disagreements(self) -> Iterator[str]:
        if self.heads % self.kv_heads:
            yield f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}"
        if self.head_dim is None and self.dim % self.heads:
            yield f"dim {self.dim} is not a multiple of heads {self.heads}: set head_dim"
        elif self.head_width % 2:
            yield f"head_dim {self.head_width} is odd: rotary embedding turns pairs"

    @property
    def head_width(self) -> int:
        """Head dim ``E``."""
        return self.head_dim or self.dim // self.heads

    def build(self) -> Transformer:
        """Return the decoder with random weights."""
        return Transformer(self)


@dataclass(slots=True)
class LayerContext:
    """What a layer, or a hook in front of it, may know about the pass.

    Attributes:
        layer: index of the layer about to run.
        positions: ``(T,)``.
        segments: boundaries of queries and keys.
        kv_end: see ``ops.attention``; None = causal.
        cos_TE: rotary table.
        sin_TE: rotary table.
        cache: keys and values of earlier tokens, or None.
    """

    layer: int
    positions: Tensor
    segments: Segments
    kv_end: Tensor | None
    cos_TE: Tensor
    sin_TE: Tensor
    cache: KVCache | None


class RMSNorm(nn.Module):
    """``ops.rms_norm`` with its weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``x``."""
        return ops.rms_norm(x, self.weight, self.eps)


class _Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, self.head_dim = config.dim, config.head_width
        self.q_proj = nn.Linear(dim, config.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(dim, config.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, config.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * self.head_dim, dim, bias=False)

    def forward(self, x_TD: Tensor, context: LayerContext) -> Tensor:
        heads = (p(x_TD).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q_TNE, k_TKE, v_TKE = heads
        q_TNE, k_TKE = ops.rope(q_TNE, k_TKE, context.cos_TE, context.sin_TE)
        if context.cache is not None:
            k_TKE, v_TKE = context.cache.append(context.layer, k_TKE, v_TKE, context.segments.lengths_q)
        out_TNE = ops.attention(q_TNE, k_TKE, v_TKE, context.segments, causal=True, kv_end=context.kv_end)
        return self.o_proj(out_TNE.flatten(1))


class _MLP(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(ops.swiglu(self.gate_proj(x_TD), self.up_proj(x_TD)))


class TransformerLayer(nn.Module):
    """Attention and SwiGLU, each behind an RMS norm and beside a residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.eps)
        self.mlp = _MLP(config)

    def forward(self, x_TD: Tensor, context: LayerContext) -> Tensor:
        """Run one layer over packed rows ``(T, D)``."""
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), context)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


class _Model(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.dim)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.eps)


class Transformer(nn.Module):
    """A decoder block: packed embeddings to hidden states.

    Attributes:
        dim: model width.
        vocab: rows of the embedding table.
        model: embeddings, layers, final norm.
        lm_head: linear head; shares the table's parameter when the config says ``tied``.

    >>> decoder = TransformerConfig(dim=8, layers=1, heads=2, kv_heads=1, ffn_dim=16, vocab=5).build()
    >>> tokens = torch.tensor([1, 2, 3])
    >>> decoder(decoder.embed(tokens), positions=torch.arange(3), segments=Segments.of([3])).shape
    torch.Size([3, 8])
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.dim, self.vocab = config.dim, config.vocab
        self.model = _Model(config)
        self.lm_head = nn.Linear(config.dim, config.vocab, bias=False)
        self.apply(_initialise)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def embed(self, ids: Tensor) -> Tensor:
        """Return ``(T, D)`` rows of the embedding table."""
        return self.model.embed_tokens(ids)

    @property
    def table(self) -> Tensor:
        """The embedding table ``(V, D)``, source of the splice."""
        return self.model.embed_tokens.weight

    @property
    def head_weight(self) -> Tensor:
        """The head ``(V, D)``, which the loss reads."""
        return self.lm_head.weight

    def new_cache(self, sequences: int) -> KVCache:
        """Return an empty cache for ``sequences`` sequences."""
        return KVCache(self.config.layers, sequences)

    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor,
        segments: Segments,
        kv_end: Tensor | None = None,
        cache: KVCache | None = None,
        hooks: Sequence[LayerHook] = (),
    ) -> Tensor:
        """Run packed rows.

        Args:
            embeds: ``(T, D)``.
            positions: ``(T,)``, restarting per segment; behind a cache they go on from its lengths.
            segments: boundaries of the new rows; with a cache, one segment per cached sequence.
            kv_end: packed key index one past the last visible key of each row; None = causal.
            cache: appended to, and read.
            hooks: called in front of the layers they name.

        Returns:
            ``hidden_TD`` after the final norm.
        """
        cos_TE, sin_TE = ops.rope_table(positions, self.config.head_width, self.config.rope_theta)
        whole = segments if cache is None else cache.segments(segments.lengths_q, embeds.device)
        context = LayerContext(0, positions, whole, kv_end, cos_TE, sin_TE, cache)
        x_TD = embeds
        for index, layer in enumerate(self.model.layers):
            context = replace(context, layer=index)  # recomputing a layer needs the context it had
            for hook in hooks:
                if index in hook.layers:
                    x_TD = hook(x_TD, context)
            x_TD = self._run(layer, x_TD, context)
        if cache is not None:
            cache.advance(segments.lengths_q)
        return self.model.norm(x_TD)

    def _run(self, layer: nn.Module, x_TD: Tensor, context: LayerContext) -> Tensor:
        if self.config.recompute and torch.is_grad_enabled() and context.cache is None:
            return _recomputed(layer, x_TD, context)
        return layer(x_TD, context)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits ``(..., V)``."""
        return self.lm_head(hidden)


def _recomputed(layer: nn.Module, x_TD: Tensor, context: LayerContext) -> Any:
    return checkpoint(layer, x_TD, context, use_reentrant=False)


def _initialise(module: nn.Module) -> None:
    """Normal(0, 0.02) for linear layers and embeddings, as Llama's ``initializer_range``."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
