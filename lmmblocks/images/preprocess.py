"""Images to pixels: pad to a square, crop the centre or squash, resize, normalise; bit for bit what LLaVA-1.5 feeds its tower.

LLaVA-1.5 (``mm_utils.py:152-182`` and Hugging Face's ``CLIPImageProcessor``): pad with the mean colour, shortest edge
to ``size_px`` with PIL's bicubic filter, centre crop, times 1/255, minus mean, over std, all in float32. Stage 1 of the
released recipe crops and stage 2 pads.

How it stays exact and still cheap: a pixel has 256 values, so the three float32 operations are a table of 3 x 256
numbers, computed with the same roundings and looked up. Padding is done between the two passes of the separable
resize: rows of nothing but padding need no horizontal pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..spec import ByKeywords, Grid, LmmError
from .constants import CLIP_MEAN, CLIP_STD, FILTERS, Exif, Fit, Resample, Transparent
from .fit import reading_of
from .hf_processor import read_hf, to_hf
from .load import ImageSource, load_image
from .statistics import check_fields

if TYPE_CHECKING:
    from torch import Tensor

_STRIP_PIXELS = 1 << 24  # 48 MB: widest working copy while padding a tall image


@dataclass(frozen=True)
class ImagePreprocess(metaclass=ByKeywords):
    """What happens to an image before the encoder; picklable, and stored in the model's config.

    Attributes:
        size_px: side of the square the encoder sees.
        patch_px: side of one patch.
        fit: ``pad`` puts the image in the middle of a square of its longest side, filled with the mean colour;
            ``crop`` scales the shortest side to ``resize_px`` and cuts the middle out; ``squash`` scales both sides to ``size_px``,
            whatever the shape.
        mean: per channel, RGB in [0, 1].
        std: per channel, RGB in [0, 1].
        resample: PIL filter.
        resize_px: of ``crop`` only: length of the shortest side before the cut; None = ``size_px``, nothing more is lost than it must.
        exif: ``ignore`` shows a picture as stored, as LLaVA does; ``rotate`` as its EXIF orientation says.
        transparent: ``drop`` shows the colours below the transparency, as LLaVA does; ``black`` or ``white`` is put behind it.

    Raises:
        LmmError: a value makes no sense.
    """

    size_px: int
    patch_px: int
    fit: Fit
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Resample = "bicubic"
    resize_px: int | None = None
    exif: Exif = "ignore"
    transparent: Transparent = "drop"

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.patch_px <= self.size_px:
            raise LmmError(f"expected 1 <= patch_px <= size_px, found patch_px={self.patch_px}, size_px={self.size_px}")
        if self.resize_px is not None and self.resize_px < self.size_px:
            raise LmmError(f"expected resize_px >= size_px, found resize_px={self.resize_px}, size_px={self.size_px}")

    def __call__(self, image: ImageSource) -> Tensor:
        """Return the pixels of one image, float32 ``(3, size_px, size_px)``.

        Args:
            image: path or PIL image.

        Raises:
            ImageError: the image cannot be used.
        """
        return self.batch([image])[0][0]

    def batch(self, images: Iterable[ImageSource]) -> tuple[Tensor, tuple[Grid, ...]]:
        """Return the pixels of ``I`` images, float32 ``(I, 3, size_px, size_px)``, and one patch grid for each."""
        import torch

        squares = [self.square(image) for image in images]
        pixels = np.empty((len(squares), 3, self.size_px, self.size_px), np.float32)
        table = normalised_values(self.mean, self.std)
        for out_CHW, square in zip(pixels, squares):
            raw_HWC = np.asarray(square)
            for channel in range(3):
                np.take(table[channel], raw_HWC[..., channel], out=out_CHW[channel], mode="clip")
        return torch.from_numpy(pixels), (self._grid,) * len(squares)

    def grid(self, width_px: int, height_px: int) -> Grid:
        """Return the patch grid of an image of this size without opening it."""
        if width_px < 1 or height_px < 1:
            raise LmmError(f"an image needs at least 1x1 px, found {width_px}x{height_px}")
        return self._grid

    def square(self, image: ImageSource) -> Image.Image:
        """Return the RGB square the encoder sees, before normalising: what to show when asking what the model saw."""
        rgb = load_image(image, **reading_of(self))
        if self.fit == "pad":
            return _pad_to_square(rgb, self.size_px, self.pad_colour, FILTERS[self.resample])
        if self.fit == "squash":
            return rgb.resize((self.size_px, self.size_px), FILTERS[self.resample])
        return _crop_centre(rgb, self.size_px, self.resize_px or self.size_px, FILTERS[self.resample])

    @property
    def pad_colour(self) -> tuple[int, int, int]:
        """RGB bytes of the padding: the mean, rounded down as LLaVA does; (122, 116, 104) for CLIP."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue

    @property
    def _grid(self) -> Grid:
        side = self.size_px // self.patch_px
        return Grid(side, side)

    def to_hf_processor_config(self) -> dict[str, Any]:
        """Return ``preprocessor_config.json`` for transformers; see ``hf_processor.to_hf``."""
        return to_hf(self)

    @classmethod
    def from_hf_processor_config(cls, config: Mapping[str, Any], *, patch_px: int, fit: Fit | None = None) -> ImagePreprocess:
        """Read ``preprocessor_config.json``; see ``hf_processor.read_hf``."""
        return cls(**read_hf(config, patch_px=patch_px, fit=fit))


def clip_preprocess(size_px: int = 336, patch_px: int = 14, fit: Fit = "pad") -> ImagePreprocess:
    """Return CLIP's preprocessing; the defaults are LLaVA-1.5's (stage 2 and inference).

    >>> clip_preprocess().grid(640, 480)
    Grid(h=24, w=24)
    """
    return ImagePreprocess(size_px, patch_px, fit, CLIP_MEAN, CLIP_STD)


def scaled_long_side(long_px: int, short_px: int, size_px: int) -> int:
    """Return the long side once the short one is scaled to ``size_px``, rounded down as CLIPImageProcessor does."""
    return int(size_px * long_px / short_px)


@lru_cache(maxsize=16)
def normalised_values(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Return float32 ``(3, 256)``: each byte value normalised, rounded after every step as CLIPImageProcessor does."""
    unit = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    return (unit - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]


def _crop_centre(image: Image.Image, size_px: int, short_px: int, resample: Image.Resampling) -> Image.Image:
    """Scale the shortest side to ``short_px`` and cut out the middle (offsets rounded down)."""
    width, height = image.size
    long_px = scaled_long_side(max(width, height), min(width, height), short_px)
    new = (long_px, short_px) if width > height else (short_px, long_px)
    left, top = (new[0] - size_px) // 2, (new[1] - size_px) // 2
    return image.resize(new, resample).crop((left, top, left + size_px, top + size_px))


def _pad_to_square(image: Image.Image, size_px: int, colour: tuple[int, int, int], resample: Image.Resampling) -> Image.Image:
    """Centre the image on a square of its longest side (offsets rounded down), then scale to ``size_px``.

    PIL resizes each row first and the columns of the result next. Rows of padding stay what they are in the first
    pass, so the square is completed between the passes: the same bytes as padding first, at the cost of the image only.
    """
    width, height = image.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    rows = Image.new("RGB", (size_px, side), colour)
    step = height if width == side else max(1, _STRIP_PIXELS // side)
    for start in range(0, height, step):
        stop = min(start + step, height)
        strip = image if stop - start == height else image.crop((0, start, width, stop))
        if width < side:
            padded = Image.new("RGB", (side, stop - start), colour)
            padded.paste(strip, (left, 0))
            strip = padded
        rows.paste(strip.resize((size_px, stop - start), resample), (0, top + start))
    return rows.resize((size_px, size_px), resample)
