"""Projectors: patch features to rows of the decoder's width."""

from .identity import Identity
from .linear import Linear
from .mlp import MLP

__all__ = ["MLP", "Identity", "Linear"]
