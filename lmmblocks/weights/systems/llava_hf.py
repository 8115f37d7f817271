"""LLaVA of transformers (``llava``), made of a vision tower, a two-layer MLP and a language model.

Keys that a file leaves out have transformers' defaults (its classes write every key, hub files only what differs). What a native block
can't compute is refused by name; keys that only matter to training from scratch or to transformers itself are left alone.
Source: ``configuration_llava.py`` and ``modeling_llava.py`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...chat import IMAGE_MARKER
from ...config import Block, LMMConfig
from ...encoders.clip import CLIP
from ...encoders.dinov2 import DINOv2
from ...encoders.kept_fields import sized
from ...encoders.siglip import SigLIP
from ...projectors import MLP
from ...spec import LmmError
from ..files.folder import write_json
from ..files.maps import HUB, LLAVA_LAYOUTS, NATIVE
from ..parts.encoder_shapes import read_preprocess
from ..parts.hf_decoders import decoder_to_hf, llama_from_hf, llama_to_hf, text_from_hf
from ..parts.hf_encoders import clip_from_hf, clip_to_hf, encoder_to_hf, llava_vision, select_strategy
from ..parts.hf_values import Values, model_type, refuse
from .of_transformers import Writer, of_transformers

__all__ = ["LLAVA_MAX_LENGTH", "clip_from_hf", "clip_to_hf", "llama_from_hf", "llama_to_hf", "llava_from_hf", "llava_to_hf"]

LLAVA_MAX_LENGTH = 2048
"""Longest row count LLaVA-1.5 was trained with (``tokenizer_model_max_length`` of ``scripts/v1_5/*.sh``)."""


def llava_from_hf(values: Values) -> LMMConfig:
    """Return the model that a ``LlavaConfig`` describes, with LLaVA-1.5's template, token ids and length, which the file doesn't know.

    Raises:
        LmmError: not a LLaVA of transformers, or one that the native blocks can't compute; all reasons are listed.
    """
    if "mm_vision_tower" in values:
        raise LmmError(
            "config.json is of the original LLaVA layout (it has 'mm_vision_tower'), expected that of transformers: "
            "lmmblocks.load reads folders of both"
        )
    model_type(values, ("llava",))
    encoder = llava_vision(values)
    refuse(
        "llava",
        {"vision_feature_select_strategy": "default", "projector_hidden_act": "gelu", **values},
        {"vision_feature_select_strategy": (select_strategy(encoder),), "projector_hidden_act": ("gelu",)},
    )
    decoder = replace(text_from_hf(values), logit_softcap=None)  # LlavaForConditionalGeneration has a plain head
    bias = values.get("multimodal_projector_bias", True)
    return LMMConfig(
        encoder=encoder,
        decoder=decoder,
        projector=Block("mlp", {"depth": 2} if bias else {"depth": 2, "bias": False}),
        template="vicuna_v1",
        tokenize_mode="llava15",
        max_length=min(LLAVA_MAX_LENGTH, decoder.max_positions),
    )


def read_config(folder: Path, values: Values) -> LMMConfig:
    """Return the model of a folder, its image processing included.

    Raises:
        LmmError: as :func:`llava_from_hf`, or images of another size than the tower's.
    """
    config = llava_from_hf(values)
    preprocess = read_preprocess(folder, config.encoder)
    return replace(config, encoder=sized(config.encoder, preprocess), preprocess=preprocess)


def llava_to_hf(config: LMMConfig, *, image_token: int) -> dict[str, Any]:
    """Return a ``LlavaConfig``.

    Args:
        config: an encoder and a decoder that transformers has, a projector ``mlp`` of depth 2; its ``decoder.vocab`` is the file's.
        image_token: id that stands for one image row in transformers' inputs.

    Raises:
        LmmError: a decoder that transformers doesn't have, or not inside of its LLaVA.
    """
    if config.decoder.logit_softcap is not None:
        raise LmmError(
            f"transformers' LLaVA has no soft limit of logits, the decoder has logit_softcap={config.decoder.logit_softcap}: save with "
            f"format='native', or train and save it with logit_softcap=None"
        )
    select = config.encoder.select
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": image_token,
        "image_seq_length": (config.encoder.image_size // config.encoder.patch) ** 2,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": config.projector.options.get("bias", True),
        "vision_feature_layer": select[0] if len(select) == 1 else list(select),
        "vision_feature_select_strategy": select_strategy(config.encoder),
        "tie_word_embeddings": config.decoder.tied,
        "vision_config": encoder_to_hf(config.encoder),
        "text_config": decoder_to_hf(config.decoder),
    }


def problems(model: Any, tower: Any = None) -> Iterator[str]:
    """Yield what of a model LLaVA has no place for, decoder, reducers and hooks aside.

    Args:
        model: of ours.
        tower: what sees the pictures, where that is not the encoder itself.
    """
    tower = model.encoder if tower is None else tower
    if type(tower) not in (CLIP, SigLIP, DINOv2):
        yield f"encoder {type(tower).__name__!r} (expected 'CLIP' or 'SigLIP' or 'DINOv2')"
    elif getattr(tower.config, "final_norm", False):
        yield "a final norm on the encoder's last layer (expected final_norm=False)"
    if type(model.projector) is not MLP:
        yield f"projector {type(model.projector).__name__!r} (expected 'MLP')"
    elif len(list(model.projector.children())) != 2:
        yield f"projector 'MLP' with {len(list(model.projector.children()))} layers (expected 2)"


def processor_values(config: LMMConfig) -> dict[str, Any]:
    """Return what ``processor_config.json`` says about a model: one image becomes as many ``<image>`` as the encoder has patches (all tokens
    less CLS)."""
    tower = getattr(config.encoder, "tower", config.encoder)
    strategy = select_strategy(tower)
    return {"patch_size": tower.patch, "vision_feature_select_strategy": strategy, "num_additional_image_tokens": int(strategy == "default")}


def write_processor(folder: Path, config: LMMConfig, kind: str) -> None:
    """Write what ``AutoProcessor`` reads beside the tokenizer; ``kind`` is the processor's class."""
    assert config.preprocess is not None
    write_json(folder / "preprocessor_config.json", {**config.preprocess.to_hf_processor_config(), "processor_class": kind})
    write_json(folder / "processor_config.json", {"processor_class": kind, "image_token": IMAGE_MARKER, **processor_values(config)})


LLAVA = of_transformers(
    "llava",
    config=read_config,
    layouts=(*LLAVA_LAYOUTS, NATIVE),  # a DINOv2 in a LLaVA has its own names
    processor=processor_values,
    holds=lambda model: True,
    writer=Writer(
        "LLaVA",
        problems,
        lambda model, config, image_token: llava_to_hf(config, image_token=image_token),
        lambda folder, model, config: write_processor(folder, config, "LlavaProcessor"),
        HUB,
    ),
)
