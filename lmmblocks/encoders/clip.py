"""CLIP's vision transformer, native, with Hugging Face's parameter names.

Runs only up to the deepest layer that is asked for (LLaVA-1.5: 23 of 24); the layers after it are carried as parameters so that an
export is complete, but never computed. Source: Radford et al., arXiv 2103.00020; names as ``CLIPVisionModel`` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from .. import ops
from ..images.preprocess import ImagePreprocess, clip_preprocess
from ..spec import ByKeywords, LmmError
from ..spec.fields import field_problems
from .vit import WITH_CLS, Stack, ViTEncoder, hidden_states_of_images, shape_problems


@dataclass(frozen=True)
class CLIPConfig(metaclass=ByKeywords):
    """Shape of a CLIP vision transformer; defaults are ViT-L/14 at 336 px, as LLaVA-1.5 uses it.

    Attributes:
        dim: width ``C``.
        layers: transformer layers in the checkpoint.
        heads: attention heads.
        mlp_dim: hidden width of the MLP.
        image_size: side of the square input in pixels.
        patch: side of a patch in pixels.
        activation: ``quick_gelu`` (OpenAI), ``gelu`` (exact; LAION) or ``gelu_pytorch_tanh``.
        eps: of the layer norms.
        select: hidden states that make up the features, Hugging Face indexing; several are joined on channels.
    """

    dim: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_dim: int = 4096
    image_size: int = 336
    patch: int = 14
    activation: str = "quick_gelu"
    eps: float = 1e-5
    select: tuple[int, ...] = (-2,)

    choices: ClassVar[tuple[str, ...]] = ("select",)
    """Fields that are the user's and don't follow from the weights."""

    def __post_init__(self) -> None:
        problems = field_problems(self) or list(shape_problems(self))
        if problems:
            raise LmmError("CLIPConfig: " + "; ".join(problems))

    def default_preprocess(self) -> ImagePreprocess:
        """Return CLIP's preprocessing with LLaVA-1.5's padding."""
        return clip_preprocess(self.image_size, self.patch)

    def build(self) -> CLIP:
        """Return the encoder with random weights."""
        return CLIP(self)


class _Embeddings(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        side = config.image_size // config.patch
        self.class_embedding = nn.Parameter(torch.randn(config.dim) * config.dim**-0.5)
        self.patch_embedding = nn.Conv2d(3, config.dim, config.patch, config.patch, bias=False)
        self.position_embedding = nn.Embedding(side * side + 1, config.dim)

    def forward(self, pixels: Tensor) -> Tensor:
        patches_IPC = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        cls_IC = self.class_embedding.expand(pixels.shape[0], 1, -1)
        return torch.cat([cls_IC, patches_IPC], 1) + self.position_embedding.weight


class CLIPVisionTransformer(nn.Module):
    """The tower itself: embeddings, ``pre_layrnorm`` (the checkpoint's spelling), layers, ``post_layernorm``."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = ops.LayerNorm(config.dim, eps=config.eps)
        self.encoder = Stack(config)
        self.post_layernorm = nn.LayerNorm(config.dim, eps=config.eps)

    def hidden_states(self, pixels: Tensor, wanted: frozenset[int]) -> dict[int, Tensor]:
        """Return ``{index: (I, 1 + P, C)}`` of the wanted hidden states, running no layer after the last of them."""
        x_IPC = self.pre_layrnorm(self.embeddings(pixels))
        return hidden_states_of_images(x_IPC, self.encoder.layers, wanted)


class CLIP(ViTEncoder):
    """CLIP as an encoder block: pixels to packed patch features.

    Attributes:
        spec: what it emits.
        preprocess: how a picture becomes pixels.

    >>> CLIPConfig(dim=8, layers=2, heads=2, mlp_dim=8, image_size=28).build().spec.dim
    8
    """

    def __init__(self, config: CLIPConfig, preprocess: ImagePreprocess | None = None) -> None:
        super().__init__(config, preprocess or config.default_preprocess(), name="clip", prefix=1, offers=WITH_CLS)
        self.vision_model = CLIPVisionTransformer(config)
        self.frozen = True
