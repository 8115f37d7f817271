"""Rotary settings to and from ``config.json``: flat or one object per type of layer, of transformers 4 (``rope_scaling``) or 5 (``rope_parameters``).

Source: ``modeling_rope_utils.py`` and ``configuration_phi3.py``, ``configuration_gemma3.py`` of transformers 5.23.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ...decoders.rotary import LinearRope, Llama3Rope, LongRope, RopeScaling
from ...decoders.transformer import TransformerConfig
from ...spec import LmmError
from .hf_values import Values

THETA = 10000.0
GLOBAL, LOCAL = "full_attention", "sliding_attention"
GEMMA3_THETA = {GLOBAL: 1_000_000.0, LOCAL: 10_000.0}


def rope_from_hf(values: Values, problems: list[str]) -> dict[str, Any]:
    """Return the rotary fields of a ``TransformerConfig``.

    Args:
        values: the whole config with its defaults.
        problems: what can't be computed is appended.
    """
    found = partial_rope_from_hf(values, problems)
    fraction = found.pop("rotary_fraction")
    if fraction != 1.0:
        problems.append(f"rope_scaling={ {'partial_rotary_factor': fraction}!r} (expected 1.0: this family turns whole heads)")
    return found


def partial_rope_from_hf(values: Values, problems: list[str]) -> dict[str, Any]:
    """The same for a family that may turn a part of each head."""
    rope = _flat(values, problems)
    fraction = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    theta = rope.get("rope_theta") or values.get("rope_theta")
    return {
        "rope_theta": float(theta or THETA),
        "rope_scaling": _scaling(rope, values, problems),
        "rotary_fraction": float(fraction or 1.0),
    }


def gemma3_rope_from_hf(values: Values, problems: list[str]) -> dict[str, Any]:
    """The same where sliding layers have a base of their own and only the others are stretched."""
    nested = values.get("rope_parameters") or {}
    wide = nested.get(GLOBAL) or values.get("rope_scaling") or {}
    near = nested.get(LOCAL) or {}
    if _kind(near) != "default":
        problems.append(f"rope_parameters={ {LOCAL: near}!r} (expected rope_type 'default' of sliding layers)")
    theta = wide.get("rope_theta") or values.get("rope_theta") or GEMMA3_THETA[GLOBAL]
    local = near.get("rope_theta") or values.get("rope_local_base_freq") or GEMMA3_THETA[LOCAL]
    return {"rope_theta": float(theta), "rope_scaling": _scaling(wide, values, problems), "window_theta": float(local)}


def rope_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Return the keys that both transformers 4 and 5 read."""
    values: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.rotary_fraction != 1.0:
        values["partial_rotary_factor"] = config.rotary_fraction
    if config.window_theta is not None:
        values["rope_local_base_freq"] = config.window_theta
    if config.rope_scaling is not None:
        values["rope_scaling"] = _WRITERS[type(config.rope_scaling)](config.rope_scaling)
    if isinstance(config.rope_scaling, LongRope):
        values["original_max_position_embeddings"] = config.rope_scaling.original
        if math.isclose(config.rope_scaling.magnitude, _magnitude(config.max_positions / config.rope_scaling.original, config.rope_scaling.original)):
            del values["rope_scaling"]["attention_factor"]  # Phi-3 of transformers 4 takes three keys and no more
    return values


def _flat(values: Values, problems: list[str]) -> Values:
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        problems.append(f"rope_parameters={rope!r} (expected one object for all layers)")
        return {}
    return rope


def _kind(rope: Values) -> str:
    return rope.get("rope_type") or rope.get("type") or "default"


def _scaling(rope: Values, values: Values, problems: list[str]) -> RopeScaling | None:
    kind = _kind(rope)
    if kind == "default":
        return None
    if kind not in _READERS:
        problems.append(f"rope_scaling={dict(rope)!r} (expected rope_type {' or '.join(map(repr, ('default', *_READERS)))})")
        return None
    try:
        return _READERS[kind](rope, values)
    except (KeyError, TypeError, LmmError) as error:
        problems.append(f"rope_scaling={dict(rope)!r} ({'lacks ' if isinstance(error, KeyError) else ''}{error})")
        return None


def _original(rope: Values, values: Values) -> int:
    own = rope.get("original_max_position_embeddings")
    return values.get("original_max_position_embeddings") or own or values["max_position_embeddings"]


def _linear(rope: Values, values: Values) -> RopeScaling:
    return LinearRope(rope["factor"])


def _llama3(rope: Values, values: Values) -> RopeScaling:
    return Llama3Rope(rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], _original(rope, values))


def _longrope(rope: Values, values: Values) -> RopeScaling:
    original = _original(rope, values)
    magnitude = rope.get("attention_factor")
    if magnitude is None:
        factor = rope.get("factor") or values["max_position_embeddings"] / original
        magnitude = _magnitude(factor, original)
    return LongRope(rope["short_factor"], rope["long_factor"], original, magnitude)


def _magnitude(factor: float, original: int) -> float:
    """Return the factor of the tables where a file states none."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


_READERS: dict[str, Callable[[Values, Values], RopeScaling]] = {
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,
}


def _linear_to_hf(scaling: Any) -> dict[str, Any]:
    return {"rope_type": "linear", "factor": scaling.factor}


def _llama3_to_hf(scaling: Any) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original,
    }


def _longrope_to_hf(scaling: Any) -> dict[str, Any]:
    return {
        "type": "longrope",  # as Phi-3 of transformers 4 wants it; 5 reads it too
        "short_factor": list(scaling.short),
        "long_factor": list(scaling.long),
        "attention_factor": scaling.magnitude,
    }


_WRITERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    LinearRope: _linear_to_hf,
    Llama3Rope: _llama3_to_hf,
    LongRope: _longrope_to_hf,
}
