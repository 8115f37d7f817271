"""Perceiver resampler: learned latents look at the image's patches and at each other, a few times (Flamingo, IDEFICS)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..spec import Grid, LmmError, Segments, VisionFeatures
from ..spec.options import remembers_options
from .grids import context, interleave, one_of, whole

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class _Attention(nn.Module):
    """Queries are the latents, keys and values the patches with the latents after them; no biases (Flamingo)."""

    def __init__(self, dim: int, heads: int, head_dim: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.context_layer_norm, self.latents_layer_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q_layer_norm, self.k_layer_norm = (nn.LayerNorm(head_dim) if qk_norm else None for _ in range(2))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, heads * head_dim, bias=False) for _ in range(3))
        self.output_proj = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, patches: Tensor, lengths: tuple[int, ...], latents: Tensor, segments: Segments) -> Tensor:
        latents = self.latents_layer_norm(latents)
        keys = interleave(self.context_layer_norm(patches), lengths, latents, segments.lengths_q)
        q = self.q_proj(latents).unflatten(-1, (self.heads, -1))
        k, v = (layer(keys).unflatten(-1, (self.heads, -1)) for layer in (self.k_proj, self.v_proj))
        if self.q_layer_norm is not None and self.k_layer_norm is not None:
            q, k = self.q_layer_norm(q), self.k_layer_norm(k)
        return self.output_proj(ops.attention(q, k, v, segments, causal=False).flatten(1))


class _MLP(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[activation]
        self.ln = nn.LayerNorm(dim)
        self.fc, self.c_proj = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.fc(self.ln(rows))))


@remembers_options
class Perceiver(nn.Module):
    """Any image becomes ``latents`` rows.

    Args:
        in_dim: encoder width ``C``, which is the width inside too.
        out_dim: decoder width ``D``.
        latents: rows per image.
        depth: rounds of attention and MLP.
        heads: attention heads.
        head_dim: width of a head.
        qk_norm: LayerNorm of queries and keys per head, as IDEFICS' released models have.
        activation: of the MLP: ``relu`` (IDEFICS) or ``gelu`` (OpenFlamingo).
        prefix: the latents also look at the encoder's prefix tokens (CLS), as in IDEFICS.
        project: a linear layer to ``out_dim`` after it. Without it (IDEFICS, whose decoder attends to these rows) the widths must be equal.

    Raises:
        LmmError: an option of no such value, or unequal widths without ``project``.

    Source: Alayrac et al., arXiv 2204.14198 (Flamingo). All names but ``projection`` are those of ``IdeficsPerceiverResampler``.

    >>> Perceiver(8, 16, latents=4, heads=2, head_dim=4).out_grid(Grid(24, 24))
    4
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        latents: int = 64,
        depth: int = 6,
        heads: int = 16,
        head_dim: int = 96,
        qk_norm: bool = False,
        activation: str = "relu",
        prefix: bool = False,
        project: bool = True,
    ) -> None:
        super().__init__()
        whole("perceiver", latents=latents, depth=depth, heads=heads, head_dim=head_dim)
        one_of("perceiver", activation=(activation, tuple(_ACTIVATIONS)))
        if not project and in_dim != out_dim:
            raise LmmError(f"projector 'perceiver' with project=False gives the encoder's width {in_dim}, decoder takes {out_dim}: set project=True")
        self.prefix = prefix
        self.requires = frozenset({"patches", "prefix"} if prefix else {"patches"})
        self.latents = nn.Parameter(torch.randn(latents, in_dim))
        self.blocks = nn.ModuleList(
            nn.ModuleList([_Attention(in_dim, heads, head_dim, qk_norm), _MLP(in_dim, 4 * in_dim, activation)]) for _ in range(depth)
        )
        self.layer_norm = nn.LayerNorm(in_dim)
        self.projection = nn.Linear(in_dim, out_dim) if project else None

    def out_grid(self, grid: Grid) -> int:
        """One row per latent."""
        return self.latents.shape[0]

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image."""
        count = self.latents.shape[0]
        patches, lengths = context(features, self.prefix)
        images = len(lengths)
        segments = Segments.of([count] * images, [length + count for length in lengths], device=patches.device)
        rows = self.latents.expand(images, -1, -1).flatten(0, 1)
        blocks: Any = self.blocks
        for attention, mlp in blocks:
            rows = attention(patches, lengths, rows, segments) + rows
            rows = mlp(rows) + rows
        rows = self.layer_norm(rows)
        return rows if self.projection is None else self.projection(rows)
