"""InstructBLIP of transformers (``instructblip``): BLIP-2's tower, a Q-Former that reads the instruction, a decoder-only language model.

Its files name the tensors as ``maps.INSTRUCTBLIP`` says. The Q-Former has a tokenizer of its own in ``qformer_tokenizer/``, beside the decoder's.
Source: ``configuration_instructblip.py``, ``modeling_instructblip.py`` and ``processing_instructblip.py`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...chat import write_tokenizer
from ...chat.load import has_tokenizer, load_tokenizer
from ...config import Block, LMMConfig
from ...encoders.blip2_vit import Blip2ViT
from ...projectors import InstructQFormer
from ...spec import LmmError
from ..files.folder import write_json
from ..parts.hf_decoders import decoder_to_hf, text_from_hf
from ..parts.hf_encoders import encoder_from_hf, encoder_to_hf
from ..parts.hf_values import Values, check_numbers, refuse, section

INSTRUCTBLIP_TYPE = "instructblip"
QFORMER_TOKENIZER = "qformer_tokenizer"
"""Folder of the instruction's tokenizer inside a model's; also what ``lmmblocks.json`` calls it there."""

_ENCODER_DECODERS = ("t5", "mt5", "umt5")
_QFORMER_KEYS = {
    "vocab_size": "vocab",
    "hidden_size": "dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_dim",
    "max_position_embeddings": "positions",
    "layer_norm_eps": "eps",
    "cross_attention_frequency": "cross_every",
}
_QFORMER_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
    "hidden_act": "gelu",
}


def is_instructblip(values: Values) -> bool:
    """Say whether a ``config.json`` is InstructBLIP's."""
    return values.get("model_type") == INSTRUCTBLIP_TYPE


def instructblip_from_hf(values: Values) -> LMMConfig:
    """Return the model that an ``InstructBlipConfig`` describes, with InstructBLIP's template, which the file doesn't know.

    Raises:
        LmmError: an encoder-decoder language model (Flan-T5), or a model that the native blocks can't compute; all reasons are listed.
    """
    text = section(values, "text_config")
    if text.get("model_type") in _ENCODER_DECODERS or text.get("is_encoder_decoder"):
        raise LmmError(
            f"config.json, text_config, is a {text.get('model_type')!r}: its decoder reads the image through an encoder of its own, and "
            f"lmmblocks computes decoder-only language models: use an InstructBLIP with one, such as Salesforce/instructblip-vicuna-7b"
        )
    qformer = {**_QFORMER_DEFAULTS, **section(values, "qformer_config"), "num_query_tokens": values.get("num_query_tokens", 32)}
    refuse("instructblip, qformer_config", qformer, {"hidden_act": ("gelu",)})
    check_numbers(qformer, {**_QFORMER_DEFAULTS, "num_query_tokens": 32})
    options = {ours: qformer[key] for key, ours in _QFORMER_KEYS.items()}
    return LMMConfig(
        encoder=encoder_from_hf(values, select=(-1,)),
        decoder=text_from_hf(values),
        projector=Block("instruct_qformer", {"queries": qformer["num_query_tokens"], **options, "prefix": True}),
        template="instructblip",
    )


def instructblip_to_hf(model: Any, config: LMMConfig, image_token: int) -> dict[str, Any]:
    """Return an ``InstructBlipConfig``.

    Args:
        model: of which the projector is read.
        config: its config; ``decoder.vocab`` is the file's.
        image_token: id that stands for one image row in transformers' inputs.

    Raises:
        LmmError: a decoder that transformers doesn't have.
    """
    options = model.projector.options
    qformer = {key: options[ours] for key, ours in _QFORMER_KEYS.items()}
    return {
        "model_type": INSTRUCTBLIP_TYPE,
        "architectures": ["InstructBlipForConditionalGeneration"],
        "image_token_index": image_token,
        "num_query_tokens": options["queries"],
        "tie_word_embeddings": config.decoder.tied,
        "vision_config": {**encoder_to_hf(config.encoder), "model_type": "instructblip_vision_model"},
        "qformer_config": {
            "model_type": "instructblip_qformer",
            "hidden_act": "gelu",
            **qformer,
            "encoder_hidden_size": config.encoder.dim,
        },
        "text_config": decoder_to_hf(config.decoder),
    }


def instructblip_problems(model: Any) -> Iterator[str]:
    """Yield what of a model with an ``InstructQFormer`` transformers' InstructBLIP has no place for, decoder, reducers and hooks aside."""
    if type(model.encoder) is not Blip2ViT:
        yield f"encoder {type(model.encoder).__name__!r} (expected 'Blip2ViT')"
    elif (model.encoder.select, model.encoder.config.final_norm) != ((model.encoder.config.layers,), True):
        select, final_norm = model.encoder.config.select, model.encoder.config.final_norm
        yield f"an encoder with select={select}, final_norm={final_norm} (expected select=(-1,), final_norm=True)"
    if not model.projector.prefix:
        yield "projector 'InstructQFormer' with prefix=False (expected prefix=True)"


def write_instructblip_processor(folder: Path, model: Any, config: LMMConfig) -> None:
    """Write what ``AutoProcessor`` reads beside the decoder's tokenizer: image processing, number of queries, the instruction's tokenizer."""
    assert config.preprocess is not None
    images = config.preprocess.to_hf_processor_config()
    if config.preprocess.fit == "squash":
        images["image_processor_type"] = "BlipImageProcessor"
    processor = {"processor_class": "InstructBlipProcessor"}
    write_json(folder / "preprocessor_config.json", {**images, **processor})
    write_json(folder / "processor_config.json", {**processor, "num_query_tokens": model.projector.options["queries"]})
    source = model.projector.tokenizer
    tokenizer = model.tokenizer if source is None else load_tokenizer(source)
    if tokenizer is not None:
        write_tokenizer(tokenizer, folder / QFORMER_TOKENIZER)


def with_tokenizer_inside(model: Any, config: LMMConfig, folder: Path) -> LMMConfig:
    """Copy the instruction's tokenizer into a model's folder when it lies in one of its own; a hub id stays what it is.

    Returns:
        The config with the tokenizer's new place in it.
    """
    source = model.projector.tokenizer if isinstance(model.projector, InstructQFormer) else None
    if source is None or not Path(source).expanduser().is_dir():
        return config
    write_tokenizer(load_tokenizer(source), folder / QFORMER_TOKENIZER)
    return _with_tokenizer(config, QFORMER_TOKENIZER)


def with_tokenizer_found(config: LMMConfig, folder: Path) -> LMMConfig:
    """Return the config of a model's folder with the whole path of the instruction's tokenizer, where that lies inside.

    Raises:
        LmmError: the folder lacks it.
    """
    if config.projector.options.get("tokenizer") != QFORMER_TOKENIZER:
        return config
    if not has_tokenizer(folder / QFORMER_TOKENIZER):
        raise LmmError(f"{folder} holds no {QFORMER_TOKENIZER}/, which its Q-Former reads the instruction with: copy the whole folder again")
    return _with_tokenizer(config, str(folder / QFORMER_TOKENIZER))


def instruction_tokenizer(config: LMMConfig, folder: Path) -> LMMConfig:
    """Do the same for a folder of transformers: one with a tokenizer has to hold both.

    Raises:
        LmmError: the decoder's tokenizer is there and the Q-Former's is not.
    """
    inside = has_tokenizer(folder / QFORMER_TOKENIZER)
    return with_tokenizer_found(_with_tokenizer(config, QFORMER_TOKENIZER), folder) if inside or has_tokenizer(folder) else config


def _with_tokenizer(config: LMMConfig, place: str) -> LMMConfig:
    options: Mapping[str, Any] = {**config.projector.options, "tokenizer": place}
    return replace(config, projector=Block(config.projector.type, options))
