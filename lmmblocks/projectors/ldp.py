"""LDP: an MLP and two depthwise blocks of MobileNet-v3, the second of stride 2: a quarter of the tokens (MobileVLM)."""

from __future__ import annotations

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..spec import PATCHES, Grid, VisionFeatures
from ..spec.options import remembers_options
from .convolutions import ChannelNorm, SqueezeExcite
from .grids import by_grid, channels_first


def _squeezed(channels: int) -> int:
    """Return a quarter of the channels as MobileNet rounds it: to a multiple of 8, not more than a tenth below."""
    quarter = channels // 4
    rounded = max(8, (quarter + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * quarter else rounded + 8


class _InvertedResidual(nn.Module):
    """Depthwise 3x3, squeeze-and-excite, 1x1; a shortcut where the size stays. Names as in torchvision, whose activations hold a place too."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        depthwise = nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(depthwise, ChannelNorm(dim, eps=1e-5), nn.Hardswish()),
            SqueezeExcite(dim, _squeezed(dim), F.relu, F.hardsigmoid),
            nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), ChannelNorm(dim, eps=1e-5)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if self.stride > 1 else x + self.block(x)


class _Model(nn.Module):
    """The identities hold places in the names of the original."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Identity(), nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))
        self.mb_block = nn.Sequential(nn.Identity(), _InvertedResidual(out_dim, 1), _InvertedResidual(out_dim, 2))


@remembers_options
class LDP(nn.Module):
    """Each second patch of each second row becomes a row that has seen its neighbours.

    Args:
        in_dim: encoder width ``C``.
        out_dim: decoder width ``D``.

    Source: Chu et al., arXiv 2312.16886; names of ``LDPNetProjector`` in ``mobilevlm/model/vision_projector.py``: ``model.*``.

    >>> LDP(8, 16).out_grid(Grid(27, 24))
    Grid(h=14, w=12)
    """

    requires = PATCHES

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.model = _Model(in_dim, out_dim)

    def out_grid(self, grid: Grid) -> Grid:
        """Half of each side, rounded up."""
        return Grid(-(-grid.h // 2), -(-grid.w // 2))

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image."""
        return by_grid(self.model.mlp(features.patches), features.grids, channels_first(self.model.mb_block))
