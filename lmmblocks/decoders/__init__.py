"""Decoders: language models over packed rows that return hidden states."""

from .cache import KVCache
from .hf import HFDecoder, HFDecoderConfig
from .transformer import LayerContext, Transformer, TransformerConfig

__all__ = ["HFDecoder", "HFDecoderConfig", "KVCache", "LayerContext", "Transformer", "TransformerConfig"]
