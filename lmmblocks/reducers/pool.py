"""Pooling on each image's grid: what LLaVA-NeXT does to video frames (``get_2dPool`` of ``llava_arch.py``)."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..spec import PATCHES, Grid, LmmError, VisionFeatures, closest
from ..spec.options import remembers_options
from .equal_runs import equal_runs

MODES = ("average", "max", "bilinear")


@remembers_options
class Pool(nn.Module):
    """``stride x stride`` rows become one; at odd edges, what is left of a window is pooled, so no patch is lost.

    Args:
        stride: side of a window.
        mode: ``average``, ``max`` or ``bilinear`` (interpolation to the smaller grid, corners not aligned).
        before_projector: pool the encoder's features instead of the projected rows.

    Raises:
        LmmError: an unknown mode, or a stride below 1.

    >>> Pool(2).out_count(Grid(27, 24))
    Grid(h=14, w=12)
    """

    def __init__(self, stride: int = 2, mode: str = "average", before_projector: bool = False) -> None:
        super().__init__()
        if mode not in MODES or stride < 1:
            raise LmmError(f"reducer 'pool': mode {mode!r} must be one of {MODES}{closest(mode, MODES)}, stride {stride} at least 1")
        self.stride, self.mode, self.before_projector = stride, mode, before_projector
        self.requires = PATCHES if before_projector else frozenset()

    def out_count(self, grid: Grid | int) -> Grid:
        """Return the smaller grid.

        Raises:
            LmmError: rows that form no grid.
        """
        if not isinstance(grid, Grid):
            raise LmmError(f"reducer 'pool' needs rows on a grid, found {grid} rows: use a projector whose out_grid is a Grid")
        return Grid(-(-grid.h // self.stride), -(-grid.w // self.stride))

    def forward(self, features: VisionFeatures, rows: Tensor, grids: tuple[Grid | int, ...]) -> Tensor:
        """Return the pooled rows ``(M, D)``."""
        pooled = [self._pooled(part, grid).flatten(0, 1) for grid, (part,) in equal_runs(grids, rows)]
        return torch.cat([rows[:0], *pooled])

    def _pooled(self, rows_IPD: Tensor, grid: Grid) -> Tensor:
        maps = rows_IPD.transpose(1, 2).unflatten(2, (grid.h, grid.w))
        if self.mode == "bilinear":
            small = self.out_count(grid)
            pooled = F.interpolate(maps.float(), (small.h, small.w), mode="bilinear", align_corners=False).to(maps.dtype)
        elif self.mode == "max":
            pooled = F.max_pool2d(maps, self.stride, ceil_mode=True)
        else:
            pooled = F.avg_pool2d(maps, self.stride, ceil_mode=True, count_include_pad=False)
        return pooled.flatten(2).transpose(1, 2)
