"""Encoders by one word: shape and hub id of the weights.

Sources: openai/CLIP; ``model_configs/*.json`` of open_clip for LAION's; ``convert_siglip_to_hf.py`` of transformers and
``models/proj/image_text`` of big_vision for SigLIP and SigLIP 2; ``hub/backbones.py`` of facebookresearch/dinov2;
``models/eva_vit.py`` of LAVIS for BLIP-2's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .blip2_vit import Blip2ViTConfig
from .clip import CLIPConfig
from .dinov2 import DINOv2Config
from .siglip import SigLIPConfig
from .siglip2_naflex import NaFlexConfig

CLIP_L_336 = "openai/clip-vit-large-patch14-336"
BLIP2_VIT_G = "Salesforce/blip2-itm-vit-g"
"""The smallest repository that holds the tower of BLIP-2 and InstructBLIP; what else is in it is left out."""

_CLIP_B32 = CLIPConfig(dim=768, layers=12, heads=12, mlp_dim=3072, image_size=224, patch=32)
_CLIP_B16 = replace(_CLIP_B32, patch=16)
_CLIP_L = CLIPConfig(image_size=224)
_CLIP_H = CLIPConfig(dim=1280, layers=32, heads=16, mlp_dim=5120, image_size=224, activation="gelu")
_CLIP_SMALL_G = CLIPConfig(dim=1408, layers=40, heads=16, mlp_dim=6144, image_size=224, activation="gelu")
_CLIP_BIG_G = CLIPConfig(dim=1664, layers=48, heads=16, mlp_dim=8192, image_size=224, activation="gelu")

_SO400M = SigLIPConfig()
_SIGLIP_B = SigLIPConfig(dim=768, layers=12, heads=12, mlp_dim=3072, image_size=224, patch=16)
_SIGLIP_L = SigLIPConfig(dim=1024, layers=24, heads=16, mlp_dim=4096, image_size=256, patch=16)
_SIGLIP_G = SigLIPConfig(dim=1536, layers=40, heads=16, mlp_dim=6144, image_size=256, patch=16)

_DINO_S = DINOv2Config(dim=384, layers=12, heads=6)
_DINO_B = DINOv2Config(dim=768, layers=12, heads=12)
_DINO_L = DINOv2Config()
_DINO_G = DINOv2Config(dim=1536, layers=40, heads=24, swiglu=True)


def _laion(shape: CLIPConfig) -> CLIPConfig:
    """OpenAI's shape as LAION trained it, with the exact GELU."""
    return replace(shape, activation="gelu")


def _siglip(shape: SigLIPConfig, image_size: int, patch: int = 16) -> SigLIPConfig:
    return replace(shape, image_size=image_size, patch=patch)


def _registers(shape: DINOv2Config) -> DINOv2Config:
    return replace(shape, registers=4)


ENCODERS: dict[str, tuple[Any, str]] = {
    "clip-vit-b32-224": (_CLIP_B32, "openai/clip-vit-base-patch32"),
    "clip-vit-b16-224": (_CLIP_B16, "openai/clip-vit-base-patch16"),
    "clip-vit-l-224": (_CLIP_L, "openai/clip-vit-large-patch14"),
    "clip-vit-l-336": (CLIPConfig(), CLIP_L_336),
    "clip-laion-b32-224": (_laion(_CLIP_B32), "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    "clip-laion-b16-224": (_laion(_CLIP_B16), "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    "clip-laion-l-224": (_laion(_CLIP_L), "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"),
    "clip-laion-h-224": (_CLIP_H, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "clip-laion-g-224": (_CLIP_SMALL_G, "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"),
    "clip-laion-bigg-224": (_CLIP_BIG_G, "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"),
    "siglip-base-224": (_siglip(_SIGLIP_B, 224), "google/siglip-base-patch16-224"),
    "siglip-base-256": (_siglip(_SIGLIP_B, 256), "google/siglip-base-patch16-256"),
    "siglip-base-384": (_siglip(_SIGLIP_B, 384), "google/siglip-base-patch16-384"),
    "siglip-base-512": (_siglip(_SIGLIP_B, 512), "google/siglip-base-patch16-512"),
    "siglip-large-256": (_siglip(_SIGLIP_L, 256), "google/siglip-large-patch16-256"),
    "siglip-large-384": (_siglip(_SIGLIP_L, 384), "google/siglip-large-patch16-384"),
    "siglip-so400m-224": (_siglip(_SO400M, 224, 14), "google/siglip-so400m-patch14-224"),
    "siglip-so400m-384": (_siglip(_SO400M, 384, 14), "google/siglip-so400m-patch14-384"),
    "siglip2-base-224": (_siglip(_SIGLIP_B, 224), "google/siglip2-base-patch16-224"),
    "siglip2-base-256": (_siglip(_SIGLIP_B, 256), "google/siglip2-base-patch16-256"),
    "siglip2-base-384": (_siglip(_SIGLIP_B, 384), "google/siglip2-base-patch16-384"),
    "siglip2-base-512": (_siglip(_SIGLIP_B, 512), "google/siglip2-base-patch16-512"),
    "siglip2-base32-256": (_siglip(_SIGLIP_B, 256, 32), "google/siglip2-base-patch32-256"),
    "siglip2-large-256": (_siglip(_SIGLIP_L, 256), "google/siglip2-large-patch16-256"),
    "siglip2-large-384": (_siglip(_SIGLIP_L, 384), "google/siglip2-large-patch16-384"),
    "siglip2-large-512": (_siglip(_SIGLIP_L, 512), "google/siglip2-large-patch16-512"),
    "siglip2-so400m-224": (_siglip(_SO400M, 224, 14), "google/siglip2-so400m-patch14-224"),
    "siglip2-so400m-384": (_siglip(_SO400M, 384, 14), "google/siglip2-so400m-patch14-384"),
    "siglip2-so400m16-256": (_siglip(_SO400M, 256), "google/siglip2-so400m-patch16-256"),
    "siglip2-so400m16-384": (_siglip(_SO400M, 384), "google/siglip2-so400m-patch16-384"),
    "siglip2-so400m16-512": (_siglip(_SO400M, 512), "google/siglip2-so400m-patch16-512"),
    "siglip2-giant-256": (_siglip(_SIGLIP_G, 256), "google/siglip2-giant-opt-patch16-256"),
    "siglip2-giant-384": (_siglip(_SIGLIP_G, 384), "google/siglip2-giant-opt-patch16-384"),
    "siglip2-base-naflex": (NaFlexConfig(), "google/siglip2-base-patch16-naflex"),
    "siglip2-so400m-naflex": (
        NaFlexConfig(dim=1152, layers=27, heads=16, mlp_dim=4304),
        "google/siglip2-so400m-patch16-naflex",
    ),
    "blip2-vit-g-224": (Blip2ViTConfig(), BLIP2_VIT_G),
    "dinov2-small": (_DINO_S, "facebook/dinov2-small"),
    "dinov2-base": (_DINO_B, "facebook/dinov2-base"),
    "dinov2-large": (_DINO_L, "facebook/dinov2-large"),
    "dinov2-giant": (_DINO_G, "facebook/dinov2-giant"),
    "dinov2-small-reg": (_registers(_DINO_S), "facebook/dinov2-with-registers-small"),
    "dinov2-base-reg": (_registers(_DINO_B), "facebook/dinov2-with-registers-base"),
    "dinov2-large-reg": (_registers(_DINO_L), "facebook/dinov2-with-registers-large"),
    "dinov2-giant-reg": (_registers(_DINO_G), "facebook/dinov2-with-registers-giant"),
}
"""One word for ``build(encoder=...)``: shape and hub id of the weights. The last number is the image's side in pixels; patches are 14 px for
L/14 and larger CLIPs, SigLIP's so400m, BLIP-2's and DINOv2, else 16 px unless the name says so."""
