"""The vision transformer of Qwen-VL (open_clip's ViT-bigG/14, trained on), native.

Against CLIP: no CLS token, so no prefix and no ``cls_attn``; queries, keys and values are one matrix whose rows go head by head; the table of
positions has the size that open_clip trained, 16x16, and is stretched to the patches of larger images in every pass. Nothing is computed after
the last layer: Qwen-VL's connector (``projectors/resampler.py``) reads the last hidden state, which is the default of ``select``.

Source: Bai et al., arXiv 2308.12966; ``visual.py`` of Qwen/Qwen-VL. Names are those of CLIP and BLIP-2 in transformers, which has no such model;
``weights/systems/qwen_vl.py`` knows the original's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from ..images.preprocess import ImagePreprocess, clip_preprocess
from ..spec import ByKeywords, LmmError
from ..spec.fields import field_problems
from .vit import (
    WITHOUT_CLS,
    FusedAttention,
    FusedLayer,
    Stack,
    ViTEncoder,
    hidden_states_of_images,
    shape_problems,
    stretched_positions,
)


@dataclass(frozen=True)
class QwenViTConfig(metaclass=ByKeywords):
    """Shape of Qwen-VL's vision transformer; defaults are those of Qwen-VL and Qwen-VL-Chat.

    Attributes:
        dim: width ``C``.
        layers: transformer layers in the checkpoint.
        heads: attention heads.
        mlp_dim: hidden width of the MLP.
        image_size: side of the square input in pixels, any multiple of ``patch``.
        trained_size: side in pixels that the table of positions was trained for.
        patch: side of a patch in pixels.
        activation: ``gelu`` (exact), or another of Hugging Face's names.
        eps: of the layer norms.
        select: hidden states that make up the features, Hugging Face indexing; several are joined on channels.
    """

    dim: int = 1664
    layers: int = 48
    heads: int = 16
    mlp_dim: int = 8192
    image_size: int = 448
    trained_size: int = 224
    patch: int = 14
    activation: str = "gelu"
    eps: float = 1e-6
    select: tuple[int, ...] = (-1,)

    choices: ClassVar[tuple[str, ...]] = ("select", "image_size")
    """Fields that are the user's and don't follow from the weights."""

    def __post_init__(self) -> None:
        problems = field_problems(self) or [*shape_problems(self), *self._own_problems()]
        if problems:
            raise LmmError("QwenViTConfig: " + "; ".join(problems))

    def _own_problems(self) -> Iterator[str]:
        if self.trained_size < self.patch:
            yield f"trained_size {self.trained_size} px is smaller than patch {self.patch} px"

    def default_preprocess(self) -> ImagePreprocess:
        """Return Qwen-VL's preprocessing: the image is squashed to a square, whatever its shape, with CLIP's mean and std."""
        return clip_preprocess(self.image_size, self.patch, "squash")

    def build(self) -> QwenViT:
        """Return the encoder with random weights."""
        return QwenViT(self)


class _Embeddings(nn.Module):
    def __init__(self, config: QwenViTConfig) -> None:
        super().__init__()
        self.side = config.image_size // config.patch
        self.patch_embedding = nn.Conv2d(3, config.dim, config.patch, config.patch, bias=False)
        self.position_embedding = nn.Parameter(torch.randn((config.trained_size // config.patch) ** 2, config.dim) * config.dim**-0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.patch_embedding(pixels).flatten(2).transpose(1, 2) + stretched_positions(self.position_embedding, self.side)


def _layer(config: QwenViTConfig) -> FusedLayer:
    return FusedLayer(config, FusedAttention(config.dim, config.heads, by_head=True))


class QwenVisionTransformer(nn.Module):
    """The tower itself: embeddings, a norm, layers."""

    def __init__(self, config: QwenViTConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.dim, eps=config.eps)
        self.encoder = Stack(config, _layer)

    def hidden_states(self, pixels: Tensor, wanted: frozenset[int]) -> dict[int, Tensor]:
        """Return ``{index: (I, P, C)}`` of the wanted hidden states, running no layer after the last of them."""
        return hidden_states_of_images(self.pre_layrnorm(self.embeddings(pixels)), self.encoder.layers, wanted)


class QwenViT(ViTEncoder):
    """Qwen-VL's tower as an encoder block: pixels to packed patch features.

    >>> QwenViTConfig(dim=8, layers=2, heads=2, mlp_dim=8, image_size=56, trained_size=28).build().spec.prefix
    0
    """

    def __init__(self, config: QwenViTConfig, preprocess: ImagePreprocess | None = None) -> None:
        super().__init__(config, preprocess or config.default_preprocess(), name="qwen_vit", prefix=0, offers=WITHOUT_CLS)
        self.vision_model = QwenVisionTransformer(config)
        self.frozen = True
