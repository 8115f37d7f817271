"""The Llama family of decoders over packed rows, with Hugging Face's parameter names.

Typed options describe the family member: Llama and Vicuna are the defaults, Mistral, Qwen2, Qwen3, Phi-3, Gemma 2 and Gemma 3 are others
(``weights/parts/hf_decoders.py`` says which options each has). Each segment of a batch is a conversation of its own: positions restart, attention
stays inside. The module returns hidden states; the loss owns the head. Source: Touvron et al., arXiv 2302.13971 and 2307.09288; names as
``LlamaForCausalLM`` of transformers and its relatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..spec import ByKeywords, LayerHook, LmmError, Segments, closest
from ..spec.fields import field_problems
from .cache import KVCache
from .context import LayerContext
from .ends import is_weight
from .hooks import HOOK_OFFERS, enter_layer, pass_vision
from .layer import GATES, RMSNorm, SandwichLayer, TransformerLayer, make_norm
from .rereading import RereadingCache
from .rotary import LongRope, RopeScaling, Rotary, rope_scaling
from .vision import VisionContext

__all__ = ["LayerContext", "RMSNorm", "Transformer", "TransformerConfig", "TransformerLayer"]


@dataclass(frozen=True)
class TransformerConfig(metaclass=ByKeywords):
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
        rope_scaling: how rotary frequencies are stretched (``rotary.py``); None = not.
        rotary_fraction: part of each head that is turned, from its first dimension on (Phi-3 and -4 mini).
        qkv_bias: queries, keys and values have a bias (Qwen2).
        qk_norm: each head's queries and keys are normalised before they are turned (Qwen3, Gemma 3).
        query_scalar: scores are divided by its square root; None = ``head_dim`` (Gemma).
        window: keys that a query of a sliding layer sees, the newest ones up to itself (Mistral); None = all.
        window_layers: the layers that slide; None = all when there is a window.
        window_theta: ``rope_theta`` of sliding layers, whose frequencies are not stretched (Gemma 3); None = as the others.
        softcap: soft limit of attention scores (Gemma 2).
        logit_softcap: soft limit of logits (Gemma 2).
        activation: of the gated MLP, ``silu`` or ``gelu_tanh`` (Gemma).
        offset_norms: norm weights are stored less one (Gemma).
        sandwich_norms: norms after attention and MLP too (Gemma).
        scaled_embeddings: token embeddings are multiplied by the square root of ``dim``; image rows are not (Gemma).
        fused: one weight for queries, keys and values, one for gate and up (Phi-3's files).
    """

    choices: ClassVar[tuple[str, ...]] = ("recompute",)
    """What is the user's choice and not a property of the weights, and stays when these are read."""

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
    rope_scaling: RopeScaling | None = None
    rotary_fraction: float = 1.0
    qkv_bias: bool = False
    qk_norm: bool = False
    query_scalar: int | None = None
    window: int | None = None
    window_layers: tuple[int, ...] | None = None
    window_theta: float | None = None
    softcap: float | None = None
    logit_softcap: float | None = None
    activation: str = "silu"
    offset_norms: bool = False
    sandwich_norms: bool = False
    scaled_embeddings: bool = False
    fused: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rope_scaling", rope_scaling(self.rope_scaling))
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
        else:
            yield from self._rotary_disagreements()
        if self.activation not in GATES:
            yield f"activation {self.activation!r} is none of {sorted(GATES)}{closest(self.activation, GATES)}"
        if self.window is None and (self.window_layers is not None or self.window_theta is not None):
            yield "window_layers and window_theta describe sliding layers: set window too"
        beyond = [layer for layer in self.window_layers or () if not 0 <= layer < self.layers]
        if beyond:
            yield f"window_layers {beyond} are not among the {self.layers} layers"

    def _rotary_disagreements(self) -> Iterator[str]:
        width = self.rotary_width
        if self.rotary_fraction > 1 or width < 2 or width % 2:
            yield f"rotary_fraction {self.rotary_fraction} turns {width} of {self.head_width} dimensions: expected pairs of them"
        scaling = self.rope_scaling
        if isinstance(scaling, LongRope) and {len(scaling.short), len(scaling.long)} != {width // 2}:
            found = (len(scaling.short), len(scaling.long))
            yield f"rope_scaling has {found} short and long divisors, {width} turned dimensions need {width // 2} of each"

    @property
    def head_width(self) -> int:
        """Head dim ``E``."""
        return self.head_dim or self.dim // self.heads

    @property
    def rotary_width(self) -> int:
        """Dimensions of a head that are turned."""
        return int(self.head_width * self.rotary_fraction)

    def slides(self, layer: int) -> bool:
        """Return whether a layer has the window."""
        return self.window is not None and (self.window_layers is None or layer in self.window_layers)

    def rotary_kind(self, layer: int) -> int:
        """Return which rotary table a layer reads: 1 for sliding layers with a base of their own, else 0."""
        return int(self.window_theta is not None and self.slides(layer))

    def with_vocab(self, rows: int) -> TransformerConfig:
        """Return the same decoder with a table of ``rows`` rows."""
        return replace(self, vocab=rows)

    def build(self) -> Transformer:
        """Return the decoder with random weights."""
        return Transformer(self)


class _Model(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.dim)
        kind = SandwichLayer if config.sandwich_norms else TransformerLayer
        self.layers = nn.ModuleList(kind(config, layer) for layer in range(config.layers))
        self.norm = make_norm(config)


class Transformer(nn.Module):
    """A decoder block: packed embeddings to hidden states.

    Attributes:
        dim: model width.
        vocab: rows of the embedding table.
        model: embeddings, layers, final norm.
        lm_head: linear head; shares the table's parameter when the config says ``tied``.
        embed_scale: factor of token embeddings, which the splice applies to text rows; None = 1.
        logit_softcap: soft limit of logits, for the head and the loss; None = none.
        hook_offers: what hooks may require.

    >>> decoder = TransformerConfig(dim=8, layers=1, heads=2, kv_heads=1, ffn_dim=16, vocab=5).build()
    >>> tokens = torch.tensor([1, 2, 3])
    >>> decoder(decoder.embed(tokens), positions=torch.arange(3), segments=Segments.of([3])).shape
    torch.Size([3, 8])
    """

    hook_offers = HOOK_OFFERS

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.dim, self.vocab = config.dim, config.vocab
        self.embed_scale = config.dim**0.5 if config.scaled_embeddings else None
        self.logit_softcap = config.logit_softcap
        self.rotaries = [Rotary(config.rotary_width, config.rope_theta, config.rope_scaling)]
        if config.window_theta is not None:
            self.rotaries.append(Rotary(config.rotary_width, config.window_theta))
        self.model = _Model(config)
        self.lm_head = nn.Linear(config.dim, config.vocab, bias=False)
        self.apply(_initialise)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def embed(self, ids: Tensor) -> Tensor:
        """Return ``(T, D)`` rows of the embedding table, scaled where the family does so."""
        rows_TD = self.model.embed_tokens(ids)
        return rows_TD if self.embed_scale is None else rows_TD * self.table.new_full((), self.embed_scale)

    @property
    def table(self) -> Tensor:
        """The embedding table ``(V, D)``, source of the splice."""
        return self.model.embed_tokens.weight

    @property
    def head_weight(self) -> Tensor:
        """The head ``(V, D)``, which the loss reads."""
        return self.lm_head.weight

    def resize_vocab(self, rows: int) -> None:
        """Give table and head ``rows`` rows, at least as many as they have; new ones are zeros. Older optimizers hold the old parameters."""
        table, head = self.model.embed_tokens, self.lm_head
        table.weight = _longer(table.weight, rows)
        head.weight = table.weight if self.config.tied else _longer(head.weight, rows)
        table.num_embeddings = head.out_features = self.vocab = rows
        self.config = replace(self.config, vocab=rows)

    @property
    def sees_ahead(self) -> str | bool:
        """Whether rows may see ahead (``kv_end``), with a cache too; if not, why."""
        if isinstance(self.config.rope_scaling, LongRope):
            return "with a cache LongRoPE reads rows again, without remembering what each of them saw"
        return True

    @property
    def table_is_weight(self) -> bool:
        """False where something wraps the table, so that its rows alone don't say what ``embed`` gives."""
        return is_weight(self.model.embed_tokens, nn.Embedding)

    @property
    def head_is_weight(self) -> bool:
        """False where something wraps the head, so that its rows alone don't say what ``head`` gives."""
        return is_weight(self.lm_head, nn.Linear)

    @property
    def recompute(self) -> bool:
        """Whether each layer is computed again in the backward; may be set at any time, and the config follows."""
        return self.config.recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self.config = replace(self.config, recompute=value)

    def new_cache(self, sequences: int) -> KVCache:
        """Return an empty cache for ``sequences`` sequences."""
        scaling = self.config.rope_scaling
        if isinstance(scaling, LongRope):
            return RereadingCache(self.config.layers, sequences, scaling)
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
        vision: VisionContext | None = None,
    ) -> Tensor:
        """Run packed rows.

        Args:
            embeds: ``(T, D)``.
            positions: ``(T,)``, restarting per segment; with a cache they go on from its lengths.
            segments: boundaries of the new rows; with a cache, one segment per cached sequence.
            kv_end: packed key index one past the last visible key of each row; None = causal.
            cache: appended to, and read.
            hooks: called before the layers they name.
            vision: the images of the rows, for hooks that require them; with a cache, those it has read are remembered.

        Returns:
            ``hidden_TD`` after the final norm; zeros for rows that a hook dropped.
        """
        asked = None
        if isinstance(cache, RereadingCache):
            embeds, positions, segments, asked = cache.rows_to_read(embeds, positions, segments, kv_end)
        vision = pass_vision(vision, cache, segments, embeds.shape[0])
        whole = segments if cache is None else cache.segments(segments.lengths_q, embeds.device)
        cos_TE, sin_TE = zip(*(rotary.table(positions, whole) for rotary in self.rotaries))
        context = LayerContext(0, positions, whole, kv_end, cos_TE, sin_TE, cache, vision)
        x_TD = embeds
        for index, layer in enumerate(self.model.layers):
            x_TD, context = enter_layer(hooks, x_TD, context, index)
            x_TD = self._run(layer, x_TD, context)
        if cache is not None:
            cache.advance(segments.lengths_q)
        hidden_TD = context.restored(self.model.norm(x_TD))
        return hidden_TD if asked is None else hidden_TD.index_select(0, asked)

    def _run(self, layer: nn.Module, x_TD: Tensor, context: LayerContext) -> Tensor:
        if self.config.recompute and torch.is_grad_enabled() and context.cache is None:
            return _recomputed(layer, x_TD, context)
        return layer(x_TD, context)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits ``(..., V)``."""
        return ops.softcapped(self.lm_head(hidden), self.logit_softcap)


def _recomputed(layer: nn.Module, x_TD: Tensor, context: LayerContext) -> Any:
    return checkpoint(layer, x_TD, context, use_reentrant=False)


def _longer(weight: Tensor, rows: int) -> nn.Parameter:
    longer = torch.cat([weight.detach(), weight.new_zeros(rows - len(weight), weight.shape[1])])
    return nn.Parameter(longer, weight.requires_grad)


def _initialise(module: nn.Module) -> None:
    """Normal(0, 0.02) for linear layers and embeddings, as Llama's ``initializer_range``."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
