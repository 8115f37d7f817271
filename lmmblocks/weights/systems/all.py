"""Every system that is known: the one list that a new released model is added to."""

from __future__ import annotations

import os
from pathlib import Path

from ...files.locate import locate
from ...spec import LmmError
from ..files.maps import LLAMA_LAYOUTS, part
from .blip2 import BLIP_2
from .idefics import IDEFICS
from .identify import identify
from .instructblip import INSTRUCTBLIP
from .llava_hf import LLAVA
from .llava_next import LLAVA_NEXT
from .llava_onevision import LLAVA_ONEVISION
from .llava_original import LLAVA_ORIGINAL
from .llava_over_base import LORA, PROJECTOR
from .native import native
from .qwen_vl import QWEN_VL
from .system import ModelFolder, Source, System

RELEASED: tuple[System, ...] = (LLAVA, LLAVA_NEXT, LLAVA_ONEVISION, INSTRUCTBLIP, IDEFICS, BLIP_2, QWEN_VL)
"""Models with a ``config.json`` as transformers has one. A model of ours is written as the last that holds it: LLaVA
holds what no other does, or says why it can't."""

SYSTEMS: tuple[System, ...] = (LORA, PROJECTOR, LLAVA_ORIGINAL, *RELEASED, native(RELEASED))
"""What a folder may be, in the order in which it is looked for: what lies over a base, then whole models, then any of our own."""

DECODER_LAYOUTS = (
    *LLAMA_LAYOUTS,
    *(part(layout, "language_model.") for system in (*RELEASED, LLAVA_ORIGINAL) for layout in system.layouts if layout.name != "lmmblocks"),
)
"""How files name the tensors of a decoder, alone or inside of a released model; names in the model are those of the decoder alone."""


def folder_of(path: Path, *, base: Source = None, vision_tower: Source = None, download: bool = True) -> ModelFolder:
    """Return a folder with what it may hold; see ``ModelFolder``."""
    return ModelFolder(path, SYSTEMS, base, vision_tower, download)


def open_model(path_or_id: str | os.PathLike[str], *, base: Source = None, vision_tower: Source = None) -> tuple[ModelFolder, System]:
    """Find a model and say what it is; see :func:`lmmblocks.load` for the arguments.

    Raises:
        LmmError: nothing there, another kind of folder, or a base for a model that is whole.
    """
    folder = folder_of(locate(path_or_id), base=base, vision_tower=vision_tower)
    system = identify(folder)
    if base is not None and not system.over_base:
        raise LmmError(f"{folder.path} is a whole model ({system.name}): leave base={os.fspath(base)!r} out")
    return folder, system
