"""What an image preprocessing chooses from: how a picture becomes square, the filter that scales it, and CLIP's pixel statistics."""

from __future__ import annotations

from typing import Literal

from PIL import Image

from ..spec.words import EXIF as EXIF
from ..spec.words import FITS as FITS
from ..spec.words import TRANSPARENT as TRANSPARENT
from ..spec.words import Exif as Exif
from ..spec.words import Fit as Fit
from ..spec.words import Transparent as Transparent

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Channel means of CLIP's training images, RGB in [0, 1] (openai/CLIP ``clip/clip.py``)."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel standard deviations of CLIP's training images, RGB in [0, 1]."""

Resample = Literal["bicubic", "bilinear"]
FILTERS: dict[Resample, Image.Resampling] = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
