"""Image preprocessing to and from Hugging Face's ``preprocessor_config.json`` (CLIPImageProcessor, LlavaImageProcessor, SiglipImageProcessor)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..spec import LmmError
from ..spec.fields import is_number, is_whole
from .constants import CLIP_MEAN, CLIP_STD, Fit, Resample

if TYPE_CHECKING:
    from .preprocess import ImagePreprocess

_RESAMPLE: dict[int, Resample] = {
    int(Image.Resampling.BICUBIC): "bicubic",
    int(Image.Resampling.BILINEAR): "bilinear",
}


def refuse_reading(spec: Any) -> None:
    """Refuse to export a way to read pictures that transformers' processors don't have: they would see other pictures.

    Raises:
        LmmError: ``exif`` isn't ``ignore``, or ``transparent`` isn't ``drop``.
    """
    if (spec.exif, spec.transparent) != ("ignore", "drop"):
        raise LmmError(
            f"the preprocessing reads pictures with exif={spec.exif!r} and transparent={spec.transparent!r}, which transformers' processors "
            f"can't: save with format='native', or train and ask with exif='ignore' and transparent='drop'"
        )


def to_hf(spec: ImagePreprocess) -> dict[str, Any]:
    """Return the config transformers reads.

    Padding needs ``LlavaImageProcessor`` with ``do_pad``; ``CLIPImageProcessor`` knows the crop only, ``SiglipImageProcessor`` squashes.

    Raises:
        LmmError: ``exif`` or ``transparent`` isn't what transformers does.
    """
    refuse_reading(spec)
    codes = {name: code for code, name in _RESAMPLE.items()}
    side = {"height": spec.size_px, "width": spec.size_px}
    shape: dict[str, dict[str, Any]] = {
        "pad": {"size": {"shortest_edge": spec.size_px}, "do_center_crop": True, "crop_size": side, "do_pad": True},
        "crop": {"size": {"shortest_edge": spec.resize_px or spec.size_px}, "do_center_crop": True, "crop_size": side},
        "squash": {"size": side, "do_center_crop": False},
    }
    return {
        "image_processor_type": _PROCESSORS[spec.fit],
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": codes[spec.resample],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        **shape[spec.fit],
    }


def read_hf(config: Mapping[str, Any], *, patch_px: int, fit: Fit | None = None) -> dict[str, Any]:
    """Return the fields of ``ImagePreprocess`` that a config describes: that of CLIP, LLaVA, SigLIP, DINOv2 (``BitImageProcessor``) and their like.

    Args:
        config: content of ``preprocessor_config.json``, or of ``processor_config.json`` with an ``image_processor`` inside.
        patch_px: side of a patch; the file does not say, the vision config does.
        fit: overrides the file; original LLaVA keeps it elsewhere (``image_aspect_ratio`` in ``config.json``).

    Raises:
        LmmError: the config asks for other steps (each is named).
    """
    config = config.get("image_processor", config)
    size = config.get("size", config.get("crop_size", 224))
    squash = isinstance(size, Mapping) and "shortest_edge" not in size
    size_px = _side(size if squash else config.get("crop_size", size), "size" if squash else "crop_size")
    short_px = size_px if squash else _side(size, "size")
    problems = step_problems(config, "do_center_crop", "do_pad")
    if squash and config.get("do_center_crop") and _side(config.get("crop_size", size), "crop_size") != size_px:
        problems.append(f"crop_size={config['crop_size']} cuts an image that was squashed to size={dict(size)}")
    if not squash and config.get("do_center_crop", True) is False:
        problems.append("do_center_crop=false (keeps the shape of the image; expected a crop, or a size with height and width)")
    if config.get("do_pad") and not fit and short_px > size_px:
        problems.append(f"do_pad, then crop_size={size_px} out of size={size} (cuts into what was padded to be seen whole)")
    if short_px < size_px:
        problems.append(f"size={size} is below crop_size={size_px}")
    if config.get("resample", 3) not in _RESAMPLE:
        problems.append(f"resample={config['resample']} (expected 3 for bicubic or 2 for bilinear)")
    if problems:
        kind = config.get("image_processor_type", "image processor")
        raise LmmError(f"{kind} config is not a pad, centre crop or squash to a square: {'; '.join(problems)}")
    stated: Fit = "pad" if config.get("do_pad") else "squash" if squash else "crop"
    return {
        "size_px": size_px,
        "patch_px": patch_px,
        "fit": fit or stated,
        "mean": statistic(config, "image_mean", CLIP_MEAN),
        "std": statistic(config, "image_std", CLIP_STD),
        "resample": _RESAMPLE[config.get("resample", 3)],
        "resize_px": short_px if short_px > size_px else None,
    }


def step_problems(config: Mapping[str, Any], *known: str) -> list[str]:
    """Return the steps of an image processor that a preprocessing leaves out, and those it doesn't have.

    Args:
        config: of the processor.
        known: its steps that the preprocessing looks at itself.
    """
    left_out = [f"{step}=false" for step in _ALWAYS if config.get(step, True) is False]
    unknown = [key for key in config if key in _OTHER_MATHS or key.startswith("do_") and key not in (*_ALWAYS, *_ELSEWHERE, *known)]
    factor = config.get("rescale_factor", 1 / 255)
    scaled = [] if is_number(factor) and abs(factor - 1 / 255) <= 1e-9 else [f"rescale_factor={factor} (expected 1/255)"]
    return [*left_out, *(f"{key}={config[key]!r} (a step that isn't computed)" for key in unknown if config[key]), *scaled]


def statistic(config: Mapping[str, Any], key: str, default: tuple[float, ...]) -> Any:
    """Return a mean or a deviation per channel; processors take one number for all channels, too."""
    value = config.get(key)
    if value is None:
        return default
    return (value,) * 3 if is_number(value) else value


_ALWAYS = ("do_resize", "do_rescale", "do_normalize")
_ELSEWHERE = ("do_convert_rgb", "do_reduce_labels", "do_convert_annotations")
"""Steps that change no pixel here: every picture becomes RGB, and labels aren't read."""
_OTHER_MATHS = ("crop_pct", "offset", "rescale_offset", "size_divisor")

_PROCESSORS: dict[Fit, str] = {"pad": "LlavaImageProcessor", "crop": "CLIPImageProcessor", "squash": "SiglipImageProcessor"}


def _side(value: Any, key: str) -> int:
    """Read the side of a square from the forms transformers has used over time."""
    if isinstance(value, Mapping):
        sides = {value[name] for name in ("shortest_edge", "height", "width") if value.get(name) is not None}
        value = sides.pop() if len(sides) == 1 else value
    if not is_whole(value) or value < 1:
        raise LmmError(f"image processor {key}: expected the side of a square in pixels, found {value!r}")
    return value
