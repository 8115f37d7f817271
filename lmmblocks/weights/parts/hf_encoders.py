"""Vision towers of Hugging Face: ``config.json`` to our configs and back, and how their files name the tensors. One entry per model type.

Keys that a file leaves out have transformers' defaults (its classes write every key, hub files only what differs).
Source: ``configuration_clip.py``, ``configuration_siglip.py``, ``configuration_siglip2.py``, ``configuration_dinov2.py``,
``configuration_dinov2_with_registers.py``, ``configuration_blip_2.py`` and ``configuration_instructblip.py`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ...encoders.blip2_vit import Blip2ViTConfig
from ...encoders.clip import CLIPConfig
from ...encoders.dinov2 import DINOv2Config
from ...encoders.siglip import SigLIPConfig
from ...encoders.siglip2_naflex import NaFlexConfig
from ...encoders.vit import ACTIVATIONS
from ...images.preprocess import Fit
from ...spec import LmmError
from ..files.maps import BLIP2_LAYOUTS, CLIP_LAYOUTS, DINOV2_LAYOUTS, KeyMap
from .hf_values import Values, check_numbers, feature_layers, model_type, refuse, section, square_side

CLIP_DEFAULTS = {
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
LLAVA_CLIP_DEFAULTS = {
    **CLIP_DEFAULTS,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 336,
    "patch_size": 14,
}
"""The tower of a ``LlavaConfig`` without a ``vision_config``."""

SIGLIP_DEFAULTS = {
    **CLIP_DEFAULTS,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}
SIGLIP2_DEFAULTS = {**{key: value for key, value in SIGLIP_DEFAULTS.items() if key != "image_size"}, "num_patches": 256}
DINOV2_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "use_mask_token": True,
}
REGISTERS_DEFAULTS = {**DINOV2_DEFAULTS, "patch_size": 16, "num_register_tokens": 4}
BLIP2_DEFAULTS = {
    "hidden_size": 1408,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "intermediate_size": 6144,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
    "qkv_bias": True,
}
"""Of BLIP-2's tower and of InstructBLIP's, which is the same."""

_BLOCK_KEYS = {
    "hidden_size": "dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "patch_size": "patch",
    "hidden_act": "activation",
    "layer_norm_eps": "eps",
}
"""Keys of ``config.json`` that every tower has, and our fields."""

_CLIP_KEYS = {**_BLOCK_KEYS, "intermediate_size": "mlp_dim", "image_size": "image_size"}
_SIGLIP_KEYS = {**_CLIP_KEYS, "vision_use_head": "head"}
_NAFLEX_KEYS = {**_BLOCK_KEYS, "intermediate_size": "mlp_dim", "vision_use_head": "head", "num_patches": "positions"}
_DINOV2_KEYS = {
    **_BLOCK_KEYS,
    "mlp_ratio": "mlp_ratio",
    "image_size": "trained_size",
    "qkv_bias": "qkv_bias",
    "use_swiglu_ffn": "swiglu",
    "use_mask_token": "mask_token",
}
_BLIP2_KEYS = {**_CLIP_KEYS, "qkv_bias": "qkv_bias"}
_REGISTERS_KEYS = {**{k: v for k, v in _DINOV2_KEYS.items() if k != "use_mask_token"}, "num_register_tokens": "registers"}


@dataclass(frozen=True)
class HFEncoder:
    """What is known of one model type.

    Attributes:
        config: our config class.
        keys: key of ``config.json`` -> our field.
        defaults: values of keys that a file leaves out.
        layouts: how files name the tensors.
        fit: how pictures become square unless somebody says otherwise; None = as the image processor beside the weights says.
    """

    config: Callable[..., Any]
    keys: dict[str, str]
    defaults: dict[str, Any]
    layouts: tuple[KeyMap, ...]
    fit: Fit | None = None

    def read(self, kind: str, values: Values, select: tuple[int, ...]) -> Any:
        """Return our config.

        Raises:
            LmmError: values that make no sense, or that the native encoder can't compute; all reasons are listed.
        """
        got = {**self.defaults, **values}
        got |= {key: square_side(got[key], key) for key in ("image_size", "patch_size") if key in got}
        refuse(kind, got, {"hidden_act": tuple(ACTIVATIONS), "num_channels": (3,)})
        check_numbers(got, self.defaults)
        fields = {ours: got[key] for key, ours in self.keys.items()}
        if self.config is DINOv2Config:
            fields["image_size"] = fields["trained_size"]
        return self.config(**fields, select=select)

    def write(self, kind: str, config: Any) -> dict[str, Any]:
        """Return what transformers reads."""
        return {"model_type": kind, **{key: getattr(config, ours) for key, ours in self.keys.items()}, "num_channels": 3}


HF_ENCODERS = {
    "clip_vision_model": HFEncoder(CLIPConfig, _CLIP_KEYS, CLIP_DEFAULTS, CLIP_LAYOUTS, "pad"),
    "siglip_vision_model": HFEncoder(SigLIPConfig, _SIGLIP_KEYS, SIGLIP_DEFAULTS, CLIP_LAYOUTS),
    "siglip2_vision_model": HFEncoder(NaFlexConfig, _NAFLEX_KEYS, SIGLIP2_DEFAULTS, CLIP_LAYOUTS),
    "dinov2": HFEncoder(DINOv2Config, _DINOV2_KEYS, DINOV2_DEFAULTS, DINOV2_LAYOUTS),
    "dinov2_with_registers": HFEncoder(DINOv2Config, _REGISTERS_KEYS, REGISTERS_DEFAULTS, DINOV2_LAYOUTS),
    "blip_2_vision_model": HFEncoder(Blip2ViTConfig, _BLIP2_KEYS, BLIP2_DEFAULTS, BLIP2_LAYOUTS),
    "instructblip_vision_model": HFEncoder(Blip2ViTConfig, _BLIP2_KEYS, BLIP2_DEFAULTS, BLIP2_LAYOUTS),
}
"""Towers by ``model_type``. CLIP's own image processor knows the crop alone, so its file doesn't say what a LLaVA does: it pads."""

CONTAINERS = {
    "clip": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
    "llava": "clip_vision_model",
    "blip-2": "blip_2_vision_model",
    "instructblip": "instructblip_vision_model",
}
"""Models with a tower inside -> what its ``vision_config`` is when it doesn't say."""

_IN_LLAVA = tuple(kind for kind, entry in HF_ENCODERS.items() if entry.config is not Blip2ViTConfig)
"""transformers' ``AutoModel`` makes no BLIP-2 tower alone, so no LLaVA of its has one."""


def encoder_from_hf(values: Values, *, select: tuple[int, ...] = (-2,)) -> Any:
    """Return the config of the encoder that a ``config.json`` describes: a tower alone, or the one inside CLIP, SigLIP, LLaVA, BLIP-2 or
    InstructBLIP.

    Args:
        values: of ``config.json``.
        select: hidden states that make up the features; LLaVA's file says it itself.

    Raises:
        LmmError: another type of model, or one that the native encoder can't compute; all reasons are listed.
    """
    kind = model_type(values, (*HF_ENCODERS, *CONTAINERS))
    if kind == "llava":
        return llava_vision(values)
    if kind in CONTAINERS:
        return _read({"model_type": CONTAINERS[kind], **section(values, "vision_config")}, "config.json, vision_config,", select)
    return _read(values, "config.json", select)


def llava_vision(values: Values) -> Any:
    """Return the config of the tower inside a ``LlavaConfig``; an empty section means LLaVA-1.5's, as transformers has it."""
    vision = section(values, "vision_config")
    defaults = {"model_type": "clip_vision_model", **({} if vision else LLAVA_CLIP_DEFAULTS)}
    return _read({**defaults, **vision}, "config.json, vision_config,", feature_layers(values.get("vision_feature_layer", -2)), _IN_LLAVA)


def _read(values: Values, where: str, select: tuple[int, ...], known: Collection[str] = tuple(HF_ENCODERS)) -> Any:
    kind = model_type(values, known, where)
    return HF_ENCODERS[kind].read(kind, values, select)


def encoder_to_hf(config: Any) -> dict[str, Any]:
    """Return the ``config.json`` of a tower.

    Raises:
        LmmError: an encoder that transformers doesn't have.
    """
    kind = hf_type(config)
    return HF_ENCODERS[kind].write(kind, config)


def hf_type(config: Any) -> str:
    """Return the ``model_type`` of an encoder's config.

    Raises:
        LmmError: an encoder that transformers doesn't have.
    """
    for kind, entry in HF_ENCODERS.items():
        if type(config) is entry.config and ("num_register_tokens" in entry.keys) == (getattr(config, "registers", 0) > 0):
            return kind
    known = sorted({entry.config.__name__ for entry in HF_ENCODERS.values()})
    raise LmmError(f"transformers has no encoder for {type(config).__name__}; it has some for {known}: save with format='native'")


def select_strategy(config: Any) -> str:
    """Return ``vision_feature_select_strategy`` of a LLaVA with this tower: ``default`` drops the first token, ``full`` drops none.

    Raises:
        LmmError: a tower with registers, which transformers' LLaVA would take for patches.
    """
    if isinstance(config, DINOv2Config) and config.registers:
        raise LmmError("transformers' LLaVA has no place for DINOv2 with registers: it would take them for patches: save with format='native'")
    return "default" if isinstance(config, (CLIPConfig, DINOv2Config)) else "full"


def clip_from_hf(values: Values, *, select: tuple[int, ...] = (-2,)) -> CLIPConfig:
    """As :func:`encoder_from_hf`, for those who need CLIP.

    Raises:
        LmmError: also for another encoder.
    """
    config = encoder_from_hf(values, select=select)
    if not isinstance(config, CLIPConfig):
        raise LmmError(f"config.json describes {type(config).__name__}, expected a CLIP vision tower")
    return config


def clip_to_hf(config: CLIPConfig) -> dict[str, Any]:
    """Return a ``CLIPVisionConfig``."""
    return encoder_to_hf(config)
