"""Pretrained parts of a folder or a hub id: a vision tower, a language model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..decoders.hf_read import is_causal_lm, load_causal_lm
from ..files.locate import locate
from ..images.fit import with_fit
from ..images.preprocess import Fit
from .files.fill import read_parameters
from .files.maps import CLIP_LAYOUTS, LLAMA_LAYOUTS
from .files.tensors import CONFIG, open_weights, read_json
from .parts.encoder_shapes import encoder_shape
from .parts.hf_decoders import decoder_from_hf, knows_decoder
from .parts.hf_encoders import HF_ENCODERS, hf_type
from .parts.other_encoders import other_encoder
from .parts.tower import INSIDE, locate_tower, tower_shape
from .systems.llava_original import TOWER, decoder_values, fit_of, is_original, select_of


def load_encoder(
    path_or_id: str | os.PathLike[str], *, fit: Fit | None = None
) -> tuple[Any, dict[str, Tensor], Any]:
    """Read a vision tower, alone or out of a CLIP, SigLIP or LLaVA checkpoint: CLIP, SigLIP, DINOv2, or a folder of timm's or open_clip's.

    Args:
        path_or_id: folder or hub id.
        fit: how pictures become square; None = as the tower's image processor says. CLIP's only knows ``crop``, so its file doesn't
            say what a LLaVA does: it pads, as LLaVA-1.5 does.

    Returns:
        Its config, its state dict in the dtype of the file, and its preprocessing.

    Raises:
        LmmError: nothing there, another kind of model, or weights that don't fit the config.
    """
    folder = locate(path_or_id)
    other = other_encoder(folder)
    if other is not None:
        state, preprocess = other.read_pretrained()
        return other, state, preprocess if fit is None else with_fit(preprocess, fit)
    values = _config(folder)
    if is_original(values):
        return _load_original_tower(folder, values, fit=fit)
    config, preprocess = encoder_shape(folder, fit=fit)
    with torch.device("meta"):
        skeleton = config.build()
    return config, read_parameters(open_weights(folder), HF_ENCODERS[hf_type(config)].layouts, skeleton), preprocess


def load_decoder(path_or_id: str | os.PathLike[str]) -> tuple[Any, dict[str, Tensor]]:
    """Read a decoder: natively if its family is built in (``hf_families.FAMILIES``), alone or out of a multimodal checkpoint, else through
    transformers, as an ``HFDecoder``.

    Args:
        path_or_id: folder or hub id.

    Returns:
        Its config and its state dict in the dtype of the file; a tied head and its table are the same object.

    Raises:
        LmmError: nothing there, another kind of model, or weights that don't fit the config.
    """
    folder = locate(path_or_id)
    values = _config(folder)
    values = decoder_values(values) if is_original(values) else values
    if not knows_decoder(values) and is_causal_lm(values):
        return load_causal_lm(folder)
    config = decoder_from_hf(values)
    with torch.device("meta"):
        skeleton = config.build()
    return config, read_parameters(open_weights(folder), LLAMA_LAYOUTS, skeleton)


def _load_original_tower(folder: Path, values: Mapping[str, Any], *, fit: Fit | None = None) -> tuple[Any, dict[str, Tensor], Any]:
    """Read the tower of an original checkpoint, as ``load_encoder`` returns it: from inside where it is there, else from where its config says.

    Raises:
        LmmError: no such tower, or weights that don't fit its config.
    """
    fit = fit or fit_of(values)
    files = open_weights(folder)
    if not any(name.startswith(INSIDE) for name in files.shapes):
        config, state, preprocess = load_encoder(locate_tower(values[TOWER], folder), fit=fit)
        return replace(config, select=select_of(values)), state, preprocess
    shape = tower_shape(values[TOWER], folder, fit=fit)
    assert shape is not None
    config = replace(shape[0], select=select_of(values))
    with torch.device("meta"):
        skeleton = config.build()
    return config, read_parameters(files, CLIP_LAYOUTS, skeleton), shape[1]


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / CONFIG)
