"""No projection: the encoder is as wide as the decoder already."""

from __future__ import annotations

import torch.nn as nn
from torch import Tensor

from ..spec import PATCHES, Grid, LmmError, VisionFeatures
from ..spec.options import remembers_options


@remembers_options
class Identity(nn.Module):
    """Hands the patch features on unchanged.

    Args:
        in_dim: encoder width.
        out_dim: decoder width; must be the same.

    Raises:
        LmmError: the widths differ.
    """

    requires = PATCHES

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        if in_dim != out_dim:
            raise LmmError(f"projector 'identity' needs equal widths, encoder gives {in_dim}, decoder takes {out_dim}: use projector 'linear'")

    def out_grid(self, grid: Grid) -> Grid:
        """One row per patch."""
        return grid

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image."""
        return features.patches
