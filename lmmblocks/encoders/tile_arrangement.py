"""The projected rows of an image's tiles, put together to the rows of the image.

Counting (``TileArrangement``, plain values) and computing (``TileArrange``, the module) stand side by side. Only host numbers decide
what goes where: slices, views and one concatenation, so nothing waits for the device and the backward adds in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from ..images.tiles import without_padding
from ..spec import Grid, LmmError, TileGrid, image_count

OutGrid = Callable[[Grid], "Grid | int"]

MERGE = ("spatial", "flat")
GLOBAL_VIEW = ("first", "last", "none")

_TOLERATED = 1.1
"""A side that is longer than the limit by no more than this is kept (``llava_arch.py`` of LLaVA-NeXT)."""


@dataclass(frozen=True)
class TileArrangement:
    """The rules; see ``TiledConfig`` for the attributes."""

    merge: str = "spatial"
    unpad: bool = True
    newline: bool = True
    global_view: str = "first"
    most_tiles: int | None = None

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        for name, known in (("merge", MERGE), ("global_view", GLOBAL_VIEW)):
            if getattr(self, name) not in known:
                yield f"{name} {getattr(self, name)!r} is none of {known}"
        if self.unpad and self.merge == "flat":
            yield "unpad cuts whole lines off the picture, which merge='flat' doesn't have: set unpad=False, or merge='spatial'"
        if self.most_tiles is not None and self.merge == "flat":
            yield "most_tiles makes the picture smaller as a whole, which merge='flat' doesn't have: set most_tiles=None, or merge='spatial'"

    def rows_of(self, layout: TileGrid, out_grid: OutGrid) -> int:
        """Return how many rows one image becomes.

        Args:
            layout: how it was cut.
            out_grid: the projector's: what one tile becomes.

        Raises:
            LmmError: the tiles become rows without a grid, and lines are asked for.
        """
        each = out_grid(layout.each)
        overview = image_count(each) if layout.global_view else 0
        if not isinstance(each, Grid):
            self._refuse_lines(each)
            return overview + layout.tiles.rows * each
        if self.merge == "flat":
            return overview + layout.tiles.rows * each.h * (each.w + self.newline)
        _, _, shown = self._shown(layout, each)
        kept = self._kept(shown, each)
        return overview + kept.h * (kept.w + self.newline)

    def build(self, dim: int) -> TileArrange:
        """Return the module, for rows of width ``dim``."""
        return TileArrange(self, dim)

    def _shown(self, layout: TileGrid, each: Grid) -> tuple[int, int, Grid]:
        """First row, first column and size of what is kept of the grid of all tiles."""
        canvas = Grid(layout.tiles.h * each.h, layout.tiles.w * each.w)
        return without_padding(canvas, layout.width_px, layout.height_px) if self.unpad else (0, 0, canvas)

    def _kept(self, shown: Grid, each: Grid) -> Grid:
        """The rows and columns that are left of a picture of more rows than ``most_tiles`` tiles."""
        ratio = 1.0 if self.most_tiles is None else math.sqrt(shown.rows / (self.most_tiles * each.rows))
        return shown if ratio <= _TOLERATED else Grid(int(shown.h // ratio), int(shown.w // ratio))

    def _refuse_lines(self, rows: int) -> None:
        if self.merge == "spatial" or self.newline:
            raise LmmError(
                f"a tile becomes {rows} rows without a grid, which have no lines to put together or to end with a newline: use a projector "
                f"whose out_grid is a Grid, or TiledConfig(merge='flat', unpad=False, newline=False)"
            )


class TileArrange(nn.Module):
    """Computes a ``TileArrangement``; the learned row has transformers' name, ``image_newline``, ``(D,)``."""

    def __init__(self, rules: TileArrangement, dim: int) -> None:
        super().__init__()
        self.rules = rules
        if rules.newline:
            self.image_newline = nn.Parameter(torch.randn(dim) * dim**-0.5)

    def forward(self, rows_MD: Tensor, layouts: Sequence[TileGrid], out_grid: OutGrid) -> tuple[Tensor, tuple[int, ...]]:
        """Put the rows of each image together.

        Args:
            rows_MD: of all tiles of all images, as the projector gives them.
            layouts: how each image was cut.
            out_grid: the projector's.

        Returns:
            Rows of the images, and the number of each.

        Raises:
            LmmError: not as many rows as the layouts say.
        """
        each = [out_grid(layout.each) for layout in layouts]
        lengths = [image_count(grid) * layout.count for grid, layout in zip(each, layouts)]
        if sum(lengths) != rows_MD.shape[0]:
            raise LmmError(f"found {rows_MD.shape[0]} rows of tiles, the layouts of the images ask for {sum(lengths)}")
        parts = zip(rows_MD.split(lengths), layouts, each)
        images = [self._image(*part) for part in parts]
        return torch.cat(images), tuple(image.shape[0] for image in images)

    def _image(self, rows_MD: Tensor, layout: TileGrid, each: Grid | int) -> Tensor:
        overview, tiles = rows_MD.tensor_split([image_count(each) if layout.global_view else 0])
        if isinstance(each, Grid):
            tiles = self._lines(tiles, layout, each).flatten(0, 1)
        return torch.cat([tiles, overview] if self.rules.global_view == "last" else [overview, tiles])

    def _lines(self, tiles_MD: Tensor, layout: TileGrid, each: Grid) -> Tensor:
        """Return the lines of the picture, ``(lines, width, D)``."""
        if self.rules.merge == "flat":
            lines_HWD = tiles_MD.unflatten(0, (-1, each.w))
        else:
            split = tiles_MD.unflatten(0, (layout.tiles.h, layout.tiles.w, each.h, each.w))
            canvas_HWD = split.transpose(1, 2).flatten(0, 1).flatten(1, 2)
            top, left, shown = self.rules._shown(layout, each)
            kept = self.rules._kept(shown, each)
            lines_HWD = canvas_HWD[top : top + shown.h, left : left + shown.w]
            lines_HWD = lines_HWD if kept == shown else _smaller(lines_HWD, kept)
        if not self.rules.newline:
            return lines_HWD
        newline_H1D = self.image_newline.to(lines_HWD.dtype).expand(lines_HWD.shape[0], 1, -1)
        return torch.cat([lines_HWD, newline_H1D], 1)


def _smaller(lines_HWD: Tensor, size: Grid) -> Tensor:
    """Return rows between the rows of a grid, bilinearly, as ``F.interpolate(mode="bilinear")`` has them, whose backward adds in any order."""
    down, across = (_between(old, new, lines_HWD.device) for old, new in zip(lines_HWD.shape, (size.h, size.w)))
    rows_HWD = torch.einsum("hi,iwd->hwd", down, lines_HWD.float())
    return torch.einsum("wj,hjd->hwd", across, rows_HWD).to(lines_HWD.dtype)


def _between(old: int, new: int, device: torch.device) -> Tensor:
    """Return ``(new, old)``: the share that each old place has in a new one; half a place is the middle of the first, in both."""
    centre = ((torch.arange(new, device=device) + 0.5) * (old / new) - 0.5).clamp(min=0)[:, None]
    return (1 - (torch.arange(old, device=device) - centre).abs()).clamp(min=0)
