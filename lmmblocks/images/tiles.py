"""Images cut into tiles of the encoder's size, so that a large picture keeps its detail (anyres).

LLaVA-NeXT (``llava/mm_utils.py``: ``select_best_resolution, resize_and_pad_image, process_anyres_image``; the same in transformers'
``LlavaNextImageProcessor``): of the resolutions on offer take the one that keeps the most of the picture's pixels and wastes the
fewest, scale the picture into it, pad with black to both sides, cut into tiles; before them goes the whole picture, squashed to
one tile. LLaVA-1.5-HD (arXiv 2310.03744, section 3.4) does the same with every grid of up to six tiles: :func:`resolutions_up_to`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from ..spec import ByKeywords, Grid, LmmError, TileGrid
from .fit import reading_of, with_fit, with_reading
from .load import ImageSource, load_image
from .pixels import TiledPixels

Resolution = tuple[int, int]
"""Height and width in pixels, in transformers' order."""

LLAVA_NEXT_RESOLUTIONS: tuple[Resolution, ...] = (
    (336, 672),
    (672, 336),
    (672, 672),
    (1008, 336),
    (336, 1008),
)
"""``image_grid_pinpoints`` of LLaVA-NeXT."""

_BLACK = (0, 0, 0)


def resolutions_up_to(most_tiles: int, tile_px: int) -> tuple[Resolution, ...]:
    """Return the resolutions of every grid of at most ``most_tiles`` tiles, as LLaVA-1.5-HD uses them (6 tiles of 224 px).

    >>> resolutions_up_to(2, 224)
    ((224, 224), (224, 448), (448, 224))
    """
    sides = range(1, most_tiles + 1)
    return tuple((h * tile_px, w * tile_px) for h in sides for w in sides if h * w <= most_tiles)


def best_resolution(width_px: int, height_px: int, resolutions: Iterable[Resolution]) -> Resolution:
    """Return the resolution that keeps the most pixels of a picture; of equals the smallest, then the first.

    >>> best_resolution(640, 480, LLAVA_NEXT_RESOLUTIONS)
    (672, 672)
    """

    def merit(resolution: Resolution) -> tuple[int, int]:
        height, width = resolution
        scale = min(width / width_px, height / height_px)
        kept = min(int(width_px * scale) * int(height_px * scale), width_px * height_px)
        return kept, kept - width * height

    return max(resolutions, key=merit)


def scaled_into(width_px: int, height_px: int, resolution: Resolution) -> tuple[int, int]:
    """Return width and height of a picture scaled to touch two sides of a resolution; the other two are rounded up."""
    height, width = resolution
    across, down = width / width_px, height / height_px
    if across < down:
        return width, min(math.ceil(height_px * across), height)
    return min(math.ceil(width_px * down), width), height


def without_padding(canvas: Grid, width_px: int, height_px: int) -> tuple[int, int, Grid]:
    """Return what of the patches of all tiles shows the picture and not padding (LLaVA-NeXT's ``unpad_image``).

    Args:
        canvas: patch rows and columns of all tiles together.
        width_px: of the picture itself.
        height_px: of the picture itself.

    Returns:
        First row, first column, and the grid from there on. The same number is cut off on both sides, so a picture much narrower than
        a patch may leave no column at all: transformers and the original count so too.

    >>> without_padding(Grid(48, 48), 640, 480)
    (6, 0, Grid(h=36, w=48))
    """
    if width_px / height_px > canvas.w / canvas.h:
        cut = (canvas.h - _rounded_down(height_px * (canvas.w / width_px))) // 2
        return cut, 0, Grid(canvas.h - 2 * cut, canvas.w)
    cut = (canvas.w - _rounded_down(width_px * (canvas.h / height_px))) // 2
    return 0, cut, Grid(canvas.h, canvas.w - 2 * cut)


def _rounded_down(patches: float) -> int:
    """Whole patches, where 23.99999999 is 24."""
    return int(round(patches, 7))


@dataclass(frozen=True)
class TilePreprocess(metaclass=ByKeywords):
    """A picture to its global view and its tiles; picklable, and stored in the model's config.

    Attributes:
        tower: preprocessing of the tower, which normalises each square of ``tower.size_px``.
        resolutions: (height, width) in pixels that a picture may be scaled into; multiples of ``tower.size_px``.
        global_view: whether the whole picture, squashed to one tile, comes first.

    Raises:
        LmmError: no resolution, or one that isn't made of whole tiles.
    """

    tower: Any = field(metadata={"block": "preprocess"})
    resolutions: tuple[Resolution, ...] = LLAVA_NEXT_RESOLUTIONS
    global_view: bool = True

    def __post_init__(self) -> None:
        problem = resolution_problem(self.resolutions) or self._uneven()
        if problem:
            raise LmmError(f"tiles: {problem}")

    def _uneven(self) -> str | None:
        side = self.tower.size_px
        uneven = [entry for entry in self.resolutions if entry[0] % side or entry[1] % side]
        return (
            f"resolutions {uneven} are not made of whole tiles of {side} px: use multiples of the tower's image size, such as "
            f"resolutions_up_to(4, {side})"
            if uneven
            else None
        )

    def batch(self, images: Iterable[ImageSource]) -> tuple[TiledPixels, tuple[TileGrid, ...]]:
        """Return the pixels of all tiles of ``I`` images, and how each was cut.

        Raises:
            ImageError: an image that cannot be used.
        """
        squares, grids = [], []
        for image in images:
            rgb = load_image(image, **reading_of(self))
            grids.append(self.grid(*rgb.size))
            squares += self.squares(rgb)
        # Squares have the tower's size already: this fit scales and cuts nothing.
        pixels, _ = with_fit(self.tower, "squash").batch(squares)
        return TiledPixels(pixels, tuple(grids)), tuple(grids)

    def grid(self, width_px: int, height_px: int) -> TileGrid:
        """Return how an image of this size is cut, without opening it."""
        each = self.tower.grid(self.tower.size_px, self.tower.size_px)
        height, width = best_resolution(width_px, height_px, self.resolutions)
        tiles = Grid(height // self.tower.size_px, width // self.tower.size_px)
        return TileGrid(tiles, each, width_px, height_px, self.global_view)

    def squares(self, image: ImageSource) -> list[Image.Image]:
        """Return the RGB squares the encoder sees, before normalising: the global view, then the tiles row by row."""
        rgb, side = load_image(image, **reading_of(self)), self.tower.size_px
        resample = Image.Resampling[self.tower.resample.upper()]
        height, width = resolution = best_resolution(*rgb.size, self.resolutions)
        scaled = rgb.resize(scaled_into(*rgb.size, resolution), resample)
        canvas = Image.new("RGB", (width, height), _BLACK)
        canvas.paste(scaled, ((width - scaled.width) // 2, (height - scaled.height) // 2))
        corners = ((left, top) for top in range(0, height, side) for left in range(0, width, side))
        tiles = [canvas.crop((left, top, left + side, top + side)) for left, top in corners]
        return [rgb.resize((side, side), resample), *tiles] if self.global_view else tiles

    @property
    def exif(self) -> str:
        """How the tower reads EXIF orientations."""
        return reading_of(self.tower)["exif"]

    @property
    def transparent(self) -> str:
        """How the tower reads transparency."""
        return reading_of(self.tower)["transparent"]

    def with_reading(self, **changes: str) -> TilePreprocess:
        """Return the same with another way to read pictures, see ``fit.with_reading``."""
        return replace(self, tower=with_reading(self.tower, **changes))

    def with_fit(self, fit: str) -> TilePreprocess:
        """Refuse: nothing of a picture is cropped or padded to a square.

        Raises:
            LmmError: always.
        """
        raise LmmError(f"the encoder cuts pictures into tiles and makes none square by {fit!r}: leave it out")

    def to_hf_processor_config(self) -> dict[str, Any]:
        """Return ``preprocessor_config.json`` for transformers' ``LlavaNextImageProcessor``."""
        tower = with_fit(self.tower, "crop").to_hf_processor_config()
        own = {"image_processor_type": "LlavaNextImageProcessor", "do_pad": True}
        return {**tower, **own, "image_grid_pinpoints": [list(entry) for entry in self.resolutions]}


def resolution_problem(resolutions: Any) -> str | None:
    """Say what is wrong with the form of resolutions, None if nothing is."""
    pairs = isinstance(resolutions, (tuple, list)) and all(
        isinstance(entry, (tuple, list)) and len(entry) == 2 and all(isinstance(px, int) and px > 0 for px in entry) for entry in resolutions
    )
    if pairs and resolutions:
        return None
    return f"expected (height, width) pairs in pixels, such as {LLAVA_NEXT_RESOLUTIONS}, found {resolutions!r}"
