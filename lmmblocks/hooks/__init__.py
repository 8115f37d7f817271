"""Layer hooks: blocks that change rows between the layers of a decoder."""

from .gated_cross_attention import GatedCrossAttention

__all__ = ["GatedCrossAttention"]
