"""Image preprocessing to and from Hugging Face's ``preprocessor_config.json`` (CLIPImageProcessor, LlavaImageProcessor)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..spec import LmmError
from .preprocess import CLIP_MEAN, CLIP_STD, Fit, ImagePreprocess, Resample

_RESAMPLE: dict[int, Resample] = {
    int(Image.Resampling.BICUBIC): "bicubic",
    int(Image.Resampling.BILINEAR): "bilinear",
}


def to_hf(spec: ImagePreprocess) -> dict[str, Any]:
    """Return the config transformers reads.

    Padding needs ``LlavaImageProcessor`` with ``do_pad``; ``CLIPImageProcessor`` knows the crop only.
    """
    codes = {name: code for code, name in _RESAMPLE.items()}
    side = {"height": spec.size_px, "width": spec.size_px}
    config = {
        "image_processor_type": "LlavaImageProcessor" if spec.fit == "pad" else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": spec.size_px},
        "resample": codes[spec.resample],
        "do_center_crop": True,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
    return {**config, "do_pad": True} if spec.fit == "pad" else config


def from_hf(config: Mapping[str, Any], *, patch_px: int, fit: Fit | None = None) -> ImagePreprocess:
    """Return the preprocessing a config describes.

    Args:
        config: content of ``preprocessor_config.json``, or of ``processor_config.json`` with an ``image_processor`` inside.
        patch_px: side of a patch; the file does not say, the vision config does.
        fit: overrides the file; original LLaVA keeps it elsewhere (``image_aspect_ratio`` in ``config.json``).

    Raises:
        LmmError: the config asks for steps that are not LLaVA's (each is named).
    """
    config = config.get("image_processor", config)
    size_px = _side(config.get("crop_size", config.get("size", 224)), "crop_size")
    problems = [f"{step}=false" for step in _STEPS if config.get(step, True) is False]
    shortest = config.get("size", size_px)
    if isinstance(shortest, Mapping) and "shortest_edge" not in shortest:
        problems.append(f"size={dict(shortest)} (squashes the image; expected shortest_edge)")
    elif _side(shortest, "size") != size_px:
        problems.append(f"size={shortest} differs from crop_size={size_px}")
    if abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        problems.append(f"rescale_factor={config['rescale_factor']} (expected 1/255)")
    if config.get("resample", 3) not in _RESAMPLE:
        problems.append(f"resample={config['resample']} (expected 3 for bicubic or 2 for bilinear)")
    if problems:
        kind = config.get("image_processor_type", "image processor")
        raise LmmError(
            f"{kind} config is not a pad or centre crop as CLIP and LLaVA use it: {'; '.join(problems)}"
        )
    return ImagePreprocess(
        size_px=size_px,
        patch_px=patch_px,
        fit=fit or ("pad" if config.get("do_pad") else "crop"),
        mean=tuple(config.get("image_mean", CLIP_MEAN)),
        std=tuple(config.get("image_std", CLIP_STD)),
        resample=_RESAMPLE[config.get("resample", 3)],
    )


_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


def _side(value: Any, key: str) -> int:
    """Read the side of a square from the forms transformers has used over time."""
    if isinstance(value, Mapping):
        sides = {value[name] for name in ("shortest_edge", "height", "width") if value.get(name) is not None}
        value = sides.pop() if len(sides) == 1 else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LmmError(f"image processor {key}: expected the side of a square in pixels, found {value!r}")
    return value
