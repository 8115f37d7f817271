"""Folders of encoders in the formats of timm and open_clip, told apart from transformers' by their content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files.tensors import read_json

_OPEN_CLIP_CONFIG = "open_clip_config.json"


def other_encoder(folder: Path) -> Any:
    """Return the encoder config of a folder that timm or open_clip wrote; None when it is neither, or transformers reads it too."""
    values = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "model_type" in values:
        return None
    if "architecture" in values:
        from ...encoders.timm import TimmConfig

        return TimmConfig.of_folder(folder, values)
    if (folder / _OPEN_CLIP_CONFIG).is_file():
        from ...encoders.open_clip import OpenCLIPConfig

        return OpenCLIPConfig.of_folder(folder, read_json(folder / _OPEN_CLIP_CONFIG))
    return None
