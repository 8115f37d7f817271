"""The original LLaVA's layout: what ``load_pretrained_model`` of haotian-liu/LLaVA reads (at c121f04; the folder's name must hold "llava").

Its names, its ``config.json``, the tokenizer (that code wants ``tokenizer.model``, which is copied where the tokenizer came with one), and
``lmmblocks.json`` for what its config can't say. Where the vision tower is:

- its name goes into ``mm_vision_tower``: the one given, else the one the model was built from, else the catalogue's of the same shape;
- a tower without a name is written to ``vision_tower/`` inside, and its absolute path is the name (``lmmblocks.load`` also finds it after
  the folder was moved);
- ``include_vision`` puts its weights into the checkpoint as well and sets ``unfreeze_mm_vision_tower``, without which the original's code
  leaves them unread. Without, the checkpoint is as the released ones are: the tower comes from where ``mm_vision_tower`` says.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...chat import write_tokenizer
from ...config import LMMConfig
from ...encoders.catalogue import ENCODERS
from ...encoders.clip import CLIPConfig
from ...images.fit import with_fit
from ...lmm import LMM
from ...spec import LmmError
from ..chat_template import with_chat_template
from ..exact_types import preprocess_problems
from ..files.folder import write_json, write_weights
from ..files.tensors import CONFIG
from ..generation import token_ids, write_generation_config
from ..parts.hf_decoders import decoder_to_hf
from ..parts.hf_encoders import encoder_to_hf
from .llava_original_config import original_from_config
from .llava_original_names import ORIGINAL
from .system import NATIVE_CONFIG

TOWER_FOLDER = "vision_tower"
_TOWER_PREFIX = "vision_tower."
_HUB_OWNERS = ("openai/", "laion/")  # the names that the original's code takes beside paths (multimodal_encoder/builder.py:8)


def write_llava(
    model: LMM,
    config: LMMConfig,
    state: dict[str, Tensor],
    folder: Path,
    dtype: torch.dtype | None,
    target: Path,
    *,
    include_vision: bool = True,
    vision_tower: str | os.PathLike[str] | None = None,
) -> dict[str, Tensor]:
    """Write the files beside the weights and return the weights under the original's names.

    Args:
        model: a CLIP, a linear or MLP projector with biases, a Llama or Mistral.
        config: the model's, as it is saved.
        state: its weights.
        folder: where to write.
        dtype: of the weights in the file; None = as they are.
        target: the name that ``folder`` will have.
        include_vision: put the tower's weights into the checkpoint.
        vision_tower: what ``mm_vision_tower`` shall say: a hub id, or a folder that the reader will have.

    Raises:
        LmmError: blocks that the original's code doesn't have; all are listed.
    """
    name = os.fspath(vision_tower) if vision_tower is not None else _known_name(model, config, include_vision)
    own = name is None
    tower = str(target / TOWER_FOLDER) if own else str(name)
    values = original_from_config(config, _decoder_values(config), tower=tower, tower_inside=include_vision)
    if own:
        _write_tower(config, state, folder / TOWER_FOLDER, dtype)
    dtype_name = str(dtype or model.decoder.table.dtype).removeprefix("torch.")
    write_json(folder / CONFIG, {**values, **token_ids(model), "torch_dtype": dtype_name})
    write_generation_config(folder, model)
    source = None if include_vision else TOWER_FOLDER if own else tower
    (folder / NATIVE_CONFIG).write_text(replace(config, encoder_source=source).to_json(), encoding="utf-8")
    _write_tokenizer(None if model.tokenizer is None else with_chat_template(model.tokenizer, model), folder)
    kept = {key: value for key, value in state.items() if include_vision or not key.startswith(_TOWER_PREFIX)}
    return {str(ORIGINAL.to_file(key)): value for key, value in kept.items()}


def _decoder_values(config: LMMConfig) -> dict[str, Any]:
    try:
        return decoder_to_hf(config.decoder)
    except (LmmError, AttributeError, TypeError) as error:
        raise LmmError(f"the original LLaVA has no place for decoder {type(config.decoder).__name__!r}: save with format='native'") from error


def _known_name(model: LMM, config: LMMConfig, include_vision: bool) -> str | None:
    """Return a hub id under which the original's code finds the tower's shape, image processor and, where these are not included, weights."""
    encoder = config.encoder
    if not isinstance(encoder, CLIPConfig):
        return None
    known = not list(preprocess_problems(config.preprocess))
    plain = config.preprocess is None or known and with_fit(config.preprocess, "pad") == with_fit(encoder.default_preprocess(), "pad")
    source = str(model.config.encoder_source) if model.config is not None else ""
    untouched = getattr(model.encoder, "frozen", False)  # a stage that trains the tower takes the source out of the config
    if plain and (untouched or include_vision) and source.startswith(_HUB_OWNERS) and not Path(source).exists():
        return source
    same = [name for shape, name in ENCODERS.values() if replace(shape, select=encoder.select) == encoder]
    return same[0] if same and plain and include_vision else None


def _write_tower(config: LMMConfig, state: dict[str, Tensor], folder: Path, dtype: torch.dtype | None) -> None:
    """Write the tower as ``CLIPVisionModel`` and ``CLIPImageProcessor`` read it; the latter only knows the crop."""
    folder.mkdir()
    tensors = {name.removeprefix(_TOWER_PREFIX): value for name, value in state.items() if name.startswith(_TOWER_PREFIX)}
    write_json(folder / CONFIG, {**encoder_to_hf(config.encoder), "architectures": ["CLIPVisionModel"]})
    if config.preprocess is not None:
        write_json(folder / "preprocessor_config.json", with_fit(config.preprocess, "crop").to_hf_processor_config())
    write_weights(folder, tensors, dtype=dtype)


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    if tokenizer is None:
        return
    write_tokenizer(tokenizer, folder)
    sentences = getattr(tokenizer, "vocab_file", None)
    if sentences and Path(sentences).name == "tokenizer.model" and Path(sentences).is_file():
        shutil.copyfile(sentences, folder / "tokenizer.model")
