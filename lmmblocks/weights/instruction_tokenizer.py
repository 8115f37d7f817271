"""The tokenizer that a projector reads instructions with, where it lies inside the folder of its model.

``lmmblocks.json`` calls it by the name of its folder there, so that it moves with the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..chat import write_tokenizer
from ..chat.load import has_tokenizer, load_tokenizer
from ..config import Block, LMMConfig
from ..projectors import InstructQFormer
from ..spec import LmmError

QFORMER_TOKENIZER = "qformer_tokenizer"
"""Folder of the instruction's tokenizer inside a model's; also what ``lmmblocks.json`` calls it there."""


def with_tokenizer_inside(model: Any, config: LMMConfig, folder: Path) -> LMMConfig:
    """Copy the instruction's tokenizer into a model's folder when it lies in one of its own; a hub id stays what it is.

    Returns:
        The config with the tokenizer's new place in it.
    """
    source = model.projector.tokenizer if isinstance(model.projector, InstructQFormer) else None
    if source is None or not Path(source).expanduser().is_dir():
        return config
    write_tokenizer(load_tokenizer(source), folder / QFORMER_TOKENIZER)
    return with_tokenizer_at(config, QFORMER_TOKENIZER)


def with_tokenizer_found(config: LMMConfig, folder: Path) -> LMMConfig:
    """Return the config of a model's folder with the whole path of the instruction's tokenizer, where that lies inside.

    Raises:
        LmmError: the folder lacks it.
    """
    if config.projector.options.get("tokenizer") != QFORMER_TOKENIZER:
        return config
    if not has_tokenizer(folder / QFORMER_TOKENIZER):
        raise LmmError(f"{folder} holds no {QFORMER_TOKENIZER}/, which its Q-Former reads the instruction with: copy the whole folder again")
    return with_tokenizer_at(config, str(folder / QFORMER_TOKENIZER))


def with_tokenizer_at(config: LMMConfig, place: str) -> LMMConfig:
    """Return the config with the instruction's tokenizer in another place."""
    options: Mapping[str, Any] = {**config.projector.options, "tokenizer": place}
    return replace(config, projector=Block(config.projector.type, options))
