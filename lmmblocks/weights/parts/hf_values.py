"""Reading values of Hugging Face's ``config.json``: what is missing, of another type, or not to be computed is said by its key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...spec import LmmError
from ...spec.fields import is_number, is_whole

Values = Mapping[str, Any]


def refuse(kind: str, values: Values, allowed: Mapping[str, tuple]) -> None:
    """Raise an LmmError that lists the keys whose values the native blocks can't compute.

    Args:
        kind: the model type, for the message.
        values: the config with every key of ``allowed``.
        allowed: key -> values that can be computed.
    """
    problems = [f"{key}={values[key]!r} (expected {' or '.join(map(repr, known))})" for key, known in allowed.items() if values[key] not in known]
    if problems:
        raise LmmError(f"config.json, {kind}: the native blocks can't compute {'; '.join(problems)}")


def check_numbers(values: Values, defaults: Values) -> None:
    """Raise an LmmError that lists values that are no positive numbers where the default is one (integers where it is an integer)."""
    problems = []
    for key, default in defaults.items():
        value, is_one = values[key], is_number if isinstance(default, float) else is_whole
        if is_number(default) and not (is_one(value) and value > 0):
            problems.append(f"{key}={value!r}")
    if problems:
        raise LmmError(f"config.json: expected positive numbers such as those of transformers' own configs, found {', '.join(problems)}")


def model_type(values: Values, known: Collection[str], where: str = "config.json") -> str:
    """Return ``model_type`` when it is one of ``known``; an LmmError says what else was found."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise LmmError(f"{where} has model_type {kind!r}, expected {' or '.join(map(repr, known))}: give a folder of such a model")
    return kind


def section(values: Values, key: str) -> Values:
    """Return an object inside the config, empty when it is left out."""
    inner = values.get(key) or {}
    if not isinstance(inner, Mapping):
        raise LmmError(f"config.json: {key} must be an object, found {inner!r}")
    return inner


def feature_layers(value: Any) -> tuple[int, ...]:
    """Return ``vision_feature_layer``, which is an integer or a list, as a tuple."""
    layers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not layers or not all(is_whole(layer) for layer in layers):
        raise LmmError(f"config.json: vision_feature_layer must be an integer or a list of integers, found {value!r}")
    return layers


def square_side(value: Any, key: str) -> int:
    """Return the side of a square in pixels, which is an integer or a pair of equal ones."""
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise LmmError(f"config.json: {key} must be the side of a square in pixels, found {value!r}")
    return side
