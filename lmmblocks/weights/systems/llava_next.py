"""LLaVA-NeXT of transformers (``llava_next``): a LLaVA whose encoder sees tiles, with one more learned row.

Its ``config.json`` is LLaVA's with ``image_grid_pinpoints``, its files are LLaVA's with ``image_newline`` (the layouts are in ``maps``).
Source: ``configuration_llava_next.py`` and ``modeling_llava_next.py`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ...config import LMMConfig
from ...encoders.tiled import Tiled, TiledConfig
from ...images.preprocess import ImagePreprocess
from ...images.tiles import LLAVA_NEXT_RESOLUTIONS, TilePreprocess
from ...spec import LmmError
from ..parts.encoder_shapes import image_processor
from .llava_hf import llava_from_hf, llava_to_hf

LLAVA_NEXT = "llava_next"
MAX_LENGTH = 4096
"""Longest row count LLaVA-NeXT was trained with (``tokenizer_model_max_length`` of llava-v1.6-vicuna-7b)."""

def is_llava_next(values: Mapping[str, Any]) -> bool:
    """Say whether a ``config.json`` is LLaVA-NeXT's."""
    return values.get("model_type") == LLAVA_NEXT


def llava_next_from_hf(values: Mapping[str, Any]) -> LMMConfig:
    """Return the model that a ``LlavaNextConfig`` describes, with the template and token ids of LLaVA-1.5, which the file doesn't know.

    Raises:
        LmmError: a model that the native blocks can't compute; all reasons are listed.
    """
    config = llava_from_hf({**values, "model_type": "llava"})
    pinpoints = values.get("image_grid_pinpoints") or LLAVA_NEXT_RESOLUTIONS
    return replace(
        config,
        encoder=TiledConfig(config.encoder, tuple(tuple(entry) for entry in pinpoints)),
        max_length=min(MAX_LENGTH, config.decoder.max_positions),
    )


def llava_next_to_hf(config: LMMConfig, *, image_token: int) -> dict[str, Any]:
    """Return a ``LlavaNextConfig``; the encoder is tiled as ``TiledConfig`` is by default, its tower is one that ``llava_to_hf`` takes."""
    return {
        **llava_to_hf(replace(config, encoder=config.encoder.tower), image_token=image_token),
        "model_type": LLAVA_NEXT,
        "architectures": ["LlavaNextForConditionalGeneration"],
        "image_grid_pinpoints": [list(entry) for entry in config.encoder.pinpoints],
    }


def is_tiled(model: Any) -> bool:
    """Say whether a model's encoder sees tiles."""
    return type(model.encoder) is Tiled


def tile_problems(encoder: TiledConfig) -> Iterator[str]:
    """Yield what of an encoder's tiles transformers' LLaVA-NeXT has no setting for."""
    fixed = {f.name: f.default for f in fields(TiledConfig) if f.name not in ("tower", "pinpoints")}
    for name, expected in fixed.items():
        if getattr(encoder, name) != expected:
            yield f"tiles with {name}={getattr(encoder, name)!r} (expected {expected!r})"


def read_tile_preprocess(folder: Path, encoder: TiledConfig) -> TilePreprocess | None:
    """Return the preprocessing that a folder's processor config describes, None when there is none.

    Raises:
        LmmError: steps that are not LLaVA-NeXT's, or other resolutions than those of ``config.json``.
    """
    path, values = image_processor(folder)
    if not values:
        return None
    tower = ImagePreprocess.from_hf_processor_config(
        {**values, "do_pad": False}, patch_px=encoder.tower.patch
    )
    found = tuple(tuple(entry) for entry in values.get("image_grid_pinpoints") or LLAVA_NEXT_RESOLUTIONS)
    if found != encoder.pinpoints or tower.size_px != encoder.tower.image_size:
        raise LmmError(
            f"{path} cuts pictures into tiles of {tower.size_px} px at {found}, config.json says tiles of {encoder.tower.image_size} px at "
            f"{encoder.pinpoints}: make the two files agree"
        )
    return encoder.preprocess_of(tower)
