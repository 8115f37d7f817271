"""Pretrained parts of a folder or a hub id: a vision tower, a language model."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ..decoders.hf_read import is_causal_lm, load_causal_lm
from ..files.locate import locate
from ..images.preprocess import Fit
from .files.fill import read_parameters
from .files.tensors import CONFIG, open_weights, read_json
from .parts.hf_decoders import decoder_from_hf, knows_decoder
from .systems.all import DECODER_LAYOUTS
from .systems.llava_original import load_tower
from .systems.llava_original_config import decoder_values, is_original


def load_encoder(path_or_id: str | os.PathLike[str], *, fit: Fit | None = None) -> tuple[Any, dict[str, Tensor], Any]:
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
    return load_tower(locate(path_or_id), fit=fit)


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
    values = read_json(folder / CONFIG)
    values = decoder_values(values) if is_original(values) else values
    if not knows_decoder(values) and is_causal_lm(values):
        return load_causal_lm(folder)
    config = decoder_from_hf(values)
    with torch.device("meta"):
        skeleton = config.build()
    return config, read_parameters(open_weights(folder), DECODER_LAYOUTS, skeleton)
