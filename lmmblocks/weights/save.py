"""A whole model to a folder: ``native`` (any blocks), ``hf`` (also loads as ``LlavaForConditionalGeneration``, with an encoder of tiles as
``LlavaNextForConditionalGeneration``, with an instruction-reading Q-Former as ``InstructBlipForConditionalGeneration``; see ``hf_systems.py``),
``llava`` (also loads with the original LLaVA's code; see ``save_llava.py``), or ``qwen_vl`` (also loads with the original Qwen-VL's code and in vLLM;
see ``systems/qwen_vl.py``).

The first two hold ``lmmblocks.json`` (everything ``load`` needs), safetensors under the hub's names, the image processor's config and the
tokenizer. ``hf`` adds the configs of transformers and an image token, because transformers marks image rows with an id of the table:

- the tokenizer's ``<image>``, if it has one;
- else the first id behind the tokenizer's own, if the table has a row to spare there: nothing else changes;
- else a row is added to table and head in the file: the mean of the others. Its logit is the mean logit, so it is never the largest and its
  probability is at most ``1 / (V + 1)``. ``load`` leaves the row out again, and the tokenizer without it lies in ``lmmblocks_tokenizer/``.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..chat import IMAGE_MARKER, template_setting, write_tokenizer
from ..compose.checks import more_ids
from ..compose.current_config import current_config
from ..compose.dtypes import check_dtype
from ..compose.vocabulary import ids_needed
from ..config import LMMConfig
from ..images.kinds import preprocess_to_dict
from ..lmm import LMM
from ..spec import LmmError, closest
from .chat_template import with_chat_template
from .files.folder import SHARD_BYTES, replaced_folder, write_json, write_weights
from .files.tensors import CONFIG
from .generation import token_ids, write_generation_config
from .load import NATIVE_CONFIG, OWN_TOKENIZER, TABLES
from .read_back import check_weights, same, skeleton_of
from .systems.instructblip import with_tokenizer_inside
from .systems.llava_original_save import write_llava
from .systems.qwen_vl import write_qwen_vl
from .systems.written import system_of


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
        **options: of the format; ``llava`` has ``include_vision`` and ``vision_tower``, see ``save_llava.py``.

    Returns:
        The folder that was written, with ``~`` replaced.

    Raises:
        LmmError: unknown format, blocks that transformers' models don't have, no config, a model that ``load`` could not give back from the
            files (each difference is listed), or a folder that holds something else.
    """
    if format not in FORMATS:
        raise LmmError(
            f"unknown format {format!r}{closest(str(format), FORMATS)}; known: {', '.join(FORMATS)}"
        )
    check_dtype(dtype)
    known = [name for name, p in inspect.signature(FORMATS[format]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    unknown = [f"{name!r}{closest(name, known)}" for name in options if name not in known]
    if unknown:
        raise LmmError(f"format {format!r} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
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
        state = FORMATS[format](model, config, state, folder, dtype, Path(path).expanduser().absolute(), **options)
        skeleton = skeleton_of(folder, model)
        write_weights(folder, state, dtype=dtype, shard_bytes=shard_bytes)
        check_weights(folder, skeleton)
    return Path(path).expanduser()


def _config_to_write(model: LMM) -> LMMConfig:
    """Return the config of the model as it is now; its weights come from the folder from now on."""
    if model.config is None:
        raise LmmError(
            "the model was composed without a config, which saving needs: pass config=LMMConfig(...) to LMM(...)"
        )
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


def _native(
    model: LMM, config: LMMConfig, state: dict[str, Tensor], folder: Path, dtype: torch.dtype | None, target: Path
) -> dict[str, Tensor]:
    if model.tokenizer is not None:
        write_tokenizer(with_chat_template(model.tokenizer, model), folder)
    return state


def _hf(
    model: LMM, config: LMMConfig, state: dict[str, Tensor], folder: Path, dtype: torch.dtype | None, target: Path
) -> dict[str, Tensor]:
    system = system_of(model)
    system.refuse_others(model)
    tokenizer, image_token = _with_image_token(model)
    vocab = max(config.decoder.vocab, image_token + 1)
    stored = replace(config, decoder=replace(config.decoder, vocab=vocab))
    name = str(dtype or model.decoder.table.dtype).removeprefix("torch.")
    ids = token_ids(model)
    values = system.config(model, stored, image_token)
    values["text_config"] |= {key: value for key, value in ids.items() if key != "pad_token_id"}
    write_json(folder / CONFIG, {**values, "pad_token_id": ids["pad_token_id"], "torch_dtype": name})
    write_generation_config(folder, model)
    system.write_processor(folder, model, config)
    if tokenizer is not None:
        write_tokenizer(with_chat_template(tokenizer, model, images_apart=system.images_apart), folder)
    if vocab > config.decoder.vocab and tokenizer is not None:
        write_tokenizer(model.tokenizer, folder / OWN_TOKENIZER)
    state = {key: _with_mean_rows(value, vocab) if key in TABLES else value for key, value in state.items()}
    return {system.layout.to_file(key) or key: value for key, value in state.items()}


FORMATS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "hf": _hf,
    "llava": write_llava,
    "qwen_vl": write_qwen_vl,
    "native": _native,
}
"""Name -> what writes the files beside the weights and returns the weights as that format has them."""


def _with_image_token(model: LMM) -> tuple[Any, int]:
    """Return a tokenizer that knows ``<image>`` (None without a tokenizer), and its id; the model's own is left as it is."""
    if model.tokenizer is None:
        return None, model.decoder.vocab
    if IMAGE_MARKER in model.tokenizer.get_added_vocab():
        return model.tokenizer, model.tokenizer.get_added_vocab()[IMAGE_MARKER]
    tokenizer = copy.deepcopy(model.tokenizer)  # one that has it as an ordinary word wouldn't find it inside a text
    tokenizer.add_tokens(IMAGE_MARKER, special_tokens=True)
    return tokenizer, tokenizer.get_vocab()[IMAGE_MARKER]


def _with_mean_rows(table_VD: Tensor, rows: int) -> Tensor:
    """Append the mean row until the table has ``rows`` rows."""
    missing = rows - table_VD.shape[0]
    if not missing:
        return table_VD
    mean_1D = table_VD.detach().float().mean(0, keepdim=True).to(table_VD.dtype)
    return torch.cat([table_VD.detach(), mean_1D.expand(missing, -1)])
