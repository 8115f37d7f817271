"""What a tower of transformers is and how its pictures are made, from its configs; no weights are needed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ...encoders.kept_fields import sized
from ...encoders.siglip2_naflex import NaFlexConfig
from ...images.fit import with_fit
from ...images.native import NativePreprocess
from ...images.preprocess import Fit, ImagePreprocess
from ...spec import LmmError
from ..files.tensors import CONFIG, read_json
from .hf_encoders import HF_ENCODERS, encoder_from_hf, hf_type

_OF_THE_PICTURE = (
    *("size", "crop_size", "image_size", "resample", "rescale_factor", "image_mean", "image_std", "image_grid_pinpoints"),
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad"),
)
"""Keys of an image processor that change pixels."""


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

    Raises:
        LmmError: the folder has both, and they would make other pictures of the same one.
    """
    found = []
    for name in ("processor_config.json", "preprocessor_config.json"):
        values = read_json(folder / name) if (folder / name).is_file() else {}
        values = values.get("image_processor", {} if name.startswith("processor") else values)
        if values:
            found.append((folder / name, values))
    if len(found) == 2:
        _refuse_differences(*found)
    return found[0] if found else (folder, {})


def _refuse_differences(one: tuple[Path, dict[str, Any]], other: tuple[Path, dict[str, Any]]) -> None:
    (path, ours), (other_path, theirs) = one, other
    keys = [key for key in _OF_THE_PICTURE if ours.get(key) is not None and theirs.get(key) is not None]
    different = [f"{key}={ours[key]!r} and {theirs[key]!r}" for key in keys if not _same(ours[key], theirs[key])]
    if different:
        raise LmmError(
            f"{path} and {other_path.name} beside it say {', '.join(different)}: transformers 5 reads the first, 4 the second: remove the one "
            f"that the model wasn't trained with (in the first it is the section 'image_processor')"
        )


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one: a side may be a number or an object, a number may have been rounded."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: value for key, value in one.items() if value is not None} == {key: value for key, value in other.items() if value is not None}
    if isinstance(one, dict) or isinstance(other, dict):
        sides = [set(value.values()) - {None} if isinstance(value, dict) else {value} for value in (one, other)]
        return sides[0] == sides[1]
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)
