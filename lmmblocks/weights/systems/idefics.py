"""IDEFICS of transformers (``idefics``): a Llama that looks at images through gated cross-attention, read into our blocks.

Its files differ from a LLaVA's in two ways. Names: the layout is ``LAYOUT``. Tables: ``IdeficsDecoupledEmbedding`` and
``IdeficsDecoupledLinear`` keep the rows of tokens that were added to Llama's apart, so that these can be trained alone; here they are the last
rows of one table (:func:`with_added_rows`). Source: ``configuration_idefics.py``, ``modeling_idefics.py`` and
``image_processing_idefics.py`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...chat.idefics import END, FAKE
from ...chat.load import has_tokenizer, load_tokenizer
from ...chat.pieces import IMAGE_MARKER
from ...config import Block, LMMConfig
from ...images.preprocess import ImagePreprocess, clip_preprocess
from ...spec import LmmError
from ..files.maps import TOWER_NAMES, KeyMap
from ..files.tensors import WeightFiles, open_weights
from ..parts.encoder_shapes import image_processor
from ..parts.hf_decoders import decoder_from_hf
from ..parts.hf_encoders import clip_from_hf
from ..parts.hf_values import Values, check_numbers, refuse, section
from .of_transformers import of_transformers

MODEL_TYPE = "idefics"
TEMPLATES = {True: "lmmblocks.chat.idefics:IDEFICS", False: "lmmblocks.chat.idefics:IDEFICS_BASE"}
"""Whether the tokens have one that ends a turn -> the template."""

LAYOUT = KeyMap(
    "IdeficsForVisionText2Text",
    (
        ("model.vision_model.", TOWER_NAMES),
        ("model.perceiver_resampler.", "hooks.0.resampler."),
        ("model.gated_cross_attn_layers.", "hooks.0.gated_cross_attn_layers."),
        *(("model." + name, "language_model.model." + name) for name in ("embed_tokens.", "layers.", "norm.")),
        ("lm_head.", "language_model.lm_head."),
    ),
)
"""Of files whose tables were made whole."""

ADDED_ROWS = {
    "model.embed_tokens.weight": "model.embed_tokens.additional_embedding.weight",
    "lm_head.weight": "lm_head.additional_fc.weight",
}
"""Table in the file -> the rows after its last one."""

_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "cross_layer_interval": 1,
}
_OPTIONS = {"additional_vocab_size": 0, "alpha_type": "float", "qk_layer_norms": False, "use_resampler": False, "hidden_act": "silu"}
_VISION = {
    "embed_dim": 768,
    "image_size": 224,
    "intermediate_size": 5120,
    "patch_size": 14,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
_PERCEIVER = {"resampler_n_latents": 64, "resampler_depth": 6, "resampler_n_heads": 16, "resampler_head_dim": 96}
_PERCEIVER_FIELDS = dict(zip(_PERCEIVER, ("latents", "depth", "heads", "head_dim")))


def idefics_from_hf(values: Values, *, vocabulary: Mapping[str, int] | None = None) -> LMMConfig:
    """Return the model that an ``IdeficsConfig`` describes.

    Args:
        values: of ``config.json``.
        vocabulary: token -> id, which the file doesn't know; None = as in the released models, the added tokens are
            ``<fake_token_around_image>``, ``<image>`` and, where it is instruction-tuned, ``<end_of_utterance>``.

    Raises:
        LmmError: a model that the native blocks can't compute, or a vocabulary without ``<image>``.
    """
    got = {**_DEFAULTS, **_OPTIONS, **values}
    refuse(MODEL_TYPE, got, {"hidden_act": ("silu",), "alpha_type": ("float", "vector")})
    check_numbers(got, _DEFAULTS)
    layers, interval, vocab = got["num_hidden_layers"], got["cross_layer_interval"], got["vocab_size"] + got["additional_vocab_size"]
    if layers % interval:
        raise LmmError(f"config.json: num_hidden_layers={layers} is not a multiple of cross_layer_interval={interval}")
    if vocabulary is None:
        vocabulary = dict(zip((FAKE, IMAGE_MARKER, END), range(got["vocab_size"], vocab)))
    if IMAGE_MARKER not in vocabulary:
        raise LmmError(f"none of the {vocab} tokens is {IMAGE_MARKER!r}, which stands for an image: use the model's own config.json and tokenizer")
    text = {key: value for key, value in got.items() if key not in ("vision_config", "perceiver_config")}
    decoder = decoder_from_hf({**text, "model_type": "llama", "vocab_size": vocab})
    vision = {**_VISION, **section(values, "vision_config")}
    vision = {**vision, "model_type": "clip_vision_model", "hidden_size": vision.get("hidden_size", vision["embed_dim"])}
    encoder = clip_from_hf(vision, select=(-1,))
    return LMMConfig(
        encoder=encoder,
        projector=Block("image_token", {"token": vocabulary[IMAGE_MARKER]}),
        decoder=decoder,
        hooks=(Block("gated_cross_attention", _hook_options(got, list(range(0, layers, interval)))),),
        template=TEMPLATES[END in vocabulary],
        max_length=decoder.max_positions,
        preprocess=clip_preprocess(encoder.image_size, encoder.patch, fit="squash"),
    )


def _hook_options(got: Values, layers: list[int]) -> dict[str, Any]:
    perceiver = {**_PERCEIVER, **section(got, "perceiver_config")}
    check_numbers(perceiver, _PERCEIVER)
    resampler = {ours: perceiver[key] for key, ours in _PERCEIVER_FIELDS.items()}
    return {
        "layers": layers,
        "heads": got["num_attention_heads"],
        "ffn_dim": got["intermediate_size"],
        "qk_norm": got["qk_layer_norms"],
        "gate": got["alpha_type"],
        "eps": got["rms_norm_eps"],
        "resampler": {**resampler, "qk_norm": perceiver.get("qk_layer_norms_perceiver", False)} if got["use_resampler"] else None,
    }


def read_idefics_config(folder: Path, values: Values) -> LMMConfig:
    """Return the model of a folder, whose tokenizer says which token is ``<image>`` and whose image processor how pictures become pixels.

    Raises:
        LmmError: as :func:`idefics_from_hf`, or images of another size than the encoder's.
    """
    config = idefics_from_hf(values, vocabulary=load_tokenizer(folder).get_vocab() if has_tokenizer(folder) else None)
    preprocess = _read_preprocess(folder, config.encoder)
    return config if preprocess is None else replace(config, preprocess=preprocess)


def _read_preprocess(folder: Path, encoder: Any) -> ImagePreprocess | None:
    """Return the preprocessing of a folder: any shape becomes a square, whose side older files call ``image_size``."""
    path, values = image_processor(folder)
    if not values:
        return None
    side = values.get("image_size", encoder.image_size)
    stated = {"size": {"height": side, "width": side}, **values}
    preprocess = ImagePreprocess.from_hf_processor_config(stated, patch_px=encoder.patch)
    if preprocess.size_px != encoder.image_size:
        raise LmmError(f"{path} makes images of {preprocess.size_px} px, config.json says {encoder.image_size} px: make them agree")
    return preprocess


def with_added_rows(files: WeightFiles) -> WeightFiles:
    """Return files in which each table is whole."""
    joint = {table: added for table, added in ADDED_ROWS.items() if table in files.shapes and added in files.shapes}

    def read(name: str) -> Tensor:
        return torch.cat([files.read(name), files.read(joint[name])]) if name in joint else files.read(name)

    shapes = {name: shape for name, shape in files.shapes.items() if name not in joint.values()}
    shapes |= {table: (shapes[table][0] + files.shapes[added][0], *shapes[table][1:]) for table, added in joint.items()}
    return replace(files, shapes=shapes, dtypes={name: files.dtypes[name] for name in shapes}, read=read)


IDEFICS = of_transformers(
    MODEL_TYPE,
    config=read_idefics_config,
    layouts=(LAYOUT,),
    files=lambda folder: with_added_rows(open_weights(folder.path)),
    templates=tuple(TEMPLATES.values()),
    whose="IDEFICS'",
)
