"""The original LLaVA (haotian-liu/LLaVA): ``config.json`` with ``mm_vision_tower``, the tower inside or where that key says.

What its ``config.json`` means is in ``llava_original_config.py``, how its tensors are called in ``llava_original_names.py``, how it is written in
``llava_original_save.py``; what lies over another model (a projector, an adapter) in ``llava_over_base.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import LMMConfig
from ...images.preprocess import Fit
from ...spec import LmmError
from ..files.fill import read_parameters
from ..files.maps import CLIP_LAYOUTS, part
from ..files.overlay import in_dtype, of_state, overlaid
from ..files.stored_dtypes import decoder_dtype
from ..files.tensors import CONFIG, WeightFiles, open_weights, read_json
from ..parts.hf_decoders import decoder_from_hf
from ..parts.tower import INSIDE, locate_tower, read_tower, tower_shape
from .llava_original_config import (
    DECODER_TYPES,
    TOWER,
    check,
    decoder_values,
    fit_of,
    is_original,
    original_to_config,
    projector_of,
    select_of,
)
from .llava_original_names import ORIGINAL
from .llava_original_save import write_llava
from .native import own_config
from .system import ModelFolder, System

TOWER_LAYOUTS = (*CLIP_LAYOUTS, part(ORIGINAL, "vision_tower."))
_PARTS_BESIDE_THE_TOWER = ("multi_modal_projector", "language_model")


class TowerElsewhere(LmmError):
    """Only the hub knows the tower's shape, and it was not to be asked.

    Attributes:
        decoder: what the file says of the language model.
        projector: and of the connector.
    """

    def __init__(self, message: str, decoder: Any, projector: Any) -> None:
        super().__init__(message)
        self.decoder, self.projector = decoder, projector


def original_config(folder: ModelFolder) -> LMMConfig:
    """Return the model of an original folder: what ``lmmblocks.json`` says where it is there, else the original's keys and the tower's config.

    Raises:
        LmmError: a model that the blocks can't compute, or a tower that is nowhere (without ``download``: not on this machine).
    """
    if folder.says_itself:
        return own_config(folder)
    values = folder.values
    check(values)
    name = str(named_tower(folder))
    shape = tower_shape(name, folder.path, fit=fit_of(values), download=folder.download)
    decoder = decoder_from_hf(decoder_values(values))
    if shape is None:
        raise TowerElsewhere(f"the vision tower {name!r} is not on this machine, so its shape is unknown", decoder, projector_of(values))
    return original_to_config(values, encoder=shape[0], decoder=decoder, preprocess=shape[1])


def named_tower(folder: ModelFolder) -> str | None:
    """Return the tower that a caller or, if they say nothing, ``config.json`` names."""
    name = folder.vision_tower or folder.values.get(TOWER)
    return None if name is None else str(name)


def with_tower(folder: ModelFolder, own: WeightFiles | None, expected: Collection[str], dtype: torch.dtype | None) -> WeightFiles:
    """Put the tower below the weights of a folder that doesn't hold it, and round all parts to one dtype."""
    assert own is not None
    return in_one_dtype(own if any(name.startswith(("vision_tower.", INSIDE)) for name in own.shapes) else overlaid(tower_files(folder), own), dtype)


def tower_files(folder: ModelFolder) -> WeightFiles:
    """Return the weights of the tower that a folder names, under the model's names."""
    tower = locate_tower(str(named_tower(folder)), folder.path)
    _, state, _ = load_tower(tower)
    return of_state(tower, state, "vision_tower.", "vision tower")


def in_one_dtype(files: WeightFiles, dtype: torch.dtype | None) -> WeightFiles:
    """Round all parts to one dtype, as the original does: the one asked for, else the language model's."""
    dtype = dtype or decoder_dtype(files)
    return files if dtype is None else in_dtype(files, dtype)


def load_tower(folder: Path, *, fit: Fit | None = None) -> tuple[Any, dict[str, Tensor], Any]:
    """Read a tower of a folder as ``sources.load_encoder`` returns it: out of an original LLaVA, or as ``read_tower`` does.

    Raises:
        LmmError: no such tower, or weights that don't fit its config.
    """
    values = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return _load_original_tower(folder, values, fit=fit) if is_original(values) else read_tower(folder, fit=fit)


def _load_original_tower(folder: Path, values: Mapping[str, Any], *, fit: Fit | None = None) -> tuple[Any, dict[str, Tensor], Any]:
    """Read the tower of an original checkpoint: from inside where it is there, else from where its config says."""
    fit = fit or fit_of(values)
    files = open_weights(folder)
    if not holds_tower(files):
        config, state, preprocess = load_tower(locate_tower(values[TOWER], folder), fit=fit)
        return replace(config, select=select_of(values)), state, preprocess
    shape = tower_shape(values[TOWER], folder, fit=fit)
    assert shape is not None
    config = replace(shape[0], select=select_of(values))
    with torch.device("meta"):
        skeleton = config.build()
    return config, read_parameters(files, TOWER_LAYOUTS, skeleton), shape[1]


def holds_tower(files: WeightFiles) -> bool:
    """Say whether an original checkpoint holds weights of its vision tower."""
    return any(name.startswith(INSIDE) for name in files.shapes)


def held(files: WeightFiles | None) -> Collection[str] | None:
    """Say which submodules the weights inside are those of; None = all of them."""
    return None if files is not None and holds_tower(files) else _PARTS_BESIDE_THE_TOWER


_TYPES = ", ".join(map(repr, DECODER_TYPES))
LLAVA_ORIGINAL = System(
    name="original LLaVA",
    reads=lambda folder: is_original(folder.values),
    config=original_config,
    layouts=(ORIGINAL,),
    title=lambda folder: "original LLaVA",
    known_by=f"of {_TYPES} with {TOWER!r} beside, the original LLaVA's",
    complete=with_tower,
    held=held,
    named_tower=named_tower,
    format="llava",
    holds=lambda model: True,
    write=write_llava,
)
