"""A whole model from a folder or a hub id: everything it needs is in the files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..assemble import build
from ..config import LMMConfig
from ..lmm import LMM
from ..spec import LmmError
from .files import open_weights, read_json
from .fill import read_parameters
from .hf_config import llava_from_hf
from .maps import MODEL_LAYOUTS
from .sources import CONFIG, has_tokenizer, load_tokenizer, locate, read_preprocess

NATIVE_CONFIG = "lmmblocks.json"
OWN_TOKENIZER = "lmmblocks_tokenizer"
"""Folder of the model's tokenizer where the one beside the weights got an image token that the model's table has no row for."""

TABLES = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
"""What has one row per token id."""


def load(
    path_or_id: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> LMM:
    """Read a model: saved by ``model.save`` or a LLaVA of transformers, told apart by content.

    A LLaVA of transformers doesn't say how it was talked to: it gets LLaVA-1.5's template, token ids and length. Its image processor
    is followed; hub conversions crop where the original pads (``collate(..., fit="pad")``).

    Args:
        path_or_id: folder or hub id.
        dtype: of the weights; None = as stored.
        device: where they go.

    Returns:
        The model, in eval mode.

    Raises:
        LmmError: nothing there, a model that the native blocks can't compute, files that are damaged or don't fit their config.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise LmmError(
            f"dtype={dtype!r}: expected a floating-point torch dtype such as torch.bfloat16, or None"
        )
    folder = locate(path_or_id)
    config, stored_vocab = _read_config(folder)
    model = build(config, tokenizer=_tokenizer(folder), weights="random", device="meta")
    rows = {} if stored_vocab is None else {name: stored_vocab for name in TABLES}
    state = read_parameters(
        open_weights(folder), MODEL_LAYOUTS, model, dtype=dtype, device=device, stored_rows=rows
    )
    model.load_state_dict(state, assign=True)
    _compute_buffers(model, config, device)
    return model.eval()


def _read_config(folder: Path) -> tuple[LMMConfig, int | None]:
    """Return the model's config, and how many token rows the file holds when that is more than the model has."""
    if not (folder / NATIVE_CONFIG).is_file():
        config = _hf_config(folder)
        return replace(config, preprocess=read_preprocess(folder, config.encoder)), None
    try:
        config = LMMConfig.from_json((folder / NATIVE_CONFIG).read_text(encoding="utf-8"))
    except (LmmError, UnicodeDecodeError) as error:
        raise LmmError(f"{folder / NATIVE_CONFIG}: {error}") from error
    return config, _hf_config(folder).decoder.vocab if (folder / CONFIG).is_file() else None


def _hf_config(folder: Path) -> LMMConfig:
    if not (folder / CONFIG).is_file():
        raise LmmError(f"{folder} is no model folder: it holds neither {NATIVE_CONFIG} nor {CONFIG}")
    return llava_from_hf(read_json(folder / CONFIG))


def _tokenizer(folder: Path) -> Any:
    """Return the model's tokenizer, None when the folder holds none (such a model eats ready batches)."""
    own = folder / OWN_TOKENIZER
    folder = own if own.is_dir() else folder
    return load_tokenizer(folder) if has_tokenizer(folder) else None


def _compute_buffers(model: LMM, config: LMMConfig, device: torch.device | str) -> None:
    """Give the buffers that no file holds what their constructors compute; rare enough to build the model a second time for."""
    waiting = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if waiting:
        computed = dict(build(config, weights="random").named_buffers())
        for name in waiting:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = computed[name].to(device)
