"""LDPv2: an MLP, adaptive pooling, and a depthwise convolution that adds where things are (MobileVLM V2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor

from ..spec import PATCHES, Grid, VisionFeatures
from ..spec.options import remembers_options
from .adaptive_pool import PoolTarget
from .grids import by_grid, channels_first


class _MLP(nn.Module):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))


class _Positions(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.peg = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))


@remembers_options
class LDPv2(nn.Module):
    """Any image becomes at most ``grid x grid`` rows.

    Args:
        in_dim: encoder width ``C``.
        out_dim: decoder width ``D``.
        grid: rows and columns of the pooled map, or one number for both.
        small: ``keep`` the patches of an image along a side that has fewer than ``grid``, or ``error``.

    Raises:
        LmmError: an option of no such value.

    Source: Chu et al., arXiv 2402.03766; names of ``LDPNetV2Projector``: ``mlp.mlp.*``, ``peg.peg.*``.

    >>> LDPv2(8, 16).out_grid(Grid(24, 24))
    Grid(h=12, w=12)
    """

    requires = PATCHES

    def __init__(self, in_dim: int, out_dim: int, grid: int | Sequence[int] = 12, small: str = "keep") -> None:
        super().__init__()
        self.target = PoolTarget("ldpv2", grid, small)
        self.mlp, self.peg = _MLP(in_dim, out_dim), _Positions(out_dim)

    def out_grid(self, grid: Grid) -> Grid:
        """One row per cell of the pooled map.

        Raises:
            LmmError: the image is smaller than ``grid`` and ``small`` is ``error``.
        """
        return self.target.of(grid)

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image."""
        return by_grid(self.mlp.mlp(features.patches), features.grids, channels_first(self._pooled))

    def _pooled(self, maps_ICHW: Tensor) -> Tensor:
        pooled = self.target.pool(maps_ICHW)
        return self.peg.peg(pooled) + pooled
