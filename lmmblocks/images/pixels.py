"""Pixels that are no single tensor: of several preprocessings, of several tiles per image, or of images of unequal shapes.

All behave like a tensor ``(I, ...)`` where a batch is cut, moved and pinned: ``len`` and indices count images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..spec import Grid, LmmError, TileGrid, boundaries

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class FusedPixels:
    """The same images once for each tower of a fused encoder.

    Attributes:
        towers: ``(I, 3, H_t, W_t)`` for each tower.
    """

    towers: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.towers[0])

    def __getitem__(self, images: Any) -> FusedPixels:
        return FusedPixels(tuple(tower[images] for tower in self.towers))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> FusedPixels:
        """Return the pixels on ``device``."""
        return FusedPixels(tuple(tower.to(device, non_blocking=non_blocking) for tower in self.towers))

    def pin_memory(self) -> FusedPixels:
        """Return the pixels in pinned host memory."""
        return FusedPixels(tuple(tower.pin_memory() for tower in self.towers))


@dataclass(frozen=True, slots=True)
class TiledPixels:
    """Images cut into tiles, tile after tile and image after image.

    Attributes:
        tiles: ``(sum of tiles, 3, H, W)``, or ``FusedPixels`` of as many.
        grids: how each image was cut; known on the host, so that nobody asks the device.

    Raises:
        LmmError: not as many tiles as the grids say.
    """

    tiles: Any
    grids: tuple[TileGrid, ...]

    def __post_init__(self) -> None:
        counts = [grid.count for grid in self.grids]
        if len(self.tiles) != sum(counts):
            raise LmmError(f"found {len(self.tiles)} tiles of pixels, but the images were cut into {counts}")

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, images: Any) -> TiledPixels:
        import torch

        chosen = list(range(len(self)))[images] if isinstance(images, slice) else [int(i) for i in images]
        starts = list(accumulate((grid.count for grid in self.grids), initial=0))
        tiles = [tile for image in chosen for tile in range(starts[image], starts[image + 1])]
        grids = tuple(self.grids[image] for image in chosen)
        if tiles and tiles[-1] - tiles[0] + 1 == len(tiles) and tiles == sorted(tiles):
            return TiledPixels(self.tiles[tiles[0] : tiles[-1] + 1], grids)
        return TiledPixels(self.tiles[torch.tensor(tiles, dtype=torch.int64)], grids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TiledPixels:
        """Return the pixels on ``device``."""
        return TiledPixels(self.tiles.to(device, non_blocking=non_blocking), self.grids)

    def pin_memory(self) -> TiledPixels:
        """Return the pixels in pinned host memory."""
        return TiledPixels(self.tiles.pin_memory(), self.grids)


@dataclass(frozen=True, slots=True)
class PatchPixels:
    """Images of unequal shapes, cut into patches and packed.

    Attributes:
        rows: ``(M, patch * patch * 3)``: each patch row by row, channels last.
        boundaries: int32 ``(I + 1,)``: where each image begins.
        grids: patch grid of each image; known on the host, so that nobody asks the device.
    """

    rows: Tensor
    boundaries: Tensor
    grids: tuple[Grid, ...]

    @classmethod
    def of(cls, rows: Tensor, grids: Sequence[Grid]) -> PatchPixels:
        """Pack rows of images in the order of their grids.

        Raises:
            LmmError: not as many rows as the grids say.
        """
        counts = [grid.rows for grid in grids]
        if len(rows) != sum(counts):
            raise LmmError(f"found {len(rows)} patches, but the images have {counts}")
        return cls(rows, boundaries(counts, rows.device), tuple(grids))

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, images: Any) -> PatchPixels:
        import torch

        chosen = list(range(len(self)))[images] if isinstance(images, slice) else [int(i) for i in images]
        pieces = self.rows.split([grid.rows for grid in self.grids])
        rows = torch.cat([pieces[image] for image in chosen]) if chosen else self.rows[:0]
        return PatchPixels.of(rows, [self.grids[image] for image in chosen])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PatchPixels:
        """Return the pixels on ``device``."""
        rows, starts = (x.to(device, non_blocking=non_blocking) for x in (self.rows, self.boundaries))
        return PatchPixels(rows, starts, self.grids)

    def pin_memory(self) -> PatchPixels:
        """Return the pixels in pinned host memory."""
        return PatchPixels(self.rows.pin_memory(), self.boundaries.pin_memory(), self.grids)


def join_pixels(parts: Sequence[Any]) -> Any:
    """Return the pixels of all images of ``parts``, which one preprocessing made; there is at least one part.

    >>> import torch
    >>> join_pixels([torch.zeros(1, 3, 2, 2), torch.zeros(2, 3, 2, 2)]).shape
    torch.Size([3, 3, 2, 2])
    """
    import torch

    first = parts[0]
    if isinstance(first, TiledPixels):
        grids = tuple(grid for part in parts for grid in part.grids)
        return TiledPixels(join_pixels([part.tiles for part in parts]), grids)
    if isinstance(first, FusedPixels):
        return FusedPixels(tuple(map(torch.cat, zip(*(part.towers for part in parts)))))
    if isinstance(first, PatchPixels):
        return PatchPixels.of(torch.cat([part.rows for part in parts]), [grid for part in parts for grid in part.grids])
    return torch.cat(list(parts))


def pixel_tensors(pixels: Any) -> Iterator[Tensor]:
    """Yield every tensor of pixels."""
    if isinstance(pixels, TiledPixels):
        yield from pixel_tensors(pixels.tiles)
    elif isinstance(pixels, FusedPixels):
        yield from pixels.towers
    elif isinstance(pixels, PatchPixels):
        yield from (pixels.rows, pixels.boundaries)
    else:
        yield pixels
