"""Configs to and from Hugging Face's ``config.json``: CLIP's vision tower, Llama, and LLaVA made of the two.

Keys that a file leaves out have transformers' defaults (its classes write every key, hub files only what differs). What a native block
can't compute is refused by name; keys that only matter to training from scratch or to transformers itself are left alone.
Source: ``configuration_clip.py``, ``configuration_llama.py``, ``configuration_llava.py`` and ``modeling_rope_utils.py`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import Block, LMMConfig
from ..decoders.transformer import TransformerConfig
from ..encoders.clip import CLIPConfig
from ..spec import LmmError

Values = Mapping[str, Any]

LLAVA_MAX_LENGTH = 2048
"""Longest row count LLaVA-1.5 was trained with (``tokenizer_model_max_length`` of ``scripts/v1_5/*.sh``)."""

_CLIP_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "num_channels": 3,
}
_LLAVA_CLIP_DEFAULTS = {
    **_CLIP_DEFAULTS,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 336,
    "patch_size": 14,
}
_LLAMA_DEFAULTS = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
}
_ROPE_THETA = 10000.0


def clip_from_hf(values: Values, *, select: tuple[int, ...] = (-2,)) -> CLIPConfig:
    """Return the encoder that a ``config.json`` describes: ``clip_vision_model``, or the vision part of ``clip`` or ``llava``.

    Raises:
        LmmError: another type of model, or one that the native encoder can't compute; all reasons are listed.
    """
    kind = _model_type(values, ("clip_vision_model", "clip", "llava"))
    if kind == "llava":
        return _llava_vision(values)
    return _clip(_section(values, "vision_config") if kind == "clip" else values, _CLIP_DEFAULTS, select)


def llama_from_hf(values: Values) -> TransformerConfig:
    """Return the decoder that a ``config.json`` describes: ``llama``, or the language model of ``llava``.

    Raises:
        LmmError: another type of model, or one that the native decoder can't compute; all reasons are listed.
    """
    return _llava_text(values) if _model_type(values, ("llama", "llava")) == "llava" else _llama(values)


def llava_from_hf(values: Values) -> LMMConfig:
    """Return the model that a ``LlavaConfig`` describes, with LLaVA-1.5's template, token ids and length, which the file doesn't know.

    Raises:
        LmmError: not a LLaVA of transformers, or one that the native blocks can't compute; all reasons are listed.
    """
    if "mm_vision_tower" in values:
        raise LmmError(
            "config.json is of the original LLaVA layout (it has 'mm_vision_tower'), which is not read: "
            "use its Hugging Face conversion, such as llava-hf/llava-1.5-7b-hf"
        )
    _model_type(values, ("llava",))
    _refuse(
        "llava",
        {"vision_feature_select_strategy": "default", "projector_hidden_act": "gelu", **values},
        {"vision_feature_select_strategy": ("default",), "projector_hidden_act": ("gelu",)},
    )
    decoder = _llava_text(values)
    bias = values.get("multimodal_projector_bias", True)
    return LMMConfig(
        encoder=_llava_vision(values),
        decoder=decoder,
        projector=Block("mlp", {"depth": 2} if bias else {"depth": 2, "bias": False}),
        template="vicuna_v1",
        tokenize_mode="llava15",
        max_length=min(LLAVA_MAX_LENGTH, decoder.max_positions),
    )


def clip_to_hf(config: CLIPConfig) -> dict[str, Any]:
    """Return a ``CLIPVisionConfig``."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "image_size": config.image_size,
        "patch_size": config.patch,
        "hidden_act": config.activation,
        "layer_norm_eps": config.eps,
    }


def llama_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Return a ``LlamaConfig``; ``rope_theta`` is where both transformers 4 and 5 read it."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied,
    }


def llava_to_hf(config: LMMConfig, *, image_token: int) -> dict[str, Any]:
    """Return a ``LlavaConfig``.

    Args:
        config: an encoder of CLIP's, a projector ``mlp`` of depth 2 and a decoder of Llama's; its ``decoder.vocab`` is the file's.
        image_token: id that stands for one image row in transformers' inputs.
    """
    select = config.encoder.select
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": image_token,
        "image_seq_length": (config.encoder.image_size // config.encoder.patch) ** 2,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": config.projector.options.get("bias", True),
        "vision_feature_layer": select[0] if len(select) == 1 else list(select),
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": config.decoder.tied,
        "vision_config": clip_to_hf(config.encoder),
        "text_config": llama_to_hf(config.decoder),
    }


def _llava_vision(values: Values) -> CLIPConfig:
    vision = _section(values, "vision_config")
    _model_type(
        {"model_type": "clip_vision_model", **vision}, ("clip_vision_model",), "config.json, vision_config,"
    )
    return _clip(
        vision,
        _CLIP_DEFAULTS if vision else _LLAVA_CLIP_DEFAULTS,
        _layers(values.get("vision_feature_layer", -2)),
    )


def _llava_text(values: Values) -> TransformerConfig:
    text = _section(values, "text_config")
    _model_type({"model_type": "llama", **text}, ("llama",), "config.json, text_config,")
    return _llama(
        {
            **text,
            "tie_word_embeddings": bool(values.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        }
    )


def _clip(values: Values, defaults: Values, select: tuple[int, ...]) -> CLIPConfig:
    got = {**defaults, **values}
    got |= {key: _side(got[key], key) for key in ("image_size", "patch_size")}
    _refuse("clip_vision_model", got, {"hidden_act": ("quick_gelu", "gelu"), "num_channels": (3,)})
    _check_numbers(got, defaults)
    return CLIPConfig(
        dim=got["hidden_size"],
        layers=got["num_hidden_layers"],
        heads=got["num_attention_heads"],
        mlp_dim=got["intermediate_size"],
        image_size=got["image_size"],
        patch=got["patch_size"],
        activation=got["hidden_act"],
        eps=got["layer_norm_eps"],
        select=select,
    )


def _llama(values: Values) -> TransformerConfig:
    got = {**_LLAMA_DEFAULTS, **values, "rope_scaling": _scaling(values)}
    got["num_key_value_heads"] = got["num_key_value_heads"] or got["num_attention_heads"]
    _refuse(
        "llama",
        got,
        {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "rope_scaling": (None,)},
    )
    _check_numbers(got, {**_LLAMA_DEFAULTS, "num_key_value_heads": 1})
    plain_head = got["head_dim"] is None or got["head_dim"] * got["num_attention_heads"] == got["hidden_size"]
    return TransformerConfig(
        dim=got["hidden_size"],
        layers=got["num_hidden_layers"],
        heads=got["num_attention_heads"],
        kv_heads=got["num_key_value_heads"],
        head_dim=None if plain_head else got["head_dim"],
        ffn_dim=got["intermediate_size"],
        vocab=got["vocab_size"],
        rope_theta=float(_rope(values).get("rope_theta") or got.get("rope_theta") or _ROPE_THETA),
        eps=got["rms_norm_eps"],
        tied=bool(got["tie_word_embeddings"]),
        max_positions=got["max_position_embeddings"],
    )


def _rope(values: Values) -> Values:
    """Rotary settings: ``rope_parameters`` since transformers 5, ``rope_scaling`` before."""
    return values.get("rope_parameters") or values.get("rope_scaling") or {}


def _scaling(values: Values) -> dict[str, Any] | None:
    """Return the rotary settings when they are more than a base frequency."""
    rope = _rope(values)
    partial = rope.get("partial_rotary_factor", values.get("partial_rotary_factor")) or 1.0
    kind = rope.get("rope_type", rope.get("type", "default"))
    return None if kind == "default" and partial == 1.0 else {**rope, "partial_rotary_factor": partial}


def _refuse(kind: str, values: Values, allowed: Mapping[str, tuple]) -> None:
    problems = [
        f"{key}={values[key]!r} (expected {' or '.join(map(repr, known))})"
        for key, known in allowed.items()
        if values[key] not in known
    ]
    if problems:
        raise LmmError(f"config.json, {kind}: the native blocks can't compute {'; '.join(problems)}")


def _check_numbers(values: Values, defaults: Values) -> None:
    """Positive numbers where the default is one; integers where it is an integer."""
    problems = []
    for key, default in defaults.items():
        value, kinds = values[key], (int, float) if isinstance(default, float) else int
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
                problems.append(f"{key}={value!r}")
    if problems:
        raise LmmError(
            f"config.json: expected positive numbers such as those of transformers' own configs, found {', '.join(problems)}"
        )


def _model_type(values: Values, known: tuple[str, ...], where: str = "config.json") -> str:
    kind = values.get("model_type")
    if kind not in known:
        raise LmmError(
            f"{where} has model_type {kind!r}, expected {' or '.join(map(repr, known))}: give a folder of such a model"
        )
    return kind


def _section(values: Values, key: str) -> Values:
    section = values.get(key) or {}
    if not isinstance(section, Mapping):
        raise LmmError(f"config.json: {key} must be an object, found {section!r}")
    return section


def _layers(value: Any) -> tuple[int, ...]:
    layers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not layers or not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers):
        raise LmmError(
            f"config.json: vision_feature_layer must be an integer or a list of integers, found {value!r}"
        )
    return layers


def _side(value: Any, key: str) -> int:
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise LmmError(f"config.json: {key} must be the side of a square in pixels, found {value!r}")
    return side
