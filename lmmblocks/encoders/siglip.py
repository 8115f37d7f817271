"""SigLIP's vision transformer at a fixed resolution (SigLIP and SigLIP 2), native, with Hugging Face's parameter names.

Against CLIP: no CLS token, so no prefix and no ``cls_attn``; tanh-GELU; a bias in the patch embedding; no norm before the layers. Its
attention-pooling head is carried as parameters so that an export is complete, but never computed. An image that is no whole number of
patches loses the rest at its right and lower edge: 384 px in patches of 14 px are 27x27.

Source: Zhai et al., arXiv 2303.15343; Tschannen et al., arXiv 2502.14786; names as ``SiglipVisionModel`` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from ..images.preprocess import ImagePreprocess
from ..spec import ByKeywords, LmmError
from ..spec.fields import field_problems
from .vit import MLP, WITHOUT_CLS, Stack, ViTEncoder, hidden_states_of_images, shape_problems

HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of SigLIP's pixels: bytes become -1 to 1."""


@dataclass(frozen=True)
class SigLIPConfig(metaclass=ByKeywords):
    """Shape of a SigLIP vision transformer; defaults are So400m/14 at 384 px.

    Attributes:
        dim: width ``C``.
        layers: transformer layers in the checkpoint.
        heads: attention heads.
        mlp_dim: hidden width of the MLP.
        image_size: side of the square input in pixels.
        patch: side of a patch in pixels.
        activation: ``gelu_pytorch_tanh``, or another of Hugging Face's names.
        eps: of the layer norms.
        head: the checkpoint has the attention-pooling head.
        select: hidden states that make up the features, Hugging Face indexing; several are joined on channels.
        final_norm: the last hidden state (-1) goes through ``post_layernorm``: transformers' ``last_hidden_state`` instead of its
            ``hidden_states[-1]``.
    """

    dim: int = 1152
    layers: int = 27
    heads: int = 16
    mlp_dim: int = 4304
    image_size: int = 384
    patch: int = 14
    activation: str = "gelu_pytorch_tanh"
    eps: float = 1e-6
    head: bool = True
    select: tuple[int, ...] = (-2,)
    final_norm: bool = False

    choices: ClassVar[tuple[str, ...]] = ("select", "final_norm")
    """Fields that are the user's and don't follow from the weights."""

    def __post_init__(self) -> None:
        problems = field_problems(self) or list(shape_problems(self, whole_patches=False))
        if problems:
            raise LmmError("SigLIPConfig: " + "; ".join(problems))

    def default_preprocess(self) -> ImagePreprocess:
        """Return SigLIP's preprocessing: the image is squashed to a square, whatever its shape, and brought to -1..1."""
        return ImagePreprocess(self.image_size, self.patch, "squash", HALF, HALF)

    def build(self) -> SigLIP:
        """Return the encoder with random weights."""
        return SigLIP(self)


class _Embeddings(nn.Module):
    def __init__(self, config: SigLIPConfig) -> None:
        super().__init__()
        side = config.image_size // config.patch
        self.patch_embedding = nn.Conv2d(3, config.dim, config.patch, config.patch)
        self.position_embedding = nn.Embedding(side * side, config.dim)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.patch_embedding(pixels).flatten(2).transpose(1, 2) + self.position_embedding.weight


class PoolingHead(nn.Module):
    """The parameters of SigLIP's attention pooling; features for a language model are taken before it."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, activation: str, eps: float) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, dim))
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.layernorm = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim, mlp_dim, activation)


class SigLIPTower(nn.Module):
    """Embeddings, layers, ``post_layernorm``, ``head``: what the towers of the family have besides their way from pixels to rows.

    Args:
        config: of the tower.
        embeddings: pixels to rows.
    """

    def __init__(self, config: Any, embeddings: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.embeddings = embeddings
        self.encoder = Stack(config)
        self.post_layernorm = nn.LayerNorm(config.dim, eps=config.eps)
        if config.head:
            self.head = PoolingHead(config.dim, config.heads, config.mlp_dim, config.activation, config.eps)

    def normed(self, states: dict[int, Tensor]) -> dict[int, Tensor]:
        """Put the last hidden state through ``post_layernorm`` where the config asks for it."""
        last = self.config.layers
        if self.config.final_norm and last in states:
            states[last] = self.post_layernorm(states[last])
        return states


class SigLIPVisionTransformer(SigLIPTower):
    """The tower itself, for images of one size."""

    def __init__(self, config: SigLIPConfig) -> None:
        super().__init__(config, _Embeddings(config))

    def hidden_states(self, pixels: Tensor, wanted: frozenset[int]) -> dict[int, Tensor]:
        """Return ``{index: (I, P, C)}`` of the wanted hidden states, running no layer after the last of them."""
        return self.normed(hidden_states_of_images(self.embeddings(pixels), self.encoder.layers, wanted))


class SigLIP(ViTEncoder):
    """SigLIP as an encoder block: pixels to packed patch features.

    >>> SigLIPConfig(dim=8, layers=2, heads=2, mlp_dim=8, image_size=30).build().spec.prefix
    0
    """

    def __init__(self, config: SigLIPConfig, preprocess: ImagePreprocess | None = None) -> None:
        super().__init__(config, preprocess or config.default_preprocess(), name="siglip", prefix=0, offers=WITHOUT_CLS)
        self.vision_model = SigLIPVisionTransformer(config)
        self.frozen = True
