"""Adaptive average pooling to a target grid, then an MLP: any image becomes at most so many rows (DeCo)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..spec import Grid, LmmError, VisionFeatures
from ..spec.options import remembers_options
from .grids import by_grid, channels_first, one_of, whole
from .mlp import MLP


class PoolTarget:
    """The grid that images are pooled to.

    Args:
        name: of the projector, for messages.
        grid: rows and columns, or one number for both.
        small: what happens to an image with fewer patches than that along a side: ``keep`` its patches along this side (pooling could only
            repeat them), or ``error``.
    """

    def __init__(self, name: str, grid: int | Sequence[int], small: str) -> None:
        sides = [grid, grid] if isinstance(grid, int) else list(grid)
        if len(sides) != 2:
            raise LmmError(f"projector {name!r}: grid must be one number or (rows, columns), found {grid!r}")
        whole(name, grid=sides[0])
        whole(name, grid=sides[1])
        one_of(name, small=(small, ("keep", "error")))
        self.name, self.grid, self.small = name, Grid(*sides), small

    def of(self, grid: Grid) -> Grid:
        """Return the grid that an image of ``grid`` is pooled to.

        Raises:
            LmmError: it is smaller than the target and ``small`` is ``error``.
        """
        if self.small == "error" and (grid.h < self.grid.h or grid.w < self.grid.w):
            raise LmmError(
                f"projector {self.name!r} pools to {self.grid}, found an image of {grid} patches: make it with a smaller grid, or with "
                f"small='keep', which leaves a shorter side as it is"
            )
        return Grid(min(grid.h, self.grid.h), min(grid.w, self.grid.w))

    def pool(self, maps_ICHW: Tensor) -> Tensor:
        """Average maps of one size."""
        target = self.of(Grid(*maps_ICHW.shape[-2:])) if maps_ICHW.shape[0] else Grid(1, 1)  # no image is too small
        return F.adaptive_avg_pool2d(maps_ICHW, (target.h, target.w))


@remembers_options
class AdaptivePool(MLP):
    """The image is cut into ``grid`` cells of nearly equal size, each becomes the mean of its patches.

    Args:
        in_dim: encoder width ``C``.
        out_dim: decoder width ``D``.
        grid: cells along height and width, or one number for both.
        small: ``keep`` the patches of an image along a side that has fewer than ``grid``, or ``error``.
        depth: linear layers of the MLP after it.
        bias: add biases.

    Raises:
        LmmError: an option of no such value.

    Source: Yao et al., arXiv 2405.20985 (DeCo).

    >>> AdaptivePool(4, 8, grid=12).out_grid(Grid(27, 8))
    Grid(h=12, w=8)
    """

    def __init__(self, in_dim: int, out_dim: int, grid: int | Sequence[int] = 12, small: str = "keep", depth: int = 2, bias: bool = True) -> None:
        super().__init__(in_dim, out_dim, depth, bias)
        self.target = PoolTarget("adaptive_pool", grid, small)

    def out_grid(self, grid: Grid) -> Grid:
        """One row per cell.

        Raises:
            LmmError: the image is smaller than the target and ``small`` is ``error``.
        """
        return self.target.of(grid)

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image."""
        return self.project(by_grid(features.patches, features.grids, channels_first(self.target.pool)))
