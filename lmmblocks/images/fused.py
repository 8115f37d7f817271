"""One picture, prepared for each of several towers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..spec import ByKeywords, Grid, LmmError
from .fit import reading_of, with_fit, with_reading
from .load import ImageSource, load_image
from .pixels import FusedPixels


@dataclass(frozen=True)
class FusedPreprocess(metaclass=ByKeywords):
    """Each tower's own preprocessing; a picture is read once. Picklable, and stored in the model's config.

    Attributes:
        towers: one preprocessing per tower, each with its own size, filter, mean and std.
        common: rows and columns of the grid that the towers' features are brought to; None = the first tower's.

    Raises:
        LmmError: no tower.
    """

    towers: tuple[Any, ...] = field(metadata={"block": "preprocess"})
    common: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.towers:
            raise LmmError("fused preprocessing needs at least one tower's")
        ways = [reading_of(tower) for tower in self.towers]
        if any(way != ways[0] for way in ways):
            raise LmmError(f"the towers read a picture in different ways, {ways}: a picture is read once, so give all the same exif and transparent")

    def batch(self, images: Iterable[ImageSource]) -> tuple[FusedPixels, tuple[Grid, ...]]:
        """Return the pixels of ``I`` images for each tower, and one patch grid for each image.

        Raises:
            ImageError: an image that cannot be used.
        """
        read = [load_image(image, **reading_of(self)) for image in images]
        pixels = FusedPixels(tuple(tower.batch(read)[0] for tower in self.towers))
        return pixels, tuple(self.grid(*image.size) for image in read)

    def grid(self, width_px: int, height_px: int) -> Grid:
        """Return the patch grid of an image of this size without opening it."""
        of_first = self.towers[0].grid(width_px, height_px)
        return of_first if self.common is None else Grid(*self.common)

    @property
    def exif(self) -> str:
        """How all towers read EXIF orientations."""
        return reading_of(self.towers[0])["exif"]

    @property
    def transparent(self) -> str:
        """How all towers read transparency."""
        return reading_of(self.towers[0])["transparent"]

    def with_reading(self, **changes: str) -> FusedPreprocess:
        """Return the same with another way to read pictures, see ``fit.with_reading``."""
        return FusedPreprocess(tuple(with_reading(tower, **changes) for tower in self.towers), self.common)

    def with_fit(self, fit: str) -> FusedPreprocess:
        """Return the same with another way to make a picture square, for all towers."""
        return FusedPreprocess(tuple(with_fit(tower, fit) for tower in self.towers), self.common)

    @property
    def size_px(self) -> int:
        """Side of the square that the first tower sees."""
        return self.towers[0].size_px

    @property
    def resample(self) -> str:
        """The first tower's filter."""
        return self.towers[0].resample
