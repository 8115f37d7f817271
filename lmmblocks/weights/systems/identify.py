"""What a folder holds: the first system that reads it, or a message that says what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...files.foreign import folder_kind
from ...spec import LmmError
from .. import lora
from ..files.file_checks import listing
from ..files.tensors import CONFIG, has_weights
from ..parts.hf_decoders import knows_decoder
from ..parts.hf_encoders import CONTAINERS, HF_ENCODERS
from .system import NATIVE_CONFIG, ModelFolder, System


def identify(folder: ModelFolder) -> System:
    """Say what a folder is, by the files in it and the keys of its config.

    Raises:
        LmmError: no model that is read whole, or two in one folder.
    """
    path = folder.path
    if lora.has_adapter(path) and has_weights(path):
        raise LmmError(
            f"{path} holds a whole model and a LoRA adapter beside it, expected one of them: move {lora.CONFIG} and the adapter's weights "
            f"into a folder of their own, and load that with base=... if it belongs to this model"
        )
    if folder.system is not None:
        return folder.system
    if (path / CONFIG).is_file():
        raise LmmError(other_type(folder))
    raise LmmError(f"{path} is no model folder: it holds neither {NATIVE_CONFIG} nor {CONFIG}, but {listing(path)}{folder_kind(path)}")


def other_type(folder: ModelFolder) -> str:
    """Return the message about a model that is none of those that are read whole."""
    types = ", ".join(repr(system.model_type) for system in folder.systems if system.model_type)
    others = "".join(f", or {system.known_by}" for system in folder.systems if system.known_by)
    kind = folder.values.get("model_type")
    return f"{folder.path / CONFIG} has model_type {kind!r}, expected one of {types} of transformers{others}: {_instead(folder.values)}"


def _instead(values: Mapping[str, Any]) -> str:
    """Say what to do with a model that is no whole one of ours."""
    kind = values.get("model_type")
    if knows_decoder(values) and kind not in CONTAINERS and "vision_config" not in values:
        return "a language model alone is taken with build(..., decoder=...)"
    if kind in HF_ENCODERS or kind in CONTAINERS:
        return "a vision tower is taken with build(..., encoder=...)"
    if kind is None:
        return "give the config.json that was saved with the model"
    return "give a folder of such a model, or build one of parts with build(..., encoder=..., decoder=...)"
