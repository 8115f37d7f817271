"""What BLIP-2 and InstructBLIP of transformers share: BLIP-2's tower, a Q-Former, a processor that puts images before the whole prompt.

Source: ``configuration_blip_2.py``, ``configuration_instructblip.py`` and the two ``processing_*.py`` of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...config import LMMConfig
from ...encoders.blip2_vit import Blip2ViT
from ...spec import LmmError
from ..files.folder import write_json
from .hf_values import Values, check_numbers, refuse, section

_ENCODER_DECODERS = ("t5", "mt5", "umt5")
QFORMER_KEYS = {
    "hidden_size": "dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_dim",
    "layer_norm_eps": "eps",
    "cross_attention_frequency": "cross_every",
}
"""Keys of ``qformer_config`` and options of our projectors ``qformer`` and ``instruct_qformer``."""

QFORMER_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
    "hidden_act": "gelu",
}


def qformer_options(
    kind: str, values: Values, keys: Mapping[str, str] = QFORMER_KEYS, defaults: Mapping[str, Any] = QFORMER_DEFAULTS
) -> dict[str, Any]:
    """Return the options of the projector that a ``config.json`` describes.

    Args:
        kind: the model, for messages.
        values: of ``config.json``.
        keys: of ``qformer_config`` -> ours.
        defaults: of transformers, for keys that are left out.

    Raises:
        LmmError: values that can't be computed; all reasons are listed.
    """
    qformer = {**defaults, **section(values, "qformer_config"), "num_query_tokens": values.get("num_query_tokens", 32)}
    refuse(f"{kind}, qformer_config", qformer, {"hidden_act": ("gelu",)})
    check_numbers(qformer, {**defaults, "num_query_tokens": 32})
    return {"queries": qformer["num_query_tokens"], **{ours: qformer[key] for key, ours in keys.items()}, "prefix": True}


def refuse_encoder_decoder(values: Values, instead: str) -> None:
    """Refuse a language model that reads the image through an encoder of its own (Flan-T5).

    Raises:
        LmmError: the ``text_config`` describes one; the message says what to use ``instead``.
    """
    text = section(values, "text_config")
    if text.get("model_type") in _ENCODER_DECODERS or text.get("is_encoder_decoder"):
        raise LmmError(
            f"config.json, text_config, is a {text.get('model_type')!r}: its decoder reads the image through an encoder of its own, and "
            f"lmmblocks computes decoder-only language models: use {instead}"
        )


def blip_problems(model: Any) -> Iterator[str]:
    """Yield what of a model with a Q-Former transformers' BLIP-2 and InstructBLIP have no place for, decoder, reducers and hooks aside."""
    if type(model.encoder) is not Blip2ViT:
        yield f"encoder {type(model.encoder).__name__!r} (expected 'Blip2ViT')"
    elif (model.encoder.select, model.encoder.config.final_norm) != ((model.encoder.config.layers,), True):
        select, final_norm = model.encoder.config.select, model.encoder.config.final_norm
        yield f"an encoder with select={select}, final_norm={final_norm} (expected select=(-1,), final_norm=True)"
    if not model.projector.prefix:
        yield f"projector {type(model.projector).__name__!r} with prefix=False (expected prefix=True)"


def processor_values(config: LMMConfig) -> dict[str, Any]:
    """Return what ``processor_config.json`` says about a model."""
    return {"num_query_tokens": config.projector.options.get("queries", 32)}


def write_blip_processor(folder: Path, config: LMMConfig, kind: str) -> None:
    """Write image processing and number of queries as ``AutoProcessor`` reads them; ``kind`` is the processor's class."""
    assert config.preprocess is not None
    images = config.preprocess.to_hf_processor_config()
    if config.preprocess.fit == "squash":
        images["image_processor_type"] = "BlipImageProcessor"
    write_json(folder / "preprocessor_config.json", {**images, "processor_class": kind})
    write_json(folder / "processor_config.json", {"processor_class": kind, **processor_values(config)})
