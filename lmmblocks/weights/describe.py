"""Blocks and preprocessing in a line of words, from their configs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .. import registry
from ..config import Block, is_config
from ..images.fit import reading_of
from ..images.preprocess import ImagePreprocess

_WORDS = {
    "layers": "{} layers",
    "dim": "width {}",
    "heads": "{} heads",
    "kv_heads": "{} kv heads",
    "mlp_dim": "MLP {}",
    "ffn_dim": "MLP {}",
    "vocab": "{} token ids",
    "max_positions": "{} positions",
    "image_size": "{} px",
    "patch": "patches of {} px",
    "registers": "{} registers",
    "select": "hidden state {}",
}
"""Fields that say what size a block is, in the order of the sentence."""


def describe(block: Any, kind: str = "projector") -> str:
    """Return what a block is.

    Args:
        block: a config dataclass, or a ``Block``.
        kind: of the registry, for its name there.

    >>> describe(Block("mlp", {"depth": 2}))
    'mlp, depth 2'
    """
    if isinstance(block, Block):
        return ", ".join([block.type, *(f"{key} {value}" for key, value in block.options.items())])
    name = registry.name_of(kind, type(block))
    words = [text.format(_short(getattr(block, key))) for key, text in _WORDS.items() if getattr(block, key, None)]
    values = [getattr(block, field.name) for field in fields(block)]
    towers = [each for value in values for each in (value if isinstance(value, tuple) else (value,)) if is_config(each)]
    return f"{name} of {' and '.join(f'({describe(tower, kind)})' for tower in towers)}" if towers else ", ".join([name, *words])


def _short(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def describe_preprocess(preprocess: Any) -> str:
    """Return what happens to a picture, in its order."""
    if type(preprocess) is not ImagePreprocess:
        inner = getattr(preprocess, "tower", None)
        name = type(preprocess).__name__.removesuffix("Preprocess").lower()
        return name if inner is None else f"{name} of: {describe_preprocess(inner)}"
    side = preprocess.size_px
    filtered = f"{preprocess.resample} to {side}x{side} px"
    steps = {
        "pad": f"pad to a square with {preprocess.pad_colour}, {filtered}",
        "crop": f"shortest side {preprocess.resample} to {preprocess.resize_px or side} px, centre {side}x{side} px",
        "squash": f"squash {filtered}",
    }[preprocess.fit]
    read = "".join(f", {name} {value}" for name, value in reading_of(preprocess).items())
    return f"{steps}, mean {_rounded(preprocess.mean)}, std {_rounded(preprocess.std)}{read}"


def _rounded(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
