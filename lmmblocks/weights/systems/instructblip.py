"""InstructBLIP of transformers (``instructblip``): BLIP-2's tower, a Q-Former that reads the instruction, a decoder-only language model.

Its files name the tensors as ``LAYOUT`` says. The Q-Former has a tokenizer of its own in ``qformer_tokenizer/``, beside the decoder's.
Source: ``configuration_instructblip.py``, ``modeling_instructblip.py`` and ``processing_instructblip.py`` of transformers 5.23.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...chat import write_tokenizer
from ...chat.load import has_tokenizer, load_tokenizer
from ...config import Block, LMMConfig
from ...projectors import InstructQFormer
from ..files.maps import HUB, TOWER_NAMES, KeyMap
from ..instruction_tokenizer import QFORMER_TOKENIZER, with_tokenizer_at, with_tokenizer_found
from ..parts.encoder_shapes import read_preprocess
from ..parts.hf_decoders import decoder_to_hf, text_from_hf
from ..parts.hf_encoders import encoder_from_hf, encoder_to_hf
from ..parts.hf_qformer import (
    QFORMER_DEFAULTS,
    QFORMER_KEYS,
    blip_problems,
    processor_values,
    qformer_options,
    refuse_encoder_decoder,
    write_blip_processor,
)
from ..parts.hf_values import Values
from .of_transformers import Writer, of_transformers

INSTRUCTBLIP_TYPE = "instructblip"
LAYOUT = KeyMap(
    "InstructBlipForConditionalGeneration",
    (
        ("vision_model.", TOWER_NAMES),
        *((name, f"multi_modal_projector.{name}") for name in ("query_tokens", "qformer.", "language_projection.")),
        *HUB.renames[2:],
    ),
)
"""The same in hub files and in the memory of transformers 4 and 5."""

_QFORMER_KEYS = {**QFORMER_KEYS, "vocab_size": "vocab", "max_position_embeddings": "positions"}
_QFORMER_DEFAULTS = {**QFORMER_DEFAULTS, "vocab_size": 30522, "max_position_embeddings": 512}


def instructblip_from_hf(values: Values) -> LMMConfig:
    """Return the model that an ``InstructBlipConfig`` describes, with InstructBLIP's template, which the file doesn't know.

    Raises:
        LmmError: an encoder-decoder language model (Flan-T5), or a model that the native blocks can't compute; all reasons are listed.
    """
    refuse_encoder_decoder(values, "an InstructBLIP with one, such as Salesforce/instructblip-vicuna-7b")
    return LMMConfig(
        encoder=encoder_from_hf(values, select=(-1,)),
        decoder=text_from_hf(values),
        projector=Block("instruct_qformer", qformer_options("instructblip", values, _QFORMER_KEYS, _QFORMER_DEFAULTS)),
        template="instructblip",
    )


def read_config(folder: Path, values: Values) -> LMMConfig:
    """Return the model of a folder, its image processing and its two tokenizers included.

    Raises:
        LmmError: as :func:`instructblip_from_hf` and :func:`instruction_tokenizer`, or images of another size than the tower's.
    """
    config = instruction_tokenizer(instructblip_from_hf(values), folder)
    return replace(config, preprocess=read_preprocess(folder, config.encoder))


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


def write_processor(folder: Path, model: Any, config: LMMConfig) -> None:
    """Write what ``AutoProcessor`` reads beside the decoder's tokenizer: image processing, number of queries, the instruction's tokenizer."""
    write_blip_processor(folder, config, "InstructBlipProcessor")
    source = model.projector.tokenizer
    tokenizer = model.tokenizer if source is None else load_tokenizer(source)
    if tokenizer is not None:
        write_tokenizer(tokenizer, folder / QFORMER_TOKENIZER)


def instruction_tokenizer(config: LMMConfig, folder: Path) -> LMMConfig:
    """Return the config with the path of the instruction's tokenizer; a folder of transformers with a tokenizer has to hold both.

    Raises:
        LmmError: the decoder's tokenizer is there and the Q-Former's is not.
    """
    inside = has_tokenizer(folder / QFORMER_TOKENIZER)
    return with_tokenizer_found(with_tokenizer_at(config, QFORMER_TOKENIZER), folder) if inside or has_tokenizer(folder) else config


INSTRUCTBLIP = of_transformers(
    INSTRUCTBLIP_TYPE,
    config=read_config,
    layouts=(LAYOUT,),
    processor=processor_values,
    holds=lambda model: type(model.projector) is InstructQFormer,
    writer=Writer("InstructBLIP", blip_problems, instructblip_to_hf, write_processor, LAYOUT, images_apart=True),
    templates=("instructblip",),
    whose="InstructBLIP's",
)
