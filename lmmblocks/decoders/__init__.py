"""Decoders: language models over packed rows that return hidden states."""

from .cache import KVCache
from .transformer import LayerContext, Transformer, TransformerConfig

__all__ = ["KVCache", "LayerContext", "Transformer", "TransformerConfig"]
