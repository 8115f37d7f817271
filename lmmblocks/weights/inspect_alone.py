"""What is in the folder of a vision tower or a language model alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..chat.load import has_tokenizer
from ..spec import LmmError
from .describe import describe, describe_preprocess
from .files.fill import weight_problems
from .files.maps import KeyMap
from .files.tensors import has_weights, open_weights, weight_bytes
from .inspection import SIZES, Inspection, Part
from .parts.encoder_shapes import encoder_shape
from .parts.hf_decoders import decoder_from_hf
from .parts.hf_encoders import HF_ENCODERS, hf_type
from .parts.other_encoders import other_encoder
from .systems.all import DECODER_LAYOUTS


def inspect_decoder(folder: Path, values: Mapping[str, Any]) -> Inspection:
    """Find out what a language model's folder holds; ``values`` are its ``config.json``'s."""
    report = Inspection(folder, f"language model ({values['model_type']})", weight_bytes=weight_bytes(folder))
    try:
        config = decoder_from_hf(values)
    except LmmError as error:
        report.problems.append(str(error))
        return report
    report.parts.append(Part("decoder", describe(config, "decoder")))
    _alone(report, folder, config, DECODER_LAYOUTS)
    if has_tokenizer(folder):
        report.settings["tokenizer"] = "inside"
    else:
        report.missing.append("tokenizer: none inside; give build() one with tokenizer=...")
    return report


def inspect_tower(folder: Path) -> Inspection:
    """Find out what a vision tower's folder holds; an LmmError says what a folder is when it is none."""
    other = other_encoder(folder)
    config, preprocess = (other, None) if other is not None else encoder_shape(folder)
    kind = type(config).__name__.removesuffix("Config") if other is not None else hf_type(config)
    report = Inspection(folder, f"vision tower ({kind})", [Part("encoder", describe(config, "encoder"))], weight_bytes(folder))
    layouts = () if other is not None else HF_ENCODERS[hf_type(config)].layouts
    _alone(report, folder, config, layouts)
    if preprocess is not None:
        report.settings["preprocessing"] = describe_preprocess(preprocess)
        sizes = {f"{width}x{height}": preprocess.grid(width, height) for width, height in SIZES}
        report.image_tokens = {size: grid.rows for size, grid in sizes.items()}
    return report


def _alone(report: Inspection, folder: Path, config: Any, layouts: tuple[KeyMap, ...]) -> None:
    """Count the parameters of the one part and compare its names with those in the file."""
    part = report.parts[0]
    try:
        with torch.device("meta"):
            module = config.build()
    except ImportError as error:
        report.missing.append(f"package: {error}")
        return
    part.parameters = sum(parameter.numel() for parameter in module.parameters())
    if not has_weights(folder):
        report.missing.append("weights: none inside")
        return
    files = open_weights(folder)
    part.dtypes = tuple(sorted(set(files.dtypes.values())))
    if layouts:
        report.problems += weight_problems(files, layouts, module)
