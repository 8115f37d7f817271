"""Images: opening them safely, the preprocessing spec, and boxes. Light: PIL and numpy only until pixels are asked for."""

from .boxes import (
    Box,
    find_boxes,
    format_box,
    from_cropped,
    from_padded,
    parse_box,
    to_cropped,
    to_padded,
)
from .failures import ImageError
from .load import load_image, open_image
from .preprocess import CLIP_MEAN, CLIP_STD, ImagePreprocess, clip_preprocess

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "Box",
    "ImageError",
    "ImagePreprocess",
    "clip_preprocess",
    "find_boxes",
    "format_box",
    "from_cropped",
    "from_padded",
    "load_image",
    "open_image",
    "parse_box",
    "to_cropped",
    "to_padded",
]
