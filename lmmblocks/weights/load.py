"""A whole model from a folder or a hub id: everything it needs is in the files, or where they say."""

from __future__ import annotations

import os

import torch

from ..assemble import build
from ..lmm import LMM
from ..spec import LmmError
from .buffers import compute_buffers, copy_buffers
from .checkpoint import NATIVE_CONFIG, OWN_TOKENIZER, open_checkpoint
from .fill import read_parameters
from .maps import NATIVE
from .sources import load_tokenizer

__all__ = ["NATIVE_CONFIG", "OWN_TOKENIZER", "TABLES", "load"]

TABLES = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
"""What has one row per token id."""


def load(
    path_or_id: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    vision_tower: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> LMM:
    """Read a model of any layout, told apart by content: ours, those of transformers, and the original LLaVA's (full checkpoints,
    a projector or a LoRA adapter over a base).

    A LLaVA of others doesn't say how it was talked to: it gets LLaVA-1.5's template, token ids and length. Its image processing
    is followed; hub conversions crop where the original pads (``collate(..., fit="pad")``). An original checkpoint may hold its vision
    tower or only name it (``mm_vision_tower``); weights inside are used, which the original's own code does only for
    ``unfreeze_mm_vision_tower``.

    Args:
        path_or_id: folder or hub id.
        base: what a projector or a LoRA adapter lies over, a language model or a LLaVA; None = what its config names.
        vision_tower: folder or hub id of an original checkpoint's tower, instead of the one it names.
        dtype: of the weights; None = as stored. The parts of an original checkpoint all get the language model's.
        device: where they go.

    Returns:
        The model, in eval mode.

    Raises:
        LmmError: nothing there, a model that the blocks can't compute, files that are damaged or don't fit their config.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise LmmError(f"dtype={dtype!r}: expected a floating-point torch dtype such as torch.bfloat16, or None")
    checkpoint = open_checkpoint(path_or_id, base=base, vision_tower=vision_tower)
    tokenizer = None if checkpoint.tokenizer is None else load_tokenizer(checkpoint.tokenizer)
    model = build(checkpoint.config, tokenizer=tokenizer, weights="random", device="meta")
    rows = {} if checkpoint.stored_vocab is None else {name: checkpoint.stored_vocab for name in TABLES}
    files = checkpoint.weights(set(model.state_dict()), dtype)
    state = read_parameters(files, (NATIVE,), model, dtype=dtype, device=device, stored_rows=rows)
    model.load_state_dict(state, assign=True)
    for part, config in ((model.encoder, checkpoint.config.encoder), (model.decoder, checkpoint.config.decoder)):
        compute_buffers(part, config.build, device)
    # What connects them is made for both of them together; hardly any connector has such buffers.
    copy_buffers(model, lambda: build(checkpoint.config, weights="random"), device)
    return model.eval()
