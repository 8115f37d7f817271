"""Rows and columns of patches: of one image, and of one that was cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grid:
    """Patch rows ``h`` and columns ``w`` of one image after the encoder."""

    h: int
    w: int

    @property
    def rows(self) -> int:
        """Number of patches, ``h * w``."""
        return self.h * self.w

    def __str__(self) -> str:
        return f"{self.h}x{self.w}"


@dataclass(frozen=True, slots=True)
class TileGrid:
    """How one image was cut into tiles of equal size; stands where images of one tile have a ``Grid``.

    Attributes:
        tiles: rows and columns of tiles.
        each: patch grid of one tile after the encoder.
        width_px: of the picture itself; what of the tiles is padding follows from it.
        height_px: of the picture itself.
        global_view: one more tile, before the others, shows the whole picture.
    """

    tiles: Grid
    each: Grid
    width_px: int
    height_px: int
    global_view: bool = True

    @property
    def count(self) -> int:
        """Number of tiles that the encoder sees.

        >>> TileGrid(Grid(1, 2), Grid(24, 24), 640, 300).count
        3
        """
        return self.tiles.rows + self.global_view


def image_count(grid: Grid | int) -> int:
    """Return the number of rows of what ``Projector.out_grid`` gave.

    >>> image_count(Grid(2, 3)), image_count(5)
    (6, 5)
    """
    return grid.rows if isinstance(grid, Grid) else int(grid)
