"""C-Abstractor: convolutions, adaptive pooling, convolutions, MLP; keeps what is where, and any number of tokens (Honeybee)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..spec import PATCHES, Grid, VisionFeatures
from ..spec.options import remembers_options
from .adaptive_pool import PoolTarget
from .convolutions import ChannelNorm, SqueezeExcite
from .grids import by_grid, channels_first, whole


class _ConvNorm(nn.Module):
    """Convolution without bias, LayerNorm; names as in timm's ``ConvNormAct``."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 1) -> None:
        super().__init__()
        groups = 1 if kernel == 1 else out_dim
        self.conv = nn.Conv2d(in_dim, out_dim, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = ChannelNorm(out_dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class _Block(nn.Module):
    """RegNet's bottleneck: 1x1, depthwise 3x3, squeeze-and-excite, 1x1, with a shortcut; SiLU."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _ConvNorm(in_dim, dim), _ConvNorm(dim, dim, 3)
        self.se = SqueezeExcite(dim, round(in_dim * 0.25), F.silu, torch.sigmoid)
        self.conv3 = _ConvNorm(dim, dim)
        self.downsample = _ConvNorm(in_dim, dim) if in_dim != dim else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.se(F.silu(self.conv2(F.silu(self.conv1(x)))))
        return F.silu(self.conv3(inner) + self.downsample(x))


class _Stage(nn.Sequential):
    """Blocks named ``b1, b2, ...`` as in timm's ``RegStage``."""

    def __init__(self, in_dim: int, dim: int, depth: int) -> None:
        super().__init__()
        for index in range(depth):
            self.add_module(f"b{index + 1}", _Block(dim if index else in_dim, dim))


class _Pool(nn.Module):
    def __init__(self, target: PoolTarget) -> None:
        super().__init__()
        self.target = target

    def forward(self, maps_ICHW: Tensor) -> Tensor:
        return self.target.pool(maps_ICHW)


@remembers_options
class CAbstractor(nn.Module):
    """Any image becomes at most ``grid x grid`` rows.

    Args:
        in_dim: encoder width ``C``.
        out_dim: decoder width ``D``.
        grid: rows and columns of the pooled map, or one number for both.
        dim: width of the convolutions.
        depth: blocks before and blocks after the pooling.
        mlp_depth: linear layers, SiLU between them.
        small: ``keep`` the patches of an image along a side that has fewer than ``grid``, or ``error``.
        positions: side of the square of learned positions that are added to the patches, stretched (bilinear) to other grids; None = none.
            Honeybee's released models have them, of the encoder's grid.

    Raises:
        LmmError: an option of no such value.

    Source: Cha et al., arXiv 2312.06742; names of ``CAbstractor`` in ``honeybee/projectors.py``: ``net.*``, ``readout.*``. Its ``pos_emb``
    has one row more in front, for a CLS token that it drops.

    >>> CAbstractor(8, 16, grid=12, dim=8, depth=1).out_grid(Grid(27, 27))
    Grid(h=12, w=12)
    """

    requires = PATCHES

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        grid: int | Sequence[int] = 12,
        dim: int = 1024,
        depth: int = 3,
        mlp_depth: int = 2,
        small: str = "keep",
        positions: int | None = None,
    ) -> None:
        super().__init__()
        whole("c_abstractor", dim=dim, depth=depth, mlp_depth=mlp_depth, positions=positions or 1)
        self.target, self.positions = PoolTarget("c_abstractor", grid, small), positions
        self.pos_emb = nn.Parameter(torch.randn(1, positions**2, in_dim) * 0.02) if positions else None
        self.net = nn.Sequential(_Stage(in_dim, dim, depth), _Pool(self.target), _Stage(dim, dim, depth))
        self.readout = nn.Sequential(nn.Linear(dim, out_dim))
        for _ in range(1, mlp_depth):
            self.readout.extend([nn.SiLU(), nn.Linear(out_dim, out_dim)])

    def out_grid(self, grid: Grid) -> Grid:
        """One row per cell of the pooled map.

        Raises:
            LmmError: the image is smaller than ``grid`` and ``small`` is ``error``.
        """
        return self.target.of(grid)

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image."""
        return self.readout(by_grid(features.patches, features.grids, channels_first(self._net)))

    def _net(self, maps_ICHW: Tensor) -> Tensor:
        return self.net(maps_ICHW if self.pos_emb is None else maps_ICHW + self._stretched(self.pos_emb, maps_ICHW))

    def _stretched(self, pos_emb: Tensor, maps_ICHW: Tensor) -> Tensor:
        table = pos_emb.transpose(1, 2).unflatten(2, (self.positions, self.positions))
        same = table.shape[-2:] == maps_ICHW.shape[-2:]
        return table if same else F.interpolate(table, size=maps_ICHW.shape[-2:], mode="bilinear", align_corners=False)
