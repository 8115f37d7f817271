"""Pictures of every mode to RGB of 8 bits, so that a value always becomes the same grey, whatever else is in the picture.

More bits are scaled by the depth that the file states: 16 bits keep the high byte, as Pillow does with pictures of three 16-bit channels,
and 12 bits the highest 8. Pillow's own ``convert("RGB")`` clips them instead: all above 255 turns white. Floats are taken as 0 to 1.
Where black and white can't be known (32-bit integers, other floats), the picture is refused: a guess from its largest value would show
two pictures of the same thing differently.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .colour_key import has_key
from .constants import Exif, Transparent
from .failures import DAMAGE, ImageError

_SHORT = ("I;16", "I;16L", "I;16B", "I;16N")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has one channel of more than 8 bits."""
    return image.mode in (*_SHORT, "I", "F")


def _only_by_key(image: Image.Image) -> bool:
    """Whether a picture can be transparent by its one transparent value only, and Pillow doesn't see to that: not at all, or in new versions."""
    return is_deep(image) or image.mode == "1"


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return how a picture must be turned to stand as its EXIF orientation says; None = it does."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except (OSError, *DAMAGE):  # EXIF that can't be read tells no orientation; the picture is sound
        return None


def is_transparent(image: Image.Image) -> bool:
    """Whether anything shows through a picture: an alpha below 255 somewhere."""
    if image.mode in _PREMULTIPLIED:
        return is_transparent(image.convert(_PREMULTIPLIED[image.mode]))
    if _only_by_key(image):
        keyed = has_key(image)
        return keyed is not None and bool(keyed.any())
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    if not (image.mode in ("RGBA", "LA", "PA") or palette == "RGBA" or "transparency" in image.info):
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def to_rgb(image: Image.Image, name: str, exif: Exif = "ignore", transparent: Transparent = "drop") -> Image.Image:
    """Return a decoded picture as RGB.

    Args:
        image: of any mode.
        name: what to call it in messages.
        exif: ``ignore`` shows it as stored, ``rotate`` as its EXIF orientation says.
        transparent: ``drop`` shows the colours below the transparency as stored; ``black`` and ``white`` put it on such a background.

    Raises:
        ImageError: values of an unknown range (kind ``range``), or a mode that can't be turned into RGB (``format``).
    """
    rgb = _flat(image, name) if transparent == "drop" or not is_transparent(image) else _on(image, name, transparent)
    turn = turn_of(image) if exif == "rotate" else None
    if turn is None:
        return rgb
    turned = rgb.transpose(turn)
    turned.info = {key: value for key, value in turned.info.items() if key not in _EXIF_KEYS}  # it stands now, and must not be turned again
    return turned


def _on(image: Image.Image, name: str, colour: str) -> Image.Image:
    """Put a transparent picture on a background."""
    keyed = has_key(image) if _only_by_key(image) else None
    if keyed is not None:
        flat = _flat(image, name)
        flat.paste(colour, mask=Image.fromarray(keyed))
        return flat
    straight = image.convert(_PREMULTIPLIED.get(image.mode, image.mode)).convert("RGBA")
    canvas = Image.new("RGBA", image.size, colour)
    canvas.alpha_composite(straight)
    return canvas.convert("RGB")


def _flat(image: Image.Image, name: str) -> Image.Image:
    if is_deep(image):
        return Image.fromarray(_bytes(image, name)).convert("RGB")
    try:
        if image.mode in _PREMULTIPLIED:
            return image.convert(_PREMULTIPLIED[image.mode]).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(
            "format",
            f"image {name} has the mode {image.mode}, which Pillow can't turn into RGB ({error}): convert it first",
        ) from error


def _bytes(image: Image.Image, name: str) -> np.ndarray:
    """Return a deep picture as uint8 ``(H, W)``."""
    values = np.asarray(image)
    if image.mode == "F":
        scaled = unit_to_bytes(values, name)
    elif image.mode in _SHORT:
        scaled = (values >> (_depth(image) - 8)).astype(np.uint8)
    elif image.format in ("PNG", "PPM"):  # 16 bits in both; older Pillows open such PNGs as 32
        scaled = (values >> 8).astype(np.uint8)
    else:
        raise ImageError(
            "range",
            f"image {name} holds 32-bit or signed integers (mode I, {values.min()} to {values.max()}), of which nobody knows what is white: "
            f"scale them to 8 bits, or save them as unsigned 16 bits, where 65535 is white",
        )
    return 255 - scaled if _white_is_zero(image) else scaled


def unit_to_bytes(values: np.ndarray, name: str) -> np.ndarray:
    """Return floats in [0, 1] as uint8 of the same shape.

    Raises:
        ImageError: NaN, infinity, or values outside [0, 1] (kind ``range``).
    """
    if not np.isfinite(values).all():
        raise ImageError("range", f"image {name} holds NaN or infinity: replace these values by numbers in [0, 1]")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise ImageError(
            "range",
            f"image {name} holds floats from {low:g} to {high:g}, expected 0 (black) to 1 (white): scale them, or convert them to 8 bits",
        )
    return (values * 255 + 0.5).astype(np.uint8)


def _depth(image: Image.Image) -> int:
    """Bits of a value: 12 where a TIFF says so, else 16."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    return int(bits[0]) if isinstance(bits, tuple) and bits and bits[0] in (12, 16) else 16


def _white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF counts from white to black: Pillow turns such pictures round only where they have 8 bits."""
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
