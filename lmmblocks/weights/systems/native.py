"""Our own folders: ``lmmblocks.json`` and weights under the names of the model, with any encoder, projector and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...chat import write_tokenizer
from ...config import LMMConfig
from ...files.foreign import file_kind
from ...spec import LmmError
from ..chat_template import with_chat_template
from ..files.maps import NATIVE as NATIVE_LAYOUT
from ..files.tensors import CONFIG
from ..instruction_tokenizer import with_tokenizer_found
from .identify import other_type
from .system import NATIVE_CONFIG, ModelFolder, System

TITLE = "lmmblocks"


def native(released: Sequence[System]) -> System:
    """Return the system of our own folders, whose weights may also have the names of a released model."""
    layouts = tuple(layout for system in released for layout in system.layouts)
    return System(
        name=TITLE,
        reads=lambda folder: folder.says_itself,
        config=own_config,
        layouts=(*dict.fromkeys((*layouts, NATIVE_LAYOUT)),),
        title=lambda folder: TITLE,
        stored_vocab=_no_other_config,
        format="native",
        holds=lambda model: True,
        write=write_native,
    )


def own_config(folder: ModelFolder) -> LMMConfig:
    """Return what ``lmmblocks.json`` describes.

    Raises:
        LmmError: it can't be read, or a file that it names is not inside.
    """
    path = folder.path / NATIVE_CONFIG
    try:
        return with_tokenizer_found(LMMConfig.from_json(path.read_text(encoding="utf-8")), folder.path)
    except (LmmError, UnicodeDecodeError) as error:
        kind = file_kind(path)
        raise LmmError(f"{path} is {kind}" if kind else f"{path}: {error}") from error


def _no_other_config(folder: ModelFolder) -> None:
    """Refuse a ``config.json`` beside ``lmmblocks.json`` that no released model has: nobody knows what rows its table counts."""
    if (folder.path / CONFIG).is_file():
        raise LmmError(other_type(folder))


def write_native(model: Any, config: LMMConfig, state: dict[str, Tensor], folder: Path, dtype: torch.dtype | None, target: Path) -> dict[str, Tensor]:
    """Write the tokenizer; the weights keep their names."""
    if model.tokenizer is not None:
        write_tokenizer(with_chat_template(model.tokenizer, model), folder)
    return state
