"""The original LLaVA's ``config.json`` to and from our config.

It is a Llama config with LLaVA's keys beside Llama's. Keys about what was trained (``tune_mm_mlp_adapter``, ``freeze_mm_mlp_adapter``,
``mm_projector_lr``, ...) change nothing that is computed and are left alone; what our blocks can't compute is refused by name. The file
doesn't say how the model was talked to: it gets LLaVA-1.5's template, token ids and length.
Source: ``llava/model/llava_arch.py``, ``multimodal_encoder/clip_encoder.py``, ``multimodal_projector/builder.py`` and ``train/train.py:922`` of
haotian-liu/LLaVA at c121f04.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...config import Block, LMMConfig
from ...encoders.clip import CLIPConfig
from ...images.preprocess import Fit
from ...spec import LmmError
from ...spec.fields import is_whole
from ..exact_types import preprocess_problems

Values = Mapping[str, Any]

TOWER = "mm_vision_tower"
"""The key that only the original layout has."""

DECODER_TYPES = {
    "llava": "llama",
    "llava_llama": "llama",
    "llama": "llama",
    "llava_mistral": "mistral",
    "mistral": "mistral",
    "llava_qwen": "qwen2",
}
"""``model_type`` in the file -> that of the language model (``llava`` until transformers took the name)."""

_MLP = re.compile(r"mlp(\d+)x_gelu")
_FITS: dict[Any, Fit] = {"pad": "pad", "square": "crop", None: "crop"}
_CLS_PATCH = "'cls_patch' keeps the CLS token as one more image row, which no projector here is given"


def is_original(values: Values) -> bool:
    """Say whether a ``config.json`` is of the original layout."""
    return TOWER in values


def decoder_values(values: Values) -> dict[str, Any]:
    """Return the part of the config that describes the language model, as transformers would write it for that model alone.

    Raises:
        LmmError: a language model that the original LLaVA's code has no working class for.
    """
    kind = values.get("model_type")
    if kind not in DECODER_TYPES:
        raise LmmError(f"config.json has {TOWER!r} and model_type {kind!r}: expected one of {', '.join(map(repr, DECODER_TYPES))}")
    return {**values, "model_type": DECODER_TYPES[kind]}


def fit_of(values: Values) -> Fit:
    """Return how pictures become square: ``pad``, or ``crop`` for everything that is not ``pad`` or tiles (``mm_utils.py:166``)."""
    return _FITS[values.get("image_aspect_ratio")]


def select_of(values: Values) -> tuple[int, ...]:
    """Return the hidden state that makes up the features."""
    return (values["mm_vision_select_layer"],)


def check(values: Values) -> None:
    """Refuse what our blocks can't compute.

    Raises:
        LmmError: all reasons, each with its key.
    """
    problems = [f"{key}={values.get(key)!r}: {reason}" for key, wrong, reason in _RULES if wrong(values.get(key))]
    if problems:
        raise LmmError("config.json, original LLaVA: " + "; ".join(problems))


def projector_of(values: Values) -> Block:
    """Return the connector that ``mm_projector_type`` names; the default is one linear layer (``multimodal_projector/builder.py:34``)."""
    kind = values.get("mm_projector_type") or "linear"
    mlp = _MLP.fullmatch(kind)
    return Block("mlp", {"depth": int(mlp[1])}) if mlp else Block(kind)


def original_to_config(values: Values, *, encoder: Any, decoder: Any, preprocess: Any) -> LMMConfig:
    """Return the model a config describes.

    Args:
        values: the file's.
        encoder: config of the tower that ``mm_vision_tower`` names.
        decoder: config of the language model.
        preprocess: of the tower, with the fit of :func:`fit_of`.

    Raises:
        LmmError: see :func:`check`; or a tower that is no CLIP.
    """
    check(values)
    if not isinstance(encoder, CLIPConfig):
        raise LmmError(f"config.json, original LLaVA: {TOWER}={values[TOWER]!r} is a {type(encoder).__name__}, its code runs CLIP towers only")
    length = values.get("tokenizer_model_max_length") or 2048
    return LMMConfig(
        encoder=replace(encoder, select=select_of(values)),
        decoder=decoder,
        projector=projector_of(values),
        template="vicuna_v1",
        tokenize_mode="llava15",
        max_length=min(length, getattr(decoder, "max_positions", length)),
        preprocess=preprocess,
        encoder_source=values[TOWER],
    )


def original_from_config(config: LMMConfig, decoder: Values, *, tower: str, tower_inside: bool) -> dict[str, Any]:
    """Return the file for a model.

    Args:
        config: the model's.
        decoder: the language model's config as transformers writes it.
        tower: what ``mm_vision_tower`` shall say.
        tower_inside: the weights of the tower are in the checkpoint; the original's code then takes them, which it does otherwise not
            (``clip_encoder.py:19``).

    Raises:
        LmmError: blocks that the original's code doesn't have; all are listed.
    """
    problems = list(_not_original(config, decoder))
    if problems:
        raise LmmError(f"the original LLaVA has no place for {'; '.join(problems)}: save with format='native'")
    family = {"llama": ("llava_llama", "LlavaLlamaForCausalLM"), "mistral": ("llava_mistral", "LlavaMistralForCausalLM")}
    model_type, architecture = family[decoder["model_type"]]
    fit = config.preprocess.fit if config.preprocess is not None else "pad"
    return {
        **decoder,
        "model_type": model_type,
        "architectures": [architecture],
        TOWER: tower,
        "mm_hidden_size": config.encoder.dim,
        "mm_projector_type": _projector_type(config.projector),
        "mm_vision_select_layer": config.encoder.select[0],
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "image_aspect_ratio": "pad" if fit == "pad" else "square",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": tower_inside,
        "mm_resampler_type": None,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": config.max_length or decoder.get("max_position_embeddings", 2048),
    }


def _projector_type(projector: Block) -> str:
    return f"mlp{projector.options.get('depth', 2)}x_gelu" if projector.type == "mlp" else projector.type


def _not_original(config: LMMConfig, decoder: Values) -> list[str]:
    problems = list(preprocess_problems(config.preprocess))
    if type(config.encoder) is not CLIPConfig:
        problems.append(f"encoder {type(config.encoder).__name__!r} (expected 'CLIPConfig')")
    elif len(config.encoder.select) != 1:
        problems.append(f"features of several layers {config.encoder.select} (expected one)")
    if config.projector.type not in ("linear", "mlp", "identity"):
        problems.append(f"projector {config.projector.type!r} (expected 'linear', 'mlp' or 'identity')")
    if getattr(config.preprocess, "fit", "pad") not in ("pad", "crop"):
        problems.append(f"pictures that are made square by fit={config.preprocess.fit!r} (expected 'pad' or 'crop')")
    if config.reducers or config.hooks:
        problems.append(f"reducers and hooks {[block.type for block in (*config.reducers, *config.hooks)]} (expected none)")
    if not config.projector.options.get("bias", True):
        problems.append("a projector without biases")
    if decoder.get("model_type") not in ("llama", "mistral"):
        problems.append(f"decoder {decoder.get('model_type')!r} (expected a Llama or a Mistral)")
    return problems


def _known_projector(kind: Any) -> bool:
    return kind in (None, "linear", "identity") or (isinstance(kind, str) and _MLP.fullmatch(kind) is not None and int(kind[3:-6]) > 0)


_RULES = (
    ("mm_vision_select_layer", lambda v: not is_whole(v), "expected the number of one hidden state, such as -2"),
    ("mm_vision_select_feature", lambda v: v == "cls_patch", f"expected 'patch'; {_CLS_PATCH}"),
    ("mm_vision_select_feature", lambda v: v not in (None, "patch", "cls_patch"), "expected 'patch'"),
    ("mm_projector_type", lambda v: not _known_projector(v), "expected 'linear', 'identity' or 'mlpNx_gelu'"),
    ("mm_use_im_start_end", bool, "expected false; such a model wants <im_start> and <im_end> around each image, which no template here writes"),
    ("mm_patch_merge_type", lambda v: v not in (None, "flat"), "expected 'flat'; tiled images are LLaVA-NeXT's, load its Hugging Face conversion"),
    ("image_aspect_ratio", lambda v: v not in _FITS, "expected 'pad' or 'square'; tiled images are LLaVA-NeXT's, load its Hugging Face conversion"),
    ("mm_resampler_type", bool, "expected null"),
    ("s2", bool, "expected false; several scales of an image through one tower are not read from this layout"),
)
"""Key, what is wrong about its value, and why."""
