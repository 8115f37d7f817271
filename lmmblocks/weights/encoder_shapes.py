"""What a tower of transformers is and how its pictures are made, from its configs; no weights are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..encoders.choices import sized
from ..encoders.siglip2_naflex import NaFlexConfig
from ..images.fit import with_fit
from ..images.native import NativePreprocess
from ..images.preprocess import Fit, ImagePreprocess
from ..spec import LmmError
from .files import CONFIG, read_json
from .hf_encoders import HF_ENCODERS, encoder_from_hf, hf_type


def encoder_shape(folder: Path, *, fit: Fit | None = None) -> tuple[Any, Any]:
    """Return config and preprocessing of a tower of transformers; no weights are needed. See ``load_encoder``."""
    config = encoder_from_hf(read_json(folder / CONFIG))
    preprocess = read_preprocess(folder, config, fit=fit or HF_ENCODERS[hf_type(config)].fit)
    if preprocess is None:
        preprocess = config.default_preprocess() if fit is None else with_fit(config.default_preprocess(), fit)
    return sized(config, preprocess), preprocess


def read_preprocess(folder: Path, encoder: Any, *, fit: Fit | None = None) -> Any:
    """Return the image preprocessing that a folder's processor config describes, None when it has none.

    Args:
        folder: a model folder.
        encoder: config of the encoder; says the patch size, which the file doesn't.
        fit: instead of what the file says.

    Raises:
        LmmError: other steps than the native preprocessing has, or images of another size than the encoder's.
    """
    path, values = image_processor(folder)
    if not values:
        return None
    if isinstance(encoder, NaFlexConfig):
        return NativePreprocess.from_hf_processor_config(values)
    preprocess = ImagePreprocess.from_hf_processor_config(values, patch_px=encoder.patch, fit=fit)
    if preprocess.size_px != sized(encoder, preprocess).image_size:
        raise LmmError(
            f"{path} makes images of {preprocess.size_px} px, the encoder in config.json takes {encoder.image_size} px: correct crop_size and size"
        )
    return preprocess


def image_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file that says how a folder's pictures become pixels and what it says, nothing where none does: transformers 4 writes a file of
    its own, 5 a section of the processor's.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        values = read_json(folder / name) if (folder / name).is_file() else {}
        values = values.get("image_processor", {} if name.startswith("processor") else values)
        if values:
            return folder / name, values
    return folder, {}
