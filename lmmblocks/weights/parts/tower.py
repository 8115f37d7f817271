"""A vision tower of a folder; also the one that an original LLaVA names in ``mm_vision_tower`` and mostly doesn't hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...encoders.catalogue import ENCODERS
from ...files.locate import locate
from ...images.fit import with_fit
from ...images.preprocess import Fit
from ...spec import LmmError
from ..files.fill import read_parameters
from ..files.tensors import CONFIG, open_weights
from .encoder_shapes import encoder_shape
from .hf_encoders import HF_ENCODERS, hf_type
from .other_encoders import other_encoder

INSIDE = "model.vision_tower."
"""How the names begin when the checkpoint holds the tower."""


def local_tower(name: str | os.PathLike[str], model_folder: Path) -> Path | None:
    """Return the folder of a tower: as it is written, inside the model's folder, or there under its last name (a moved model); None = the hub's."""
    given = Path(name).expanduser()
    for folder in (given, model_folder / given, model_folder / given.name):
        if (folder / CONFIG).is_file():
            return folder
    return None


def tower_shape(name: str | os.PathLike[str], model_folder: Path, *, fit: Fit, download: bool = True) -> tuple[Any, Any] | None:
    """Return config and preprocessing of a tower without its weights; hub ids of the catalogue are known without asking the hub.

    Args:
        name: folder or hub id.
        model_folder: where the model lies.
        fit: how pictures become square.
        download: ask the hub where nothing else knows; without, the answer is None then.

    Raises:
        LmmError: no such tower; the message says how to give one.
    """
    folder = local_tower(name, model_folder)
    known = {source: shape for shape, source in ENCODERS.values()}
    if folder is None and str(name) in known:
        shape = known[str(name)]
        return shape, with_fit(shape.default_preprocess(), fit)
    if folder is None and not download:
        return None
    return encoder_shape(folder or locate_tower(name, model_folder, weights=False), fit=fit)


def locate_tower(name: str | os.PathLike[str], model_folder: Path, *, weights: bool = True) -> Path:
    """Return the folder of a tower, from the hub if need be.

    Raises:
        LmmError: nowhere to be found; the message says how to give it.
    """
    folder = local_tower(name, model_folder)
    try:
        return folder or locate(name, weights=weights)
    except LmmError as error:
        raise LmmError(
            f"{model_folder} names the vision tower {str(name)!r} (mm_vision_tower) and does not hold it: {error}\n"
            f"give its folder with load(..., vision_tower=...)"
        ) from error


def read_tower(folder: Path, *, fit: Fit | None = None) -> tuple[Any, dict[str, Tensor], Any]:
    """Read a tower, alone or out of a model of transformers, as ``sources.load_encoder`` returns it.

    Raises:
        LmmError: another kind of model, or weights that don't fit the config.
    """
    other = other_encoder(folder)
    if other is not None:
        state, preprocess = other.read_pretrained()
        return other, state, preprocess if fit is None else with_fit(preprocess, fit)
    config, preprocess = encoder_shape(folder, fit=fit)
    with torch.device("meta"):
        skeleton = config.build()
    return config, read_parameters(open_weights(folder), HF_ENCODERS[hf_type(config)].layouts, skeleton), preprocess
