"""A whole model to a folder: ``native`` (any blocks), ``hf`` (also loads with transformers: as the last of ``systems/all.py:RELEASED`` that holds
the model, see ``systems/of_transformers.py``), ``llava`` (also loads with the original LLaVA's code; see ``systems/llava_original_save.py``), or
``qwen_vl`` (also loads with the original Qwen-VL's code and in vLLM; see ``systems/qwen_vl.py``).

All hold ``lmmblocks.json`` (everything ``load`` needs), safetensors and the tokenizer.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..chat import template_setting
from ..compose.checks import more_ids
from ..compose.current_config import current_config
from ..compose.dtypes import check_dtype
from ..compose.vocabulary import ids_needed
from ..config import LMMConfig
from ..images.kinds import preprocess_to_dict
from ..lmm import LMM
from ..spec import LmmError, closest, refuse_unknown
from .files.folder import SHARD_BYTES, replaced_folder, write_weights
from .instruction_tokenizer import with_tokenizer_inside
from .read_back import check_weights, same, skeleton_of
from .systems.all import SYSTEMS
from .systems.system import NATIVE_CONFIG

FORMATS = tuple(sorted({system.format for system in SYSTEMS if system.format}, key=lambda name: (name == "native", name)))
"""Names of the formats; each is written by the last system of it that holds the model."""


def save(
    model: LMM,
    path: str | os.PathLike[str],
    *,
    format: str = "hf",
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    **options: Any,
) -> Path:
    """Write a model to a folder, whole or not at all.

    Args:
        model: what to write.
        path: a new folder, an empty one, or one that holds nothing but a model, which is replaced.
        format: ``hf``, ``llava``, ``qwen_vl`` or ``native``.
        dtype: of the weights in the file; None = as they are.
        shard_bytes: largest weight file.
        **options: of the format; ``llava`` has ``include_vision`` and ``vision_tower``, see
            ``llava_original_save.py``.

    Returns:
        The folder that was written, with ``~`` replaced.

    Raises:
        LmmError: unknown format, blocks that transformers' models don't have, no config, a model that ``load`` could not give back from the
            files (each difference is listed), or a folder that holds something else.
    """
    if format not in FORMATS:
        raise LmmError(f"unknown format {format!r}{closest(str(format), FORMATS)}; known: {', '.join(FORMATS)}")
    check_dtype(dtype)
    write = next(system.write for system in reversed(SYSTEMS) if system.format == format and system.holds(model))
    known = [name for name, p in inspect.signature(write).parameters.items() if p.kind is p.KEYWORD_ONLY]
    refuse_unknown(f"format {format!r} has no option", options, known)
    config = _config_to_write(model)
    if format != "native" and config.attention != "causal":
        raise LmmError(
            f"format {format!r} can't say that attention is {config.attention!r}: its readers let image rows see only what is before them, and "
            f"would answer otherwise: save with format='native'"
        )
    state = _state(model)
    with replaced_folder(Path(path)) as folder:
        config = with_tokenizer_inside(model, config, folder)
        (folder / NATIVE_CONFIG).write_text(config.to_json(), encoding="utf-8")
        state = write(model, config, state, folder, dtype, Path(path).expanduser().absolute(), **options)
        skeleton = skeleton_of(folder, model)
        write_weights(folder, state, dtype=dtype, shard_bytes=shard_bytes)
        check_weights(folder, skeleton)
    return Path(path).expanduser()


def _config_to_write(model: LMM) -> LMMConfig:
    """Return the config of the model as it is now; its weights come from the folder from now on."""
    if model.config is None:
        raise LmmError("the model was composed without a config, which saving needs: pass config=LMMConfig(...) to LMM(...)")
    if model.tokenizer is not None and ids_needed(model.tokenizer) > model.decoder.vocab:
        raise LmmError(more_ids(ids_needed(model.tokenizer), model.decoder.vocab))
    for name in ("reducers", "hooks"):
        told, found = len(getattr(model.config, name)), len(getattr(model, name))
        if told != found:
            raise LmmError(
                f"the model has {found} {name}, its config tells of {told}: loading would lose them: pass them to build(..., {name}=[...]), or "
                f"make model.config agree"
            )
    return replace(
        current_config(model) or model.config,
        template=template_setting(model.template, model.config.template),
        preprocess=_preprocess_setting(model),
        encoder_source=None,
        decoder_source=None,
        tokenizer_source=None,
    )


def _preprocess_setting(model: LMM) -> Any:
    """Return the preprocessing to write down; None for one that can't be and that the encoder's config makes by itself."""
    try:
        preprocess_to_dict(model.encoder.preprocess)
    except LmmError:
        assert model.config is not None
        with torch.device("meta"):
            own = model.config.encoder.build().preprocess
        if same(own, model.encoder.preprocess):
            return None
        raise
    return model.encoder.preprocess


def _state(model: LMM) -> dict[str, Tensor]:
    """Return the state dict without the second names of shared parameters (a tied head)."""
    own = dict(model.named_parameters())
    shared = {name for name, _ in model.named_parameters(remove_duplicate=False) if name not in own}
    return {name: value for name, value in model.state_dict().items() if name not in shared}
