"""Families of language models as transformers writes them: defaults of their config classes, what each means for ``TransformerConfig``.

Source: ``configuration_*.py`` and ``modeling_*.py`` of transformers 5.23 for each type. A new relative of Llama is one more entry of
:data:`FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...decoders.transformer import TransformerConfig
from .hf_rope import GLOBAL, LOCAL, gemma3_rope_from_hf, partial_rope_from_hf, rope_from_hf
from .hf_values import Values

Fields = dict[str, Any]

_LLAMA = {
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
_MISTRAL = _LLAMA | {
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_PHI3 = _LLAMA | {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "vocab_size": 32064,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "sliding_window": None,
}
_QWEN2 = _LLAMA | {
    "num_key_value_heads": 32,
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_QWEN3 = _QWEN2 | {"head_dim": 128}
_GEMMA2 = _LLAMA | {
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
    "layer_types": None,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "use_bidirectional_attention": None,
}
_GEMMA3 = _GEMMA2 | {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}


def _every_layer(values: Values, problems: list[str]) -> Fields:
    return {"window": values["sliding_window"]}


def _qwen_layers(values: Values, problems: list[str]) -> Fields:
    first = values["max_window_layers"] if values["use_sliding_window"] else values["num_hidden_layers"]
    return _typed_layers(values, [LOCAL if i >= first else GLOBAL for i in range(values["num_hidden_layers"])], problems)


def _gemma_layers(values: Values, problems: list[str]) -> Fields:
    every = values["sliding_window_pattern"]
    types = [LOCAL if (i + 1) % every else GLOBAL for i in range(values["num_hidden_layers"])]
    scalar, width = values["query_pre_attn_scalar"], values["head_dim"]
    return {
        **_typed_layers(values, types, problems),
        "query_scalar": None if scalar == width else scalar,
        "softcap": values["attn_logit_softcapping"],
        "logit_softcap": values["final_logit_softcapping"],
    }


def _gemma3_layers(values: Values, problems: list[str]) -> Fields:
    found = _gemma_layers(values, problems)
    return found if found["window"] is not None else {**found, "window_theta": None}


def _typed_layers(values: Values, default: list[str], problems: list[str]) -> Fields:
    types = values["layer_types"] or default
    if len(types) != values["num_hidden_layers"] or not {*types} <= {GLOBAL, LOCAL}:
        problems.append(f"layer_types={types!r} (expected {GLOBAL!r} or {LOCAL!r} for each of {values['num_hidden_layers']} layers)")
    return window_fields(values["sliding_window"], [i for i, kind in enumerate(types) if kind == LOCAL], len(types))


def window_fields(window: int | None, sliding: list[int], layers: int) -> Fields:
    """Return the fields in their shortest form."""
    if window is None or not sliding:
        return {"window": None, "window_layers": None}
    return {"window": window, "window_layers": None if len(sliding) == layers else tuple(sliding)}


def _write_window(config: TransformerConfig) -> Fields:
    return {"sliding_window": config.window}


def _write_phi3(config: TransformerConfig) -> Fields:
    return {**_write_window(config), "pad_token_id": None}  # the default, 32000, lies after a smaller table


def _write_types(config: TransformerConfig) -> Fields:
    types = [LOCAL if config.slides(layer) else GLOBAL for layer in range(config.layers)]
    return {"sliding_window": config.window or 4096, "layer_types": types}


def _write_qwen(config: TransformerConfig) -> Fields:
    types = _write_types(config)
    first = types["layer_types"].index(LOCAL) if LOCAL in types["layer_types"] else config.layers
    return {**types, "use_sliding_window": config.window is not None, "max_window_layers": first}


def _write_gemma(config: TransformerConfig) -> Fields:
    return {
        **_write_types(config),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": config.query_scalar or config.head_width,
        "attn_logit_softcapping": config.softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


@dataclass(frozen=True)
class Family:
    """What one model type is.

    Attributes:
        architecture: transformers' class with a head.
        defaults: of its config class, for every key that is read.
        options: fields of ``TransformerConfig`` that all its members have.
        allowed: key -> values that can be computed.
        read: further fields from a config with its defaults; appends what can't be computed to a list.
        write: further keys from a config.
        rope: rotary fields; as ``read``.
    """

    architecture: str
    defaults: Values
    options: Mapping[str, Any] = field(default_factory=dict)
    allowed: Mapping[str, tuple] = field(default_factory=lambda: {"hidden_act": ("silu",)})
    read: Callable[[Values, list[str]], Fields] = lambda values, problems: {}
    write: Callable[[TransformerConfig], Fields] = lambda config: {}
    rope: Callable[[Values, list[str]], Fields] = rope_from_hf


_LLAMA_ALLOWED = {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)}
_QWEN3_ALLOWED = {"hidden_act": ("silu",), "attention_bias": (False,)}
_GEMMA_OPTIONS = {"activation": "gelu_tanh", "offset_norms": True, "sandwich_norms": True, "scaled_embeddings": True}
_GEMMA_ALLOWED = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "use_bidirectional_attention": (None, False),
}

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _LLAMA, allowed=_LLAMA_ALLOWED),
    "mistral": Family("MistralForCausalLM", _MISTRAL, read=_every_layer, write=_write_window),
    "qwen2": Family("Qwen2ForCausalLM", _QWEN2, {"qkv_bias": True}, read=_qwen_layers, write=_write_qwen),
    "qwen3": Family("Qwen3ForCausalLM", _QWEN3, {"qk_norm": True}, _QWEN3_ALLOWED, _qwen_layers, _write_qwen),
    "phi3": Family("Phi3ForCausalLM", _PHI3, {"fused": True}, read=_every_layer, write=_write_phi3, rope=partial_rope_from_hf),
    "gemma2": Family("Gemma2ForCausalLM", _GEMMA2, _GEMMA_OPTIONS, _GEMMA_ALLOWED, _gemma_layers, _write_gemma),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _GEMMA3,
        {**_GEMMA_OPTIONS, "qk_norm": True},
        {**_GEMMA_ALLOWED, "attn_logit_softcapping": (None,)},
        _gemma3_layers,
        _write_gemma,
        gemma3_rope_from_hf,
    ),
}
"""``model_type`` -> family."""
