"""The connector of LLaVA-1.5: linear layers with exact GELU between them (``mlp2x_gelu``; arXiv 2310.03744)."""

from __future__ import annotations

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..spec import PATCHES, Grid, LmmError, VisionFeatures
from ..spec.options import remembers_options


@remembers_options
class MLP(nn.Module):
    """``depth`` linear layers, the exact (erf) GELU between them. Layers are named ``linear_1, linear_2, ...`` as in Hugging Face's LLaVA.

    Args:
        in_dim: encoder width ``C``.
        out_dim: decoder width ``D``.
        depth: linear layers; LLaVA-1.5 has 2.
        bias: add biases.

    Raises:
        LmmError: depth below 1.

    >>> MLP(4, 8, depth=3)
    MLP(
      (linear_1): Linear(in_features=4, out_features=8, bias=True)
      (linear_2): Linear(in_features=8, out_features=8, bias=True)
      (linear_3): Linear(in_features=8, out_features=8, bias=True)
    )
    """

    requires = PATCHES

    def __init__(self, in_dim: int, out_dim: int, depth: int = 2, bias: bool = True) -> None:
        super().__init__()
        if depth < 1:
            raise LmmError(f"projector {type(self).__name__!r} needs depth >= 1, found {depth}")
        self.depth = depth
        for index in range(depth):
            self.add_module(f"linear_{index + 1}", nn.Linear(out_dim if index else in_dim, out_dim, bias=bias))

    def out_grid(self, grid: Grid) -> Grid:
        """One row per patch."""
        return grid

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image."""
        return self.project(features.patches)

    def project(self, rows: Tensor) -> Tensor:
        """Run the linear layers on ``(M, in_dim)`` rows."""
        first, *others = (self.get_submodule(f"linear_{index + 1}") for index in range(self.depth))
        rows = first(rows)
        for layer in others:
            rows = layer(F.gelu(rows))
        return rows
