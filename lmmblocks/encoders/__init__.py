"""Encoders: pixels to packed patch features, each declaring its grid, prefix tokens and preprocessing."""

from .clip import CLIP, CLIPConfig
from .dinov2 import DINOv2, DINOv2Config
from .siglip import SigLIP, SigLIPConfig
from .siglip2_naflex import NaFlex, NaFlexConfig

__all__ = ["CLIP", "CLIPConfig", "DINOv2", "DINOv2Config", "NaFlex", "NaFlexConfig", "SigLIP", "SigLIPConfig"]
