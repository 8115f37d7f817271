"""BLIP-2 of transformers (``blip-2``): EVA's ViT-g, a Q-Former that sees the image alone, a decoder-only language model (OPT).

OPT is computed by transformers' own model (``HFDecoder``); language models that are built in (``hf_families.FAMILIES``) by ours.
Source: Li et al., arXiv 2301.12597; ``configuration_blip_2.py``, ``modeling_blip_2.py`` and ``processing_blip_2.py`` of transformers 5.24;
``blip2_opt.py`` of LAVIS for how it was trained: the answer ends with the line.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...chat import PromptTemplate
from ...config import Block, LMMConfig
from ...decoders.hf import HFDecoder
from ...decoders.hf_config import HFDecoderConfig
from ...decoders.transformer import Transformer
from ...projectors import QFormer
from ..files.maps import TOWER_NAMES, KeyMap
from ..parts.encoder_shapes import read_preprocess
from ..parts.hf_decoders import decoder_to_hf, text_from_hf
from ..parts.hf_encoders import encoder_from_hf, encoder_to_hf
from ..parts.hf_families import FAMILIES
from ..parts.hf_qformer import (
    QFORMER_KEYS,
    blip_problems,
    processor_values,
    qformer_options,
    refuse_encoder_decoder,
    write_blip_processor,
)
from ..parts.hf_values import Values, section
from .of_transformers import Writer, of_transformers

MODEL_TYPE = "blip-2"
TEMPLATE = "lmmblocks.weights.systems.blip2:BLIP2"
BLIP2 = PromptTemplate("blip2", ending="\n")
"""The prompt as it is, before it the image and OPT's first token: ``Question: what is this? Answer:`` asks, no words at all caption."""

LAYOUT = KeyMap(
    "Blip2ForConditionalGeneration",
    (
        ("vision_model.", TOWER_NAMES),
        *((name, f"multi_modal_projector.{name}") for name in ("query_tokens", "qformer.", "language_projection.")),
        ("language_model.", "language_model."),
    ),
)
"""The same in hub files and in the memory of transformers 4 and 5, whatever the language model is."""


def blip2_from_hf(values: Values) -> LMMConfig:
    """Return the model that a ``Blip2Config`` describes, with BLIP-2's template, which the file doesn't know.

    Raises:
        LmmError: an encoder-decoder language model (Flan-T5), or a model that the blocks can't compute; all reasons are listed.
    """
    refuse_encoder_decoder(values, "a BLIP-2 with one, such as Salesforce/blip2-opt-2.7b")
    return LMMConfig(
        encoder=encoder_from_hf(values, select=(-1,)),
        decoder=_decoder(values),
        projector=Block("qformer", qformer_options(MODEL_TYPE, values)),
        template=TEMPLATE,
    )


def _decoder(values: Values) -> Any:
    """Return the language model; transformers has OPT where the file doesn't say which one it is."""
    text = {"model_type": "opt", **section(values, "text_config")}
    return text_from_hf({**values, "text_config": text}) if text["model_type"] in FAMILIES else HFDecoderConfig(text)


def read_config(folder: Path, values: Values) -> LMMConfig:
    """Return the model of a folder, its image processing included.

    Raises:
        LmmError: as :func:`blip2_from_hf`, or images of another size than the tower's.
    """
    config = blip2_from_hf(values)
    return replace(config, preprocess=read_preprocess(folder, config.encoder))


def blip2_to_hf(model: Any, config: LMMConfig, image_token: int) -> dict[str, Any]:
    """Return a ``Blip2Config``; arguments as of ``Writer.config``.

    Raises:
        LmmError: a decoder that transformers doesn't have.
    """
    options, decoder = model.projector.options, config.decoder
    text = dict(decoder.hf) if isinstance(decoder, HFDecoderConfig) else decoder_to_hf(decoder)
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["Blip2ForConditionalGeneration"],
        "image_token_index": image_token,
        "num_query_tokens": options["queries"],
        "tie_word_embeddings": model.decoder.table is model.decoder.head_weight,
        "vision_config": {**encoder_to_hf(config.encoder), "model_type": "blip_2_vision_model"},
        "qformer_config": {
            "model_type": "blip_2_qformer",
            "hidden_act": "gelu",
            **{key: options[ours] for key, ours in QFORMER_KEYS.items()},
            "encoder_hidden_size": config.encoder.dim,
        },
        "text_config": text,
    }


BLIP_2 = of_transformers(
    MODEL_TYPE,
    config=read_config,
    layouts=(LAYOUT,),
    processor=processor_values,
    holds=lambda model: type(model.projector) is QFormer,
    writer=Writer(
        "BLIP-2",
        blip_problems,
        blip2_to_hf,
        lambda folder, model, config: write_blip_processor(folder, config, "Blip2Processor"),
        LAYOUT,
        images_apart=True,
        decoders=(Transformer, HFDecoder),
    ),
    templates=(TEMPLATE,),
    whose="BLIP-2's",
)
