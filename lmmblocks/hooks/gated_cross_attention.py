"""Gated cross-attention: from between the layers of a language model its text looks at the images (Flamingo, IDEFICS).

Motivation: a model whose images are no rows of the text, so that the language model can stay as it was: each look is added after a tanh
gate that starts at zero. How it works: before each layer in ``layers`` a row attends to the features of one image, the last one of its
sequence up to its own place (the row that stands for an image sees that image). Rows before the first image attend to nothing, their
gate is closed; the MLP after is for all rows. Queries are runs of rows, keys the rows of one image each, so attention stays packed
and needs no mask (``last_image.py``). The images' rows, their keys and their values are computed once per set of images, also with a
cache (``VisionContext.memo``).

Two things are left to others: ``projectors/image_token.py`` puts the row into the text that stands for an image, and a new document in the
same row of a batch, after whose end token IDEFICS' processor hides images, is a segment of its own here.

Source: Alayrac et al., arXiv 2204.14198 (Flamingo); Laurençon et al., arXiv 2306.16527 (IDEFICS); ``modeling_idefics.py`` and
``image_attention_mask_for_packed_input_ids`` in ``processing_idefics.py`` of transformers 5.23.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
import torch.nn as nn
from torch import Tensor

from .. import ops
from ..decoders.context import LayerContext
from ..decoders.layer import RMSNorm
from ..decoders.vision import VisionContext
from ..projectors.grids import context as looked_at
from ..projectors.perceiver import Perceiver
from ..spec import LmmError, Segments, refuse_unknown
from ..spec.fields import problem
from ..spec.options import remembers_options
from .last_image import LastImage, starts_of

Gate = Literal["float", "vector"]


class _CrossAttention(nn.Module):
    """Queries from the text, keys and values from the images; no positions and no biases."""

    def __init__(self, in_dim: int, dim: int, heads: int, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(in_dim, dim, bias=False) for _ in range(2))
        self.q_layer_norm, self.k_layer_norm = (RMSNorm(dim // heads, eps) if qk_norm else None for _ in range(2))

    def keys_and_values(self, rows_MC: Tensor) -> tuple[Tensor, Tensor]:
        k_MNE, v_MNE = (layer(rows_MC).unflatten(-1, (self.heads, -1)) for layer in (self.k_proj, self.v_proj))
        return (k_MNE if self.k_layer_norm is None else self.k_layer_norm(k_MNE)), v_MNE

    def forward(self, x_TD: Tensor, k_MNE: Tensor, v_MNE: Tensor, segments: Segments) -> Tensor:
        q_TNE = self.q_proj(x_TD).unflatten(-1, (self.heads, -1))
        q_TNE = q_TNE if self.q_layer_norm is None else self.q_layer_norm(q_TNE)
        return self.o_proj(ops.attention(q_TNE, k_MNE, v_MNE, segments, causal=False).flatten(1))


class _MLP(nn.Module):
    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(dim, ffn_dim, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(ops.swiglu(self.gate_proj(x_TD), self.up_proj(x_TD)))


class _Layer(nn.Module):
    """Cross-attention and a gated MLP, each after a norm, each added after its own tanh gate."""

    def __init__(self, cross_attn: _CrossAttention, dim: int, ffn_dim: int, gate: str, eps: float) -> None:
        super().__init__()
        self.cross_attn, self.mlp = cross_attn, _MLP(dim, ffn_dim)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(dim, eps), RMSNorm(dim, eps)
        shape = (1, 1, dim) if gate == "vector" else (1,)  # as the files have it
        self.alpha_cross_attn, self.alpha_dense = (nn.Parameter(torch.zeros(shape)) for _ in range(2))

    def look(self, x_TD: Tensor, k_MNE: Tensor, v_MNE: Tensor, segments: Segments) -> Tensor:
        """Return rows that see an image, with what they saw."""
        return x_TD + _opened(self.alpha_cross_attn) * self.cross_attn(self.input_layernorm(x_TD), k_MNE, v_MNE, segments)

    def think(self, x_TD: Tensor) -> Tensor:
        """Return rows after the MLP."""
        return x_TD + _opened(self.alpha_dense) * self.mlp(self.post_attention_layernorm(x_TD))


def _opened(alpha: Tensor) -> Tensor:
    return alpha.flatten().tanh()


@remembers_options
class GatedCrossAttention(nn.Module):
    """A layer hook.

    Args:
        in_dim: encoder width ``C``.
        out_dim: decoder width ``D``.
        layers: the decoder layers before which it stands; IDEFICS: every fourth one, from the first on.
        heads: attention heads, of width ``out_dim / heads``.
        ffn_dim: hidden width of the MLPs.
        qk_norm: RMSNorm of queries and keys per head, as IDEFICS' released models have.
        gate: ``float``, one gate for a whole row, or ``vector``, one for each of its numbers.
        eps: of the RMS norms.
        prefix: the encoder's prefix tokens (CLS) are looked at too, as in IDEFICS.
        resampler: options of a ``Perceiver`` that makes a few rows of each image first, beside ``prefix`` and ``project``; None = the
            encoder's own rows are looked at.

    Raises:
        LmmError: options that make no sense, all of them listed, or options that no ``Perceiver`` has.

    Parameter names are those of transformers' ``IdeficsModel``: ``gated_cross_attn_layers.N.*``; ``resampler.*`` is its
    ``perceiver_resampler.*``.

    >>> hook = GatedCrossAttention(6, 8, layers=[0, 2], heads=2, ffn_dim=16, resampler=dict(latents=3, depth=1, heads=2, head_dim=4))
    >>> len(hook.gated_cross_attn_layers), sorted(hook.requires)
    (2, ['prefix', 'vision'])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        layers: Sequence[int],
        heads: int = 32,
        ffn_dim: int = 11008,
        qk_norm: bool = False,
        gate: str = "float",
        eps: float = 1e-6,
        prefix: bool = True,
        resampler: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        problems = list(_problems(out_dim, layers, heads, ffn_dim, gate))
        if problems:
            raise LmmError(f"hook 'gated_cross_attention': {'; '.join(problems)}")
        self.layers = tuple(layers)
        self.prefix = prefix
        self.requires = frozenset({"vision", "prefix"} if prefix else {"vision"})
        self.resampler = None if resampler is None else _resampler(in_dim, prefix, resampler)
        self.gated_cross_attn_layers = nn.ModuleList(
            _Layer(_CrossAttention(in_dim, out_dim, heads, qk_norm, eps), out_dim, ffn_dim, gate, eps) for _ in self.layers
        )

    def forward(self, hidden: Tensor, context: LayerContext) -> Tensor:
        """Return the rows ``(T, D)`` that enter layer ``context.layer``."""
        place = self.layers.index(context.layer)
        layer: Any = self.gated_cross_attn_layers[place]
        vision = context.vision
        if vision is not None and vision.counts:
            sight, segments = self._sight(context, vision)
            if sight.shown:
                k_MNE, v_MNE = self._keys_and_values(place, vision, sight.shown)
                hidden = sight.put_back(hidden, layer.look(sight.taken(hidden), k_MNE, v_MNE, segments))
        return layer.think(hidden)

    def _images(self, vision: VisionContext) -> tuple[Tensor, tuple[int, ...]]:
        """Return what is looked at of all images, and the number of rows of each; an image in tiles has those of its tiles."""
        key = (id(self), "images")
        if key not in vision.memo:
            assert vision.features is not None
            features = vision.features
            if self.resampler is None:
                rows_MC, counts = looked_at(features, self.prefix)
            else:
                rows_MC, counts = self.resampler(features), tuple(map(self.resampler.out_grid, features.grids))
            ends = list(accumulate(vision.tiles, initial=0))
            vision.memo[key] = rows_MC, tuple(sum(counts[first:last]) for first, last in pairwise(ends))
        return vision.memo[key]

    def _sight(self, context: LayerContext, vision: VisionContext) -> tuple[LastImage, Segments]:
        """Return which image each row sees, and the attention segments of those that see one; the same for all layers of a pass."""
        key, lengths = (id(self), "sight"), context.segments.lengths_q
        asked = (lengths, starts_of(context, type(self).__name__), vision.spans)
        known, found = vision.memo.get(key, (None, None))
        if known != asked:
            sight, counts = LastImage.of(*asked), self._images(vision)[1]
            device = context.segments.cu_q.device
            found = sight, Segments.of(sight.seeing, [counts[image] for image in sight.shown], device=device)
            vision.memo[key] = asked, found
        return found

    def _keys_and_values(self, place: int, vision: VisionContext, shown: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return keys and values of one layer for the images that are seen, in their order."""
        rows_MC, counts = self._images(vision)
        key = (id(self), place)
        if key not in vision.memo:
            layer: Any = self.gated_cross_attn_layers[place]
            vision.memo[key] = layer.cross_attn.keys_and_values(rows_MC)
        k_MNE, v_MNE = vision.memo[key]
        if shown == tuple(range(len(counts))):
            return k_MNE, v_MNE
        k_parts, v_parts = k_MNE.split(counts), v_MNE.split(counts)
        return torch.cat([k_parts[image] for image in shown]), torch.cat([v_parts[image] for image in shown])


def _resampler(in_dim: int, prefix: bool, options: Mapping[str, Any]) -> Perceiver:
    known = [name for name in inspect.signature(Perceiver).parameters if name not in ("in_dim", "out_dim", "prefix", "project")]
    refuse_unknown("hook 'gated_cross_attention': its resampler has no option", options, known)
    return Perceiver(in_dim, in_dim, prefix=prefix, project=False, **options)


def _problems(dim: int, layers: Sequence[int], heads: int, ffn_dim: int, gate: str) -> Iterator[str]:
    if len(set(layers)) < max(1, len(layers)):
        yield f"layers must name each layer once and at least one, found {list(layers)}"
    wrong = [wrong for name, n in (("heads", heads), ("ffn_dim", ffn_dim)) if (wrong := problem(name, n, int))]
    yield from wrong or ([f"heads {heads} don't divide the decoder's width {dim}"] if dim % heads else [])
    if wrong_gate := problem("gate", gate, Gate):
        yield wrong_gate
