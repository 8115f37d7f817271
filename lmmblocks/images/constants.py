"""What an image preprocessing chooses from: how a picture becomes square, the filter that scales it, and CLIP's pixel statistics."""

from __future__ import annotations

from typing import Literal

from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Channel means of CLIP's training images, RGB in [0, 1] (openai/CLIP ``clip/clip.py``)."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel standard deviations of CLIP's training images, RGB in [0, 1]."""

Exif = Literal["ignore", "rotate"]
EXIF: tuple[Exif, ...] = ("ignore", "rotate")
"""Whether a picture is turned as its EXIF orientation says; LLaVA ignores it."""

Transparent = Literal["drop", "black", "white"]
TRANSPARENT: tuple[Transparent, ...] = ("drop", "black", "white")
"""What shows through: the colours as stored, whatever their alpha (LLaVA), or a background."""

Fit = Literal["pad", "crop", "squash"]
FITS: tuple[Fit, ...] = ("pad", "crop", "squash")
Resample = Literal["bicubic", "bilinear"]
FILTERS: dict[Resample, Image.Resampling] = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
