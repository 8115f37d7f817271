"""From a scene to pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .glyphs import digit_mask, shape_mask, sign_margin_px, word_mask
from .scene import Item, Scene
from .vocabulary import COLORS, DARK_INK_ON

MID_GREY = (127, 127, 127)
_TEXTURE_CELLS = 6  # control points of the background's slow variation, a side
_SHADE = 12  # largest deviation of an item's colour from its name's, a channel
_NOISE = 2  # largest deviation of one pixel


def draw_scene(scene: Scene) -> Image.Image:
    """Draw a scene; the same scene always gives the same pixels.

    Returns:
        An RGB image of scene.width_px x scene.height_px.
    """
    generator = np.random.default_rng(scene.seed)
    image = _background(scene, generator)
    for item in scene.items:
        shade = generator.integers(-_SHADE, _SHADE + 1, 3)
        _PAINTERS[item.kind](image, item, shade)
    noise = generator.integers(-_NOISE, _NOISE + 1, (scene.height_px, scene.width_px, 1), dtype=np.int16)
    pixels = np.asarray(image, dtype=np.int16) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def grey_out(image: Image.Image) -> Image.Image:
    """A uniform mid-grey RGB image of the same size: what a model answers to it, it answers blind."""
    return Image.new("RGB", image.size, MID_GREY)


def _background(scene: Scene, generator: np.random.Generator) -> Image.Image:
    coarse = generator.integers(-9, 10, (_TEXTURE_CELLS, _TEXTURE_CELLS, 1)) + np.array(scene.background)
    tile = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
    return tile.resize((scene.width_px, scene.height_px), Image.Resampling.BILINEAR)


def _shaded(rgb: tuple[int, int, int], shade: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in (np.array(rgb) + shade).clip(0, 255))


def _paint_shape(image: Image.Image, item: Item, shade: np.ndarray) -> None:
    image.paste(_shaded(COLORS[item.color or ""], shade), item.box_px, shape_mask(item.shape or "", item.size_px))


def _paint_digit(image: Image.Image, item: Item, shade: np.ndarray) -> None:
    grey = abs(int(shade[0]))
    plate, ink = (12 + grey, 243 - grey) if item.inverted else (243 - grey, 12 + grey)
    image.paste((plate,) * 3, item.box_px)
    inside = (item.box_px[0] + 1, item.box_px[1] + 1, item.box_px[2] - 1, item.box_px[3] - 1)
    image.paste((ink,) * 3, inside, digit_mask(item.digit_instance or 0, item.size_px - 2))


def _paint_word(image: Image.Image, item: Item, shade: np.ndarray) -> None:
    image.paste(_shaded(COLORS[item.color or ""], shade), item.box_px)
    ink = (16, 16, 16) if item.color in DARK_INK_ON else (250, 250, 250)
    margin = sign_margin_px(item.size_px)
    corner = (item.box_px[0] + margin, item.box_px[1] + margin)
    image.paste(ink, corner, word_mask(item.word or "", item.size_px))


_PAINTERS = {"shape": _paint_shape, "digit": _paint_digit, "word": _paint_word}
