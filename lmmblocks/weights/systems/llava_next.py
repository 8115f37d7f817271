"""LLaVA-NeXT of transformers (``llava_next``): a LLaVA whose encoder sees tiles, with one more learned row.

Its ``config.json`` is LLaVA's with ``image_grid_pinpoints``, its files are LLaVA's with ``image_newline``.
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
from ..files.maps import FILES_5, HUB, NATIVE, RUNTIME_4_52, RUNTIME_5, KeyMap
from ..parts.encoder_shapes import image_processor
from .llava_hf import llava_from_hf, llava_to_hf, problems, processor_values, write_processor
from .of_transformers import Writer, of_transformers

MODEL_TYPE = "llava_next"
MAX_LENGTH = 4096
"""Longest row count LLaVA-NeXT was trained with (``tokenizer_model_max_length`` of llava-v1.6-vicuna-7b)."""


def tiled(layout: KeyMap, newline: str, name: str = "LLaVA-NeXT") -> KeyMap:
    """Return LLaVA's layout for a tower after tiles, with the end of a line of patches, which is learned."""
    renames = tuple((file, model.replace("vision_tower.", "vision_tower.tower.", 1)) for file, model in layout.renames)
    return KeyMap(f"{name}, {layout.name}", (*renames, (newline, "arrange.image_newline")), layout.elsewhere)


LLAVA_NEXT_HUB = tiled(HUB, "image_newline")
LLAVA_NEXT_LAYOUTS = (
    LLAVA_NEXT_HUB,
    tiled(FILES_5, "image_newline"),
    *(tiled(layout, "model.image_newline") for layout in (RUNTIME_4_52, RUNTIME_5)),
)
"""As transformers has written it."""


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


def read_config(folder: Path, values: Mapping[str, Any]) -> LMMConfig:
    """Return the model of a folder, its image processing included.

    Raises:
        LmmError: as :func:`llava_next_from_hf` and :func:`read_tile_preprocess`.
    """
    config = llava_next_from_hf(values)
    return replace(config, preprocess=read_tile_preprocess(folder, config.encoder))


def llava_next_to_hf(config: LMMConfig, *, image_token: int) -> dict[str, Any]:
    """Return a ``LlavaNextConfig``; the encoder is tiled as ``TiledConfig`` is by default, its tower is one that ``llava_to_hf`` takes."""
    return {
        **llava_to_hf(replace(config, encoder=config.encoder.tower), image_token=image_token),
        "model_type": MODEL_TYPE,
        "architectures": ["LlavaNextForConditionalGeneration"],
        "image_grid_pinpoints": [list(entry) for entry in config.encoder.pinpoints],
    }


def tile_problems(encoder: TiledConfig, free: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield what of an encoder's tiles a model of transformers has no setting for, those named ``free`` aside."""
    fixed = {f.name: f.default for f in fields(TiledConfig) if f.name not in ("tower", "pinpoints", *free)}
    for name, expected in fixed.items():
        if getattr(encoder, name) != expected:
            yield f"tiles with {name}={getattr(encoder, name)!r} (expected {expected!r})"


def next_problems(model: Any) -> Iterator[str]:
    """Yield what of a model with tiles LLaVA-NeXT has no place for, decoder, reducers and hooks aside."""
    yield from tile_problems(model.encoder.config)
    yield from problems(model, model.encoder.tower)


def read_tile_preprocess(folder: Path, encoder: TiledConfig, pinpoints: Any = LLAVA_NEXT_RESOLUTIONS) -> TilePreprocess | None:
    """Return the preprocessing that a folder's processor config describes, None when there is none.

    Args:
        folder: of the model.
        encoder: of ``config.json``.
        pinpoints: what the processor's class has where the file leaves them out.

    Raises:
        LmmError: steps that are not the model's, or other resolutions than those of ``config.json``.
    """
    path, values = image_processor(folder)
    if not values:
        return None
    tower = ImagePreprocess.from_hf_processor_config({**values, "do_pad": False}, patch_px=encoder.tower.patch)
    found = tuple(tuple(entry) for entry in values.get("image_grid_pinpoints") or pinpoints)
    if found != encoder.pinpoints or tower.size_px != encoder.tower.image_size:
        raise LmmError(
            f"{path} cuts pictures into tiles of {tower.size_px} px at {found}, config.json says tiles of {encoder.tower.image_size} px at "
            f"{encoder.pinpoints}: make the two files agree"
        )
    return encoder.preprocess_of(tower)


LLAVA_NEXT = of_transformers(
    MODEL_TYPE,
    config=read_config,
    layouts=(*LLAVA_NEXT_LAYOUTS, NATIVE),
    processor=processor_values,
    holds=lambda model: type(model.encoder) is Tiled,
    writer=Writer(
        "LLaVA",
        next_problems,
        lambda model, config, image_token: llava_next_to_hf(config, image_token=image_token),
        lambda folder, model, config: write_processor(folder, config, "LlavaNextProcessor"),
        LLAVA_NEXT_HUB,
    ),
)
