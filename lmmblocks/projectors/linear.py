"""One linear layer from the encoder's width to the decoder's: the connector of the first LLaVA (arXiv 2304.08485)."""

from __future__ import annotations

import torch.nn as nn
from torch import Tensor

from ..spec import PATCHES, Grid, VisionFeatures
from ..spec.options import remembers_options


@remembers_options
class Linear(nn.Module):
    """``rows = patches W^T + b``.

    Args:
        in_dim: encoder width ``C``.
        out_dim: decoder width ``D``.
        bias: add ``b``.
    """

    requires = PATCHES

    def __init__(self, in_dim: int, out_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim, bias=bias)

    def out_grid(self, grid: Grid) -> Grid:
        """One row per patch."""
        return grid

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image."""
        return self.linear(features.patches)
