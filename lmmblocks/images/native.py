"""Images at their own shape: scaled to a limited number of patches and cut into patches, which are packed (SigLIP 2's NaFlex).

Both sides are scaled by the same factor and rounded up to whole patches, so the shape is kept up to one patch. Source: Tschannen et al.,
arXiv 2502.14786, 2.4.2; ``Siglip2ImageProcessor`` of transformers, whose bisection for the factor is followed to its last step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..spec import ByKeywords, Grid, LmmError
from .constants import Exif, Transparent
from .fit import reading_of
from .hf_processor import refuse_reading, statistic, step_problems
from .load import ImageSource, load_image
from .pixels import PatchPixels
from .preprocess import FILTERS, Resample, normalised_values
from .statistics import check_fields

_LARGEST_FACTOR = 100.0
_PRECISION = 1e-5


@dataclass(frozen=True)
class NativePreprocess(metaclass=ByKeywords):
    """A picture to its packed patches; picklable, and stored in the model's config.

    Attributes:
        patch_px: side of one patch.
        max_patches: most patches of a picture.
        mean: per channel, RGB in [0, 1].
        std: per channel, RGB in [0, 1].
        resample: PIL filter.
        exif: see ``ImagePreprocess``.
        transparent: see ``ImagePreprocess``.

    Raises:
        LmmError: a value makes no sense.
    """

    patch_px: int = 16
    max_patches: int = 256
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: Resample = "bilinear"
    exif: Exif = "ignore"
    transparent: Transparent = "drop"

    def __post_init__(self) -> None:
        check_fields(self)

    def batch(self, images: Iterable[ImageSource]) -> tuple[PatchPixels, tuple[Grid, ...]]:
        """Return the packed patches of ``I`` images, and the grid of each.

        Raises:
            ImageError: an image that cannot be used.
        """
        import torch

        rows, grids, side = [], [], self.patch_px
        table = normalised_values(self.mean, self.std)
        for image in images:
            rgb = load_image(image, **reading_of(self))
            grid = self.grid(*rgb.size)
            raw_HWC = np.asarray(self.scaled(rgb, grid)).reshape(grid.h, side, grid.w, side, 3).transpose(0, 2, 1, 3, 4)
            values = np.stack([table[channel][raw_HWC[..., channel]] for channel in range(3)], -1)
            rows.append(torch.from_numpy(values.reshape(grid.rows, -1)))
            grids.append(grid)
        packed = torch.cat(rows) if rows else torch.zeros(0, 3 * side * side)
        return PatchPixels.of(packed, grids), tuple(grids)

    def grid(self, width_px: int, height_px: int) -> Grid:
        """Return the patch grid of an image of this size without opening it.

        >>> NativePreprocess(16, 256).grid(640, 480)
        Grid(h=14, w=18)
        """
        if width_px < 1 or height_px < 1:
            raise LmmError(f"an image needs at least 1x1 px, found {width_px}x{height_px}")

        def at(factor: float) -> Grid:
            return Grid(*(max(1, math.ceil(side * factor / self.patch_px)) for side in (height_px, width_px)))

        low, high = _PRECISION / 10, _LARGEST_FACTOR
        while high - low >= _PRECISION:
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle).rows <= self.max_patches else (low, middle)
        return at(low)

    def scaled(self, image: Image.Image, grid: Grid) -> Image.Image:
        """Return the RGB picture the encoder sees, before normalising."""
        return image.resize((grid.w * self.patch_px, grid.h * self.patch_px), FILTERS[self.resample])

    @classmethod
    def from_hf_processor_config(cls, config: Mapping[str, Any]) -> NativePreprocess:
        """Read the ``preprocessor_config.json`` of a ``Siglip2ImageProcessor``.

        Raises:
            LmmError: steps it doesn't do (each is named).
        """
        config = config.get("image_processor", config)
        names: dict[int, Resample] = {int(code): name for name, code in FILTERS.items()}
        problems = step_problems(config)
        if config.get("resample", 2) not in names:
            problems.append(f"resample={config['resample']} (expected 3 for bicubic or 2 for bilinear)")
        if problems:
            raise LmmError(f"image processor config is not SigLIP 2's for images of any shape: {'; '.join(problems)}")
        return cls(
            patch_px=config.get("patch_size", 16),
            max_patches=config.get("max_num_patches", 256),
            mean=statistic(config, "image_mean", (0.5, 0.5, 0.5)),
            std=statistic(config, "image_std", (0.5, 0.5, 0.5)),
            resample=names[config.get("resample", 2)],
        )

    def to_hf_processor_config(self) -> dict[str, Any]:
        """Return ``preprocessor_config.json`` for transformers.

        Raises:
            LmmError: ``exif`` or ``transparent`` isn't what transformers does.
        """
        refuse_reading(self)
        return {
            "image_processor_type": "Siglip2ImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "resample": int(FILTERS[self.resample]),
            "patch_size": self.patch_px,
            "max_num_patches": self.max_patches,
        }
