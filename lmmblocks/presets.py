"""Models by name. A preset is a function that returns a config; a variant is ``dataclasses.replace`` of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .config import Block, LMMConfig
from .decoders.catalogue import DECODERS
from .decoders.transformer import TransformerConfig
from .encoders.catalogue import CLIP_L_336, ENCODERS
from .encoders.clip import CLIPConfig
from .encoders.tiled import TiledConfig
from .spec import LmmError, closest

__all__ = ["CLIP_L_336", "DECODERS", "ENCODERS", "PRESETS", "preset"]


def llava15_7b() -> LMMConfig:
    """LLaVA-1.5-7B: CLIP ViT-L/14-336 (hidden state -2), a two-layer MLP, Vicuna-7B v1.5. Source: arXiv 2310.03744, ``scripts/v1_5``."""
    return _llava15("lmsys/vicuna-7b-v1.5", TransformerConfig())


def llava15_13b() -> LMMConfig:
    """LLaVA-1.5-13B: as :func:`llava15_7b` with Vicuna-13B v1.5."""
    return _llava15("lmsys/vicuna-13b-v1.5", TransformerConfig(dim=5120, layers=40, heads=40, kv_heads=40, ffn_dim=13824))


def llava_next_7b() -> LMMConfig:
    """LLaVA-NeXT (1.6) 7B: as :func:`llava15_7b`, but the encoder sees pictures in tiles. Source: ``liuhaotian/llava-v1.6-vicuna-7b``."""
    config = llava15_7b()
    return replace(config, encoder=TiledConfig(config.encoder), max_length=4096)


def llava15_tiny() -> LMMConfig:
    """The same model at a size that trains on two CPU cores; its towers ship with ``examples/llava15``.

    64 tokens per image: 112 px in patches of 14 px.
    """
    return LMMConfig(
        encoder=CLIPConfig(dim=192, layers=5, heads=6, mlp_dim=768, image_size=112, patch=14),
        projector=Block("mlp", {"depth": 2}),
        decoder=TransformerConfig(dim=192, layers=5, heads=6, kv_heads=2, ffn_dim=512, vocab=1200, max_positions=2048),
        max_length=1024,
    )


def _llava15(language_model: str, decoder: TransformerConfig) -> LMMConfig:
    return LMMConfig(
        encoder=CLIPConfig(),
        projector=Block("mlp", {"depth": 2}),
        decoder=decoder,
        tokenize_mode="llava15",
        max_length=2048,
        encoder_source=CLIP_L_336,
        decoder_source=language_model,
    )


PRESETS: dict[str, Callable[[], LMMConfig]] = {
    "llava15-7b": llava15_7b,
    "llava15-13b": llava15_13b,
    "llava15-tiny": llava15_tiny,
    "llava-next-7b": llava_next_7b,
}


def preset(name: str) -> LMMConfig:
    """Return the config of a preset.

    Raises:
        LmmError: no preset of that name; the message has the closest one.

    >>> preset("llava15-13b").decoder.dim
    5120
    """
    if name not in PRESETS:
        raise LmmError(f"unknown preset {name!r}{closest(name, PRESETS)}; known: {sorted(PRESETS)}")
    return PRESETS[name]()
