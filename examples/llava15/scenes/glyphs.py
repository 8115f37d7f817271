"""Masks of shapes, words and handwritten digits, rendered once per size and kept."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lmmblocks.spec import LmmError

_OVERSAMPLING = 8
_CAPITAL_PER_EM = 0.70  # capital height of Pillow's built-in font over its size


def _star_points() -> list[tuple[float, float]]:
    angles = [math.pi * (index / 5 - 0.5) for index in range(10)]
    radii = [1.0 if index % 2 == 0 else 0.42 for index in range(10)]
    points = np.array([(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, radii)])
    low, high = points.min(axis=0), points.max(axis=0)
    return [tuple(point) for point in ((points - low) / (high - low)).tolist()]


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95)],
    "triangle": [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "diamond": [(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)],
    "cross": [
        (1 / 3, 0), (2 / 3, 0), (2 / 3, 1 / 3), (1, 1 / 3), (1, 2 / 3), (2 / 3, 2 / 3),
        (2 / 3, 1), (1 / 3, 1), (1 / 3, 2 / 3), (0, 2 / 3), (0, 1 / 3), (1 / 3, 1 / 3),
    ],
    "star": _star_points(),
}  # fmt: skip
"""Outlines in the unit square, y down. The circle is an ellipse and has none."""


@lru_cache(maxsize=1024)
def shape_mask(shape: str, size_px: int) -> Image.Image:
    """Antialiased coverage ("L", size_px x size_px) of a shape that fills its box."""
    side = size_px * _OVERSAMPLING
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    if shape == "circle":
        pen.ellipse((0, 0, side - 1, side - 1), fill=255)
    else:
        pen.polygon([(x * (side - 1), y * (side - 1)) for x, y in _POLYGONS[shape]], fill=255)
    return mask.reduce(_OVERSAMPLING)


@lru_cache(maxsize=4096)
def word_mask(word: str, capital_px: int) -> Image.Image:
    """Antialiased coverage ("L", cropped to the ink) of a word in capitals `capital_px` high."""
    font = ImageFont.load_default(capital_px / _CAPITAL_PER_EM)
    _, _, right, bottom = font.getbbox(word.upper())
    mask = Image.new("L", (math.ceil(right), math.ceil(bottom)), 0)
    ImageDraw.Draw(mask).text((0, 0), word.upper(), fill=255, font=font)
    box = mask.getbbox()
    assert box is not None, f"the built-in font draws nothing for {word!r}"
    return mask.crop(box)


def sign_size_px(word: str, capital_px: int) -> tuple[int, int]:
    """Width and height of the sign a word is printed on."""
    width, height = word_mask(word, capital_px).size
    margin = sign_margin_px(capital_px)
    return width + 2 * margin, height + 2 * margin


def sign_margin_px(capital_px: int) -> int:
    """Space between the letters and the edge of their sign."""
    return max(3, round(capital_px * 0.26))


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits: images uint8 [N, 8, 8] (0..255, ink is high) and labels int [N].

    Source: UCI "Optical Recognition of Handwritten Digits", as shipped inside scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise LmmError("the scenes show handwritten digits from scikit-learn: pip install scikit-learn") from error
    data = load_digits()
    return np.rint(data.images * (255 / 16)).astype(np.uint8), data.target


@lru_cache(maxsize=1)
def digit_instances() -> dict[str, tuple[tuple[int, ...], ...]]:
    """Split -> digit -> the instances of it: every fifth instance of each digit is held out."""
    _, labels = _digits()
    by_digit = [np.flatnonzero(labels == digit).tolist() for digit in range(10)]
    return {
        "train": tuple(tuple(i for n, i in enumerate(found) if n % 5) for found in by_digit),
        "heldout": tuple(tuple(found[::5]) for found in by_digit),
    }


@lru_cache(maxsize=8192)
def digit_mask(instance: int, size_px: int) -> Image.Image:
    """Ink ("L", size_px x size_px) of one handwritten digit."""
    images, _ = _digits()
    return Image.fromarray(images[instance]).resize((size_px, size_px), Image.Resampling.BICUBIC)
