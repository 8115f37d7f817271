"""Boxes: pixels of the original image <-> the square the model sees <-> text.

LLaVA-1.5 writes a region as ``[x1, y1, x2, y2]``: left, top, right, bottom, in [0, 1], two decimals, relative to the
square its picture is *padded* to (haotian-liu/LLaVA issue 606). The picture sits in the middle of that square, offsets
rounded down exactly as in the preprocessing, so a box and the pixels agree. Models trained on centre crops need the
``cropped`` pair instead.

>>> box = to_padded(Box(0, 0, 640, 240), width_px=640, height_px=480)
>>> format_box(box)
'[0.00, 0.12, 1.00, 0.50]'
>>> from_padded(parse_box("It is at [0.00, 0.12, 1.00, 0.50]."), width_px=640, height_px=480)
Box(x1=0.0, y1=0.0, x2=640.0, y2=240.0)
"""

from __future__ import annotations

import math
import re
from dataclasses import astuple, dataclass

from ..spec import LmmError
from .preprocess import scaled_long_side

_DECIMALS = 2
_NUMBER = r"\s*(-?(?:\d+(?:\.\d*)?|\.\d+))\s*"
_BOX = re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]")


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle with an area: left ``x1`` < right ``x2``, top ``y1`` < bottom ``y2``; edges, not pixel centres.

    Which frame it lives in (pixels, padded square, cropped square) is said by the function that made it.

    Raises:
        LmmError: an edge is not a finite number, or the box has no area.
    """

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(edge) for edge in astuple(self)):
            raise LmmError(f"box {list(astuple(self))} has an edge that is not a finite number")
        if self.x1 >= self.x2 or self.y1 >= self.y2:
            raise LmmError(f"box {list(astuple(self))} has no area: expected x1 < x2 and y1 < y2 ([left, top, right, bottom])")

    @property
    def area(self) -> float:
        """Width times height, in the box's own units."""
        return (self.x2 - self.x1) * (self.y2 - self.y1)

    def iou(self, other: Box) -> float:
        """Return intersection over union with a box of the same frame, 0 to 1.

        >>> round(Box(0, 0, 2, 1).iou(Box(1, 0, 3, 1)), 4)
        0.3333
        """
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        shared = max(width, 0.0) * max(height, 0.0)
        return shared / (self.area + other.area - shared)


def to_padded(box_px: Box, width_px: int, height_px: int) -> Box:
    """Return a pixel box relative to the padded square, each edge in [0, 1].

    Args:
        box_px: edges in pixels of the original image.
        width_px: width of the original image.
        height_px: height of the original image.

    Raises:
        LmmError: the box reaches outside the image.
    """
    _refuse_outside(box_px, width_px, height_px)
    side, left, top = _padded_square(width_px, height_px)
    return Box(
        (box_px.x1 + left) / side,
        (box_px.y1 + top) / side,
        (box_px.x2 + left) / side,
        (box_px.y2 + top) / side,
    )


def from_padded(box: Box, width_px: int, height_px: int) -> Box:
    """Return a box of the padded square in pixels of the original image, cut off at the image's edges.

    Raises:
        LmmError: the box lies in the padding only.
    """
    _refuse_unnormalised(box)
    side, left, top = _padded_square(width_px, height_px)
    edges = (box.x1 * side - left, box.y1 * side - top, box.x2 * side - left, box.y2 * side - top)
    return _inside(
        edges,
        width_px,
        height_px,
        f"box {list(astuple(box))} lies in the padding of a {width_px}x{height_px} image",
    )


def to_cropped(box_px: Box, width_px: int, height_px: int, size_px: int = 336) -> Box:
    """Return a pixel box relative to the centre crop, each edge in [0, 1], cut off at the crop's edges.

    Args:
        box_px: edges in pixels of the original image.
        width_px: width of the original image.
        height_px: height of the original image.
        size_px: side of the crop; the window is that of ``ImagePreprocess(fit="crop")`` to the last rounding.

    Raises:
        LmmError: the box reaches outside the image, or nothing of it is left in the crop.
    """
    _refuse_outside(box_px, width_px, height_px)
    x_scale, y_scale, left, top = _crop_window(width_px, height_px, size_px)
    edges = (
        box_px.x1 * x_scale - left,
        box_px.y1 * y_scale - top,
        box_px.x2 * x_scale - left,
        box_px.y2 * y_scale - top,
    )
    message = f"box {list(astuple(box_px))} px is outside the centre crop of a {width_px}x{height_px} image; use fit='pad'"
    seen = _inside(edges, size_px, size_px, message)
    return Box(seen.x1 / size_px, seen.y1 / size_px, seen.x2 / size_px, seen.y2 / size_px)


def from_cropped(box: Box, width_px: int, height_px: int, size_px: int = 336) -> Box:
    """Return a box of the centre crop in pixels of the original image."""
    _refuse_unnormalised(box)
    x_scale, y_scale, left, top = _crop_window(width_px, height_px, size_px)
    edges = (
        (box.x1 * size_px + left) / x_scale,
        (box.y1 * size_px + top) / y_scale,
        (box.x2 * size_px + left) / x_scale,
        (box.y2 * size_px + top) / y_scale,
    )
    return _inside(edges, width_px, height_px, f"box {list(astuple(box))} has no area in a {width_px}x{height_px} image")


def format_box(box: Box, *, trailing_zeros: bool = True) -> str:
    """Return a normalised box as text, each edge rounded to two decimals.

    A side thinner than the rounding would vanish; its edges are moved apart instead, so the text always parses.

    Args:
        box: edges in [0, 1].
        trailing_zeros: False writes ``[0.0, 0.64, 0.3, 0.76]``, as Python's lists in LLaVA's own data do.

    >>> format_box(Box(0.1, 0.2, 0.3, 0.401))
    '[0.10, 0.20, 0.30, 0.40]'
    """
    _refuse_unnormalised(box)
    (x1, x2), (y1, y2) = _rounded_apart(box.x1, box.x2), _rounded_apart(box.y1, box.y2)
    if not trailing_zeros:
        return str([x1, y1, x2, y2])
    return "[" + ", ".join(f"{edge:.{_DECIMALS}f}" for edge in (x1, y1, x2, y2)) + "]"


def parse_box(text: str) -> Box:
    """Return the first ``[x1, y1, x2, y2]`` in a text.

    Raises:
        LmmError: there is none, or it is not a normalised box with an area.
    """
    match = _BOX.search(text)
    if match is None:
        raise LmmError(f"no box in {text[:80]!r}: expected four numbers like [0.10, 0.20, 0.30, 0.40]")
    box = Box(*(float(edge) for edge in match.groups()))
    _refuse_unnormalised(box)
    return box


def find_boxes(text: str) -> list[Box]:
    """Return every valid normalised box of a model's answer, in order; anything else in brackets is no box."""
    edges = ([float(edge) for edge in match.groups()] for match in _BOX.finditer(text))
    return [Box(*e) for e in edges if 0 <= e[0] < e[2] <= 1 and 0 <= e[1] < e[3] <= 1]


def _padded_square(width_px: int, height_px: int) -> tuple[int, int, int]:
    """Side of the square, and left and top offset of the image in it (LLaVA ``expand2square``)."""
    side = max(width_px, height_px)
    return side, (side - width_px) // 2, (side - height_px) // 2


def _crop_window(width_px: int, height_px: int, size_px: int) -> tuple[float, float, int, int]:
    """Scale of each axis, and left and top offset of the crop in scaled pixels."""
    long_px = scaled_long_side(max(width_px, height_px), min(width_px, height_px), size_px)
    offset = (long_px - size_px) // 2
    if width_px > height_px:
        return long_px / width_px, size_px / height_px, offset, 0
    return size_px / width_px, long_px / height_px, 0, offset


def _inside(edges: tuple[float, float, float, float], width: float, height: float, message: str) -> Box:
    """Cut a rectangle off at ``(0, 0, width, height)``; raise ``message`` when nothing is left."""
    x1, y1, x2, y2 = edges
    x1, x2 = max(x1, 0.0), min(x2, float(width))
    y1, y2 = max(y1, 0.0), min(y2, float(height))
    if x1 >= x2 or y1 >= y2:
        raise LmmError(message)
    return Box(x1, y1, x2, y2)


def _refuse_outside(box: Box, width_px: int, height_px: int) -> None:
    if width_px < 1 or height_px < 1:
        raise LmmError(f"an image needs at least 1x1 px, found {width_px}x{height_px}")
    if box.x1 < 0 or box.y1 < 0 or box.x2 > width_px or box.y2 > height_px:
        raise LmmError(f"box {list(astuple(box))} px reaches outside the {width_px}x{height_px} image; is it in another unit?")


def _refuse_unnormalised(box: Box) -> None:
    if min(astuple(box)) < 0 or max(astuple(box)) > 1:
        raise LmmError(f"box {list(astuple(box))} is not normalised: expected edges in [0, 1]; convert pixels with to_padded")


def _rounded_apart(low: float, high: float) -> tuple[float, float]:
    """Round both edges to the text's decimals without letting them meet."""
    near = round(low, _DECIMALS), round(high, _DECIMALS)
    if near[0] < near[1]:
        return near
    steps = 10**_DECIMALS
    apart = math.floor(low * steps) / steps, math.ceil(high * steps) / steps
    if apart[0] < apart[1]:
        return apart
    # The edges differ by less than a float can scale: widen towards the inside of [0, 1].
    low = min(near[0], 1 - 1 / steps)
    return round(low, _DECIMALS), round(low + 1 / steps, _DECIMALS)
