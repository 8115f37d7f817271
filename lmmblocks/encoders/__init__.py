"""Encoders: pixels to packed patch features, each declaring its grid, prefix tokens and preprocessing."""

from .clip import CLIP, CLIPConfig

__all__ = ["CLIP", "CLIPConfig"]
