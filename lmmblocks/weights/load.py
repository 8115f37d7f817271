"""A whole model from a folder or a hub id: everything it needs is in the files, or where they say.

The way of the folder, function by function, for a LLaVA of transformers (files below ``lmmblocks/``). What else a folder may be takes the same way
with the fields of another ``System``, which stand in its file in ``weights/systems/``.

1. ``weights/systems/all.py:open_model``: find it and say what it is

   - ``files/locate.py:locate``: a folder here, or the hub's
   - ``weights/systems/identify.py:identify``: the first system whose ``reads`` says yes

2. ``weights/systems/llava_hf.py:read_config``, the system's ``config``: ``config.json`` and the image processor's config to ours
3. ``weights/files/tensors.py:open_weights``, the system's ``files``: names and shapes of the tensors inside
4. ``chat/load.py:load_tokenizer`` and ``weights/model_chat.py:model_chat``: how it is talked to, as its files say
5. ``builder.py:build``: the model, without memory
6. ``weights/systems/system.py:System.weights``: the tensors under the model's names

   - ``weights/files/overlay.py:renamed``: by the layout that fits best of the system's

7. ``weights/files/fill.py:read_parameters``: names and shapes held against the model's, then tensor by tensor
8. ``weights/files/buffers.py:compute_buffers``: what no file holds
9. ``compose/first_pass.py:check_runs``: one image and one token
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import Any

import torch

from ..builder import build
from ..chat import load_tokenizer
from ..compose.dtypes import check_dtype, name_of
from ..compose.first_pass import check_runs
from ..lmm import LMM
from .chat_files import GENERATION, in_words
from .files.buffers import compute_buffers, copy_buffers
from .files.fill import read_parameters
from .files.maps import NATIVE
from .files.stored_dtypes import by_role, decoder_dtype, mixture, tables_of
from .files.tensors import WeightFiles
from .model_chat import model_chat
from .systems.all import open_model


def load(
    path_or_id: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    vision_tower: str | os.PathLike[str] | None = None,
    template: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> LMM:
    """Read a model of any layout, told apart by content: ours, those of transformers, and the original LLaVA's (full checkpoints,
    a projector or a LoRA adapter over a base).

    A model of others is talked to as its files say (``chat_files.py``): their chat template becomes the model's, one of the library's where
    that gives the same ids, and the tokens they list end an answer. Where they say nothing it gets LLaVA-1.5's template, and always its token
    ids and length. Its image processing is followed; hub conversions crop where the original pads (``model.set_inputs(image_fit="pad")``). An
    original checkpoint may hold its vision tower or only name it (``mm_vision_tower``); weights inside are used, which the original's own code does
    only for ``unfreeze_mm_vision_tower``.

    Args:
        path_or_id: folder or hub id.
        base: what a projector or a LoRA adapter lies over, a language model or a LLaVA; None = what its config names.
        vision_tower: folder or hub id of an original checkpoint's tower, instead of the one it names.
        template: how to talk to it instead: a name, ``auto`` for the tokenizer's own, ``package.module:OBJECT``, or an object with ``render``.
        dtype: of all weights and buffers; None = that in which most of the decoder's weights are stored. Where another part is stored in
            another dtype, a warning says so.
        device: where they go.

    Returns:
        The model, in eval mode.

    Raises:
        LmmError: nothing there, a model that the blocks can't compute, files that are damaged or don't fit their config.
    """
    check_dtype(dtype)
    folder, system = open_model(path_or_id, base=base, vision_tower=vision_tower)
    config, inside, home = system.config(folder), system.files(folder), system.tokenizer(folder)
    tokenizer = None if home is None else load_tokenizer(home)
    chat = model_chat(config, system.chat(folder), tokenizer, template)
    if chat.not_followed:
        warnings.warn(
            f"{GENERATION} of {path_or_id} says {in_words(chat.not_followed)}, which is not computed here: answers are the most likely tokens, or "
            f"drawn as generate(temperature=..., top_p=..., top_k=...) says, and may differ from those of transformers",
            stacklevel=2,
        )
    config = config if chat.tokenize_mode is None else replace(config, tokenize_mode=chat.tokenize_mode)
    for said in system.differences(folder, config, tokenizer):
        warnings.warn(said, stacklevel=2)
    model = build(config, template=chat.template, tokenizer=tokenizer, weights="random", device="meta")
    files, stored = system.weights(folder, inside, set(model.state_dict()), dtype), system.stored_vocab(folder)
    rows = {} if stored is None else dict.fromkeys(tables_of(model), stored)
    dtype = _one_dtype(files) if dtype is None else dtype
    state = read_parameters(files, (NATIVE,), model, dtype=dtype, device=device, stored_rows=rows)
    model.load_state_dict(state, assign=True)
    for part, shape in ((model.vision_tower, config.encoder), (model.language_model, config.decoder)):
        compute_buffers(part, shape.build, device)
    # What connects them is made for both of them together; hardly any connector has such buffers.
    copy_buffers(model, lambda: build(config, weights="random"), device)
    model.to(dtype=dtype).eval()  # what the files don't hold, computed buffers, as build(dtype=...) has it
    check_runs(model)
    return model


def _one_dtype(files: WeightFiles) -> torch.dtype | None:
    """Return the decoder's dtype, which all parts get; say so where some part was stored in another."""
    dtype = decoder_dtype(files)
    others = None if dtype is None else mixture(by_role(files), dtype)
    if dtype is not None and others is not None:
        warnings.warn(
            f"{files.folder} stores its parts in several dtypes ({others}): all are loaded in {name_of(dtype)}, that of most of the decoder's "
            f"weights; load(..., dtype=...) chooses another",
            stacklevel=3,
        )
    return dtype
