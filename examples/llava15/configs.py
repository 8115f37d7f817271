"""LLaVA-1.5 at three sizes, and the two stages that train each: every setting of the example in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lmmblocks import presets
from lmmblocks.config import LMMConfig
from lmmblocks.train.stage import Stage, stage1, stage2

WEIGHTS = Path(__file__).parent / "weights"
"""The tiny towers, pretrained by ``examples/llava15/pretrain``."""


def llava15_7b(vision: str | None = None, language: str | None = None) -> LMMConfig:
    """LLaVA-1.5-7B from a CLIP and a Vicuna; folders or hub ids, by default the released ones."""
    return _from_sources(presets.llava15_7b(), vision, language)


def llava15_13b(vision: str | None = None, language: str | None = None) -> LMMConfig:
    """LLaVA-1.5-13B from a CLIP and a Vicuna; folders or hub ids, by default the released ones."""
    return _from_sources(presets.llava15_13b(), vision, language)


def llava15_tiny(vision: str | None = None, language: str | None = None) -> LMMConfig:
    """The same model at a size for two CPU cores, from the towers beside this file."""
    return _from_sources(presets.llava15_tiny(), vision or str(WEIGHTS / "vision"), language or str(WEIGHTS / "language"))


def _from_sources(config: LMMConfig, vision: str | None, language: str | None) -> LMMConfig:
    return replace(config, encoder_source=vision or config.encoder_source, decoder_source=language or config.decoder_source)


MODELS: dict[str, Callable[..., LMMConfig]] = {"7b": llava15_7b, "13b": llava15_13b, "tiny": llava15_tiny}


_TWO_CORES: dict[str, int] = {"micro_batch_samples": 4, "micro_batch_rows": 2048, "micro_batch_threads": 2}


def tiny_stage1() -> Stage:
    """The connector alone learns from captions, as in LLaVA-1.5; the pictures are padded because a crop would lose signs at their edges.

    The weight decay keeps its rows about as long as the embeddings of words, which the decoder was trained with.
    """
    return stage1(batch_size=8, train={"projector": 4e-3}, weight_decay=1.0, image_fit="pad", **_TWO_CORES, checkpoint_every_steps=600)


def tiny_stage2() -> Stage:
    """Connector and decoder learn from conversations."""
    return stage2(batch_size=8, train={"projector": 1e-3, "decoder": 1e-4}, clip_norm=1.0, **_TWO_CORES, checkpoint_every_steps=400)


STAGES: dict[str, tuple[Callable[[], Stage], Callable[[], Stage]]] = {
    "7b": (stage1, stage2),
    "13b": (stage1, stage2),
    "tiny": (tiny_stage1, tiny_stage2),
}
