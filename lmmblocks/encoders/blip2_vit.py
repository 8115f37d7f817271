"""The vision transformer of BLIP-2 and InstructBLIP (EVA-CLIP ViT-g/14 without its last layer), native, with Hugging Face's parameter names.

Against CLIP: queries, keys and values are one matrix (``self_attn.qkv``), a bias in the patch embedding, positions and CLS are plain
parameters, no norm before the layers. The Q-Formers of BLIP-2 and InstructBLIP read all tokens of the last hidden state, CLS among them, after
``post_layernorm``: the defaults of ``select`` and ``final_norm``; their option ``prefix`` asks for CLS.

Source: Li et al., arXiv 2301.12597; Fang et al., arXiv 2211.07636; names as ``Blip2VisionModel`` and ``InstructBlipVisionModel`` of
transformers, which are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from ..images.preprocess import ImagePreprocess, clip_preprocess
from ..spec import ByKeywords, LmmError
from ..spec.fields import field_problems
from .vit import (
    WITH_CLS,
    FusedAttention,
    FusedLayer,
    Stack,
    ViTEncoder,
    hidden_states_of_images,
    shape_problems,
)


@dataclass(frozen=True)
class Blip2ViTConfig(metaclass=ByKeywords):
    """Shape of a BLIP-2 vision transformer; defaults are the ViT-g/14 at 224 px, as InstructBLIP uses it.

    Attributes:
        dim: width ``C``.
        layers: transformer layers in the checkpoint.
        heads: attention heads.
        mlp_dim: hidden width of the MLP.
        image_size: side of the square input in pixels.
        patch: side of a patch in pixels.
        activation: ``gelu`` (exact), or another of Hugging Face's names.
        eps: of the layer norms.
        qkv_bias: queries, keys and values have a bias.
        select: hidden states that make up the features, Hugging Face indexing; several are joined on channels.
        final_norm: the last hidden state (-1) goes through ``post_layernorm``: transformers' ``last_hidden_state`` instead of its
            ``hidden_states[-1]``.
    """

    dim: int = 1408
    layers: int = 39
    heads: int = 16
    mlp_dim: int = 6144
    image_size: int = 224
    patch: int = 14
    activation: str = "gelu"
    eps: float = 1e-6
    qkv_bias: bool = True
    select: tuple[int, ...] = (-1,)
    final_norm: bool = True

    choices: ClassVar[tuple[str, ...]] = ("select", "final_norm")
    """Fields that are the user's and don't follow from the weights."""

    def __post_init__(self) -> None:
        problems = field_problems(self) or list(shape_problems(self))
        if problems:
            raise LmmError("Blip2ViTConfig: " + "; ".join(problems))

    def default_preprocess(self) -> ImagePreprocess:
        """Return BLIP's preprocessing: the image is squashed to a square, whatever its shape, with CLIP's mean and std."""
        return clip_preprocess(self.image_size, self.patch, "squash")

    def build(self) -> Blip2ViT:
        """Return the encoder with random weights."""
        return Blip2ViT(self)


class _Embeddings(nn.Module):
    def __init__(self, config: Blip2ViTConfig) -> None:
        super().__init__()
        side = config.image_size // config.patch
        self.class_embedding = nn.Parameter(torch.randn(1, 1, config.dim) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(1, side * side + 1, config.dim) * 0.02)
        self.patch_embedding = nn.Conv2d(3, config.dim, config.patch, config.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        patches_IPC = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(pixels.shape[0], -1, -1), patches_IPC], 1) + self.position_embedding


def _layer(config: Blip2ViTConfig) -> FusedLayer:
    return FusedLayer(config, FusedAttention(config.dim, config.heads, bias=config.qkv_bias))


class Blip2VisionTransformer(nn.Module):
    """The tower itself: embeddings, layers, ``post_layernorm``."""

    def __init__(self, config: Blip2ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = Stack(config, _layer)
        self.post_layernorm = nn.LayerNorm(config.dim, eps=config.eps)

    def hidden_states(self, pixels: Tensor, wanted: frozenset[int]) -> dict[int, Tensor]:
        """Return ``{index: (I, 1 + P, C)}`` of the wanted hidden states, running no layer after the last of them."""
        states = hidden_states_of_images(self.embeddings(pixels), self.encoder.layers, wanted)
        last = self.config.layers
        if self.config.final_norm and last in states:
            states[last] = self.post_layernorm(states[last])
        return states


class Blip2ViT(ViTEncoder):
    """BLIP-2's tower as an encoder block: pixels to packed patch features.

    >>> Blip2ViTConfig(dim=8, layers=2, heads=2, mlp_dim=8, image_size=28).build().spec.prefix
    1
    """

    def __init__(self, config: Blip2ViTConfig, preprocess: ImagePreprocess | None = None) -> None:
        super().__init__(config, preprocess or config.default_preprocess(), name="blip2_vit", prefix=1, offers=WITH_CLS)
        self.vision_model = Blip2VisionTransformer(config)
        self.frozen = True
