"""The vision tower that an original LLaVA names in ``mm_vision_tower`` and mostly doesn't hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...encoders.catalogue import ENCODERS
from ...files.locate import locate
from ...images.fit import with_fit
from ...images.preprocess import Fit
from ...spec import LmmError
from ..files.tensors import CONFIG
from .encoder_shapes import encoder_shape

INSIDE = "model.vision_tower."
"""How the names begin when the checkpoint holds the tower."""


def local_tower(name: str | os.PathLike[str], model_folder: Path) -> Path | None:
    """Return the folder of a tower: as it is written, inside the model's folder, or there under its last name (a moved model); None = the hub's."""
    given = Path(name).expanduser()
    for folder in (given, model_folder / given, model_folder / given.name):
        if (folder / CONFIG).is_file():
            return folder
    return None


def tower_shape(
    name: str | os.PathLike[str], model_folder: Path, *, fit: Fit, download: bool = True
) -> tuple[Any, Any] | None:
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
