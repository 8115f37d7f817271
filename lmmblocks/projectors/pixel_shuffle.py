"""Neighbouring patches side by side on the channels, then linear layers: fewer, wider tokens (InternVL, SmolVLM, VILA)."""

from __future__ import annotations

import torch.nn as nn
from torch import Tensor

from ..spec import Grid, VisionFeatures
from ..spec.options import remembers_options
from .grids import one_of, regions, shrunk, whole
from .mlp import MLP


@remembers_options
class PixelShuffle(MLP):
    """Each ``factor x factor`` square of patches becomes one row; its channels are the patches' in reading order.

    InternVL's ``pixel_shuffle`` (version 2) and Idefics3's give the same order. Options of the models: InternVL the defaults; VILA the
    defaults (zeros below and to the right of an odd grid); Idefics3 and SmolVLM ``norm=False, depth=1, bias=False``.

    Args:
        in_dim: encoder width ``C``.
        out_dim: decoder width ``D``.
        factor: side of a square.
        odd: what happens to a grid that isn't divisible: ``pad`` with zeros, or ``error``.
        depth: linear layers, GELU between them.
        norm: LayerNorm of the joined channels before them.
        bias: add biases.

    Raises:
        LmmError: an option of no such value.

    Source: Chen et al., arXiv 2404.16821 (InternVL 1.5); Laurençon et al., arXiv 2408.12637 (Idefics3). Parameter names are those of
    ``InternVLMultiModalProjector``; Idefics3's ``modality_projection.proj`` is ``linear_1``.

    >>> PixelShuffle(4, 8).out_grid(Grid(27, 27))
    Grid(h=14, w=14)
    """

    def __init__(self, in_dim: int, out_dim: int, factor: int = 2, odd: str = "pad", depth: int = 2, norm: bool = True, bias: bool = True) -> None:
        whole("pixel_shuffle", factor=factor)
        one_of("pixel_shuffle", odd=(odd, ("pad", "error")))
        super().__init__(in_dim * factor**2, out_dim, depth, bias)
        self.factor, self.odd = factor, odd
        self.layer_norm = nn.LayerNorm(in_dim * factor**2) if norm else None

    def out_grid(self, grid: Grid) -> Grid:
        """One row per square.

        Raises:
            LmmError: the grid isn't divisible and ``odd`` is ``error``.
        """
        return shrunk("pixel_shuffle", grid, self.factor, uneven="take one of these, or odd='pad'" if self.odd == "error" else "")

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image."""
        for grid in set(features.grids):
            self.out_grid(grid)  # refuses what it doesn't count
        rows = regions(features.patches, features.grids, self.factor).flatten(1)
        return self.project(rows if self.layer_norm is None else self.layer_norm(rows))
