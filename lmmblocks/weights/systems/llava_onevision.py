"""LLaVA-OneVision of transformers (``llava_onevision``): SigLIP that sees tiles, a two-layer MLP, Qwen2.

A LLaVA-NeXT with many more ways to cut a picture, of which one of more rows than nine tiles have is made smaller (``anyres_max_9``). Each image is
cut into tiles, as transformers' processor does with a flat list of images; where it is given the images of one prompt as a list of their own and
there are several, it shows each of them whole and padded instead, which is not done here. Videos are not read.
Source: Li et al., arXiv 2408.03326; ``configuration_llava_onevision.py``, ``modeling_llava_onevision.py``, ``processing_llava_onevision.py`` and
``image_processing_pil_llava_onevision.py`` of transformers 5.24.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...chat import IMAGE_MARKER
from ...config import LMMConfig
from ...encoders.tiled import Tiled, TiledConfig
from ...images.fit import with_fit
from ...images.tiles import Resolution
from ...spec import LmmError
from ..files.folder import write_json
from ..files.maps import FILES_5, HUB, NATIVE, RUNTIME_4_52, RUNTIME_5
from ..parts.hf_encoders import select_strategy
from ..parts.hf_values import Values, section
from .llava_hf import llava_from_hf, llava_to_hf, problems
from .llava_next import read_tile_preprocess, tile_problems, tiled
from .of_transformers import Writer, of_transformers

MODEL_TYPE = "llava_onevision"
TEMPLATE = "qwen2"
VIDEO_MARKER = "<video>"
_SIDES = tuple(range(384, 2305, 384))
PINPOINTS: tuple[Resolution, ...] = tuple((height, width) for height in _SIDES for width in _SIDES)
"""``image_grid_pinpoints`` where a file leaves them out: every grid of up to 6 by 6 tiles of 384 px."""

_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "vision_use_head": False,
}
"""The tower of a ``LlavaOnevisionConfig`` without a ``vision_config``."""

_HUB = tiled(HUB, "image_newline", "LLaVA-OneVision")
LAYOUTS = (
    _HUB,
    tiled(FILES_5, "image_newline", "LLaVA-OneVision"),
    *(tiled(layout, "model.image_newline", "LLaVA-OneVision") for layout in (RUNTIME_4_52, RUNTIME_5)),
    NATIVE,
)
"""As transformers has written it."""


def onevision_from_hf(values: Values) -> LMMConfig:
    """Return the model that a ``LlavaOnevisionConfig`` describes, with Qwen2's template, which the file doesn't know.

    Raises:
        LmmError: a model that the native blocks can't compute; all reasons are listed.
    """
    vision = section(values, "vision_config")
    defaults = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    parts = {
        "model_type": "llava",
        "vision_config": {"model_type": "siglip_vision_model", **vision} if vision else _VISION,
        "text_config": {"model_type": "qwen2", **section(values, "text_config")},
    }
    config = llava_from_hf({**defaults, **values, **parts})
    pinpoints = tuple(tuple(entry) for entry in values.get("image_grid_pinpoints") or PINPOINTS)
    encoder = TiledConfig(config.encoder, pinpoints, most_tiles=_most_tiles(values.get("vision_aspect_ratio", "anyres_max_9")))
    return replace(config, encoder=encoder, template=TEMPLATE, tokenize_mode="pieces", max_length=None)


def _most_tiles(aspect: Any) -> int:
    found = re.fullmatch(r"anyres_max_([1-9]\d*)", str(aspect))
    if found is None:
        raise LmmError(f"config.json: vision_aspect_ratio={aspect!r}, expected 'anyres_max_9' or another number of tiles after 'anyres_max_'")
    return int(found[1])


def read_config(folder: Path, values: Values) -> LMMConfig:
    """Return the model of a folder, its image processing included.

    Raises:
        LmmError: as :func:`onevision_from_hf`, or pictures cut in another way than ``config.json`` says.
    """
    config = onevision_from_hf(values)
    return replace(config, preprocess=read_tile_preprocess(folder, config.encoder, PINPOINTS))


def onevision_to_hf(model: Any, config: LMMConfig, image_token: int) -> dict[str, Any]:
    """Return a ``LlavaOnevisionConfig``; arguments as of ``Writer.config``. No token of a text is a video's: ours has none."""
    known = {} if model.tokenizer is None else model.tokenizer.get_added_vocab()
    return {
        **llava_to_hf(replace(config, encoder=config.encoder.tower), image_token=image_token),
        "model_type": MODEL_TYPE,
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "image_grid_pinpoints": [list(entry) for entry in config.encoder.pinpoints],
        "vision_aspect_ratio": _aspect(config),
        "video_token_index": known.get(VIDEO_MARKER, config.decoder.vocab),
    }


def onevision_problems(model: Any) -> Iterator[str]:
    """Yield what of a model with tiles LLaVA-OneVision has no place for, decoder, reducers and hooks aside."""
    yield from tile_problems(model.encoder.config, free=("most_tiles",))
    yield from problems(model, model.encoder.tower)


def processor_values(config: LMMConfig) -> dict[str, Any]:
    """Return what ``processor_config.json`` says about a model."""
    tower = config.encoder.tower
    rows = (tower.image_size // tower.patch) ** 2
    return {"num_image_tokens": rows, "vision_feature_select_strategy": select_strategy(tower), "vision_aspect_ratio": _aspect(config)}


def _aspect(config: LMMConfig) -> str:
    return f"anyres_max_{config.encoder.most_tiles}"


def write_processor(folder: Path, model: Any, config: LMMConfig) -> None:
    """Write what ``AutoProcessor`` reads beside the tokenizer; its processor wants one for videos too."""
    assert config.preprocess is not None
    kind = {"processor_class": "LlavaOnevisionProcessor"}
    square = with_fit(config.preprocess.tower, "squash").to_hf_processor_config()
    tiles = {"do_pad": True, "image_grid_pinpoints": [list(entry) for entry in config.preprocess.resolutions]}
    write_json(folder / "preprocessor_config.json", {**square, **tiles, "image_processor_type": "LlavaOnevisionImageProcessor", **kind})
    frames = {key: value for key, value in square.items() if key != "image_processor_type"}
    write_json(folder / "video_preprocessor_config.json", {**frames, "video_processor_type": "LlavaOnevisionVideoProcessor", **kind})
    tokens = {"image_token": IMAGE_MARKER, "video_token": VIDEO_MARKER}
    write_json(folder / "processor_config.json", {**kind, **tokens, **processor_values(config)})


LLAVA_ONEVISION = of_transformers(
    MODEL_TYPE,
    config=read_config,
    layouts=LAYOUTS,
    processor=processor_values,
    holds=lambda model: type(model.encoder) is Tiled and model.encoder.config.most_tiles is not None,
    writer=Writer("LLaVA-OneVision", onevision_problems, onevision_to_hf, write_processor, _HUB),
    templates=(TEMPLATE,),
    whose="LLaVA-OneVision's",
)
