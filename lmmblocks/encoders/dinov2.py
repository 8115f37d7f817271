"""DINOv2's vision transformer, with and without registers, native, with the parameter names of Hugging Face's hub files.

Against CLIP: residual branches are scaled per channel (layer scale), registers may stand after CLS, the giant has a SwiGLU MLP, and the
table of positions (518 px) is interpolated to the size that is used. The prefix is CLS and the registers.

Source: Oquab et al., arXiv 2304.07193; Darcet et al., arXiv 2309.16588; names as ``Dinov2Model`` and ``Dinov2WithRegistersModel`` of
transformers write them (``attention.attention.query``), interpolation as theirs (with antialiasing only where there are registers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from .. import ops
from ..images.preprocess import ImagePreprocess
from ..spec import ByKeywords, LmmError, Segments
from ..spec.fields import AtLeast, field_problems
from .vit import MLP, WITH_CLS, ViTEncoder, hidden_states_of_images, shape_problems, stretched_positions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Channel means of ImageNet, RGB in [0, 1]."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel standard deviations of ImageNet, RGB in [0, 1]."""


@dataclass(frozen=True)
class DINOv2Config(metaclass=ByKeywords):
    """Shape of a DINOv2 vision transformer; defaults are ViT-L/14 without registers at 224 px.

    Attributes:
        dim: width ``C``.
        layers: transformer layers in the checkpoint.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over ``dim`` (before SwiGLU takes two thirds of it).
        swiglu: gated MLP, as the giant has.
        registers: tokens after CLS that hold no patch.
        image_size: side of the square input in pixels, any multiple of ``patch``.
        trained_size: side in pixels that the table of positions was trained for.
        patch: side of a patch in pixels.
        activation: of the plain MLP.
        qkv_bias: queries, keys and values have a bias.
        mask_token: the checkpoint has the token of masked patches, which is carried.
        eps: of the layer norms.
        select: hidden states that make up the features, Hugging Face indexing; several are joined on channels.
        final_norm: the last hidden state (-1) goes through ``layernorm``: transformers' ``last_hidden_state`` instead of its
            ``hidden_states[-1]``.
    """

    dim: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_ratio: int = 4
    swiglu: bool = False
    registers: Annotated[int, AtLeast(0)] = 0
    image_size: int = 224
    trained_size: int = 518
    patch: int = 14
    activation: str = "gelu"
    qkv_bias: bool = True
    mask_token: bool = True
    eps: float = 1e-6
    select: tuple[int, ...] = (-2,)
    final_norm: bool = False

    choices: ClassVar[tuple[str, ...]] = ("select", "final_norm", "image_size")
    """Fields that are the user's and don't follow from the weights."""

    def __post_init__(self) -> None:
        problems = field_problems(self) or [*shape_problems(self), *self._own_problems()]
        if problems:
            raise LmmError("DINOv2Config: " + "; ".join(problems))

    def _own_problems(self) -> Iterator[str]:
        if self.trained_size < self.patch:
            yield f"trained_size {self.trained_size} px is smaller than patch {self.patch} px"

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLP; SwiGLU's is two thirds of it, rounded up to a multiple of 8.

        >>> DINOv2Config(dim=1536, swiglu=True).mlp_dim
        4096
        """
        wide = self.dim * self.mlp_ratio
        return (int(wide * 2 / 3) + 7) // 8 * 8 if self.swiglu else wide

    def default_preprocess(self) -> ImagePreprocess:
        """Return DINOv2's preprocessing: shortest side to 8/7 of the size (256 for 224), centre crop, ImageNet's mean and std."""
        short_px = round(self.image_size * 8 / 7)
        return ImagePreprocess(self.image_size, self.patch, "crop", IMAGENET_MEAN, IMAGENET_STD, resize_px=short_px)

    def build(self) -> DINOv2:
        """Return the encoder with random weights."""
        return DINOv2(self)


class _PatchEmbeddings(nn.Module):
    def __init__(self, config: DINOv2Config) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, config.dim, config.patch, config.patch)


class _Embeddings(nn.Module):
    def __init__(self, config: DINOv2Config) -> None:
        super().__init__()
        self.side, self.trained_side = config.image_size // config.patch, config.trained_size // config.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, config.dim))
        self.patch_embeddings = _PatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.randn(1, self.trained_side**2 + 1, config.dim) * 0.02)
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, config.dim))
        self.antialias = config.registers > 0

    def positions(self) -> Tensor:
        """Return the table at the size in use, ``(1, 1 + P, C)``: patches by bicubic interpolation in fp32, CLS as it is."""
        table = self.position_embeddings
        if self.side == self.trained_side:
            return table
        return torch.cat([table[:, :1], stretched_positions(table[0, 1:], self.side, antialias=self.antialias)[None]], 1)

    def forward(self, pixels: Tensor) -> Tensor:
        patches_IPC = self.patch_embeddings.projection(pixels).flatten(2).transpose(1, 2)
        images, table = pixels.shape[0], self.positions()
        parts = [(self.cls_token + table[:, :1]).expand(images, -1, -1)]
        if self.antialias:
            parts.append(self.register_tokens.expand(images, -1, -1))
        return torch.cat([*parts, patches_IPC + table[:, 1:]], 1)


class _Projections(nn.Module):
    def __init__(self, config: DINOv2Config) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(config.dim, config.dim, bias=config.qkv_bias) for _ in range(3))


class _Output(nn.Module):
    def __init__(self, config: DINOv2Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim)


class _Attention(nn.Module):
    """Self-attention within each image; the inner ``attention`` is how hub files nest the three projections."""

    def __init__(self, config: DINOv2Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention = _Projections(config)
        self.output = _Output(config)

    def heads_of(self, projection: nn.Linear, x: Tensor) -> Tensor:
        return projection(x).unflatten(-1, (self.heads, -1))

    def forward(self, x_TC: Tensor, segments: Segments) -> Tensor:
        own = self.attention
        q, k, v = (self.heads_of(p, x_TC) for p in (own.query, own.key, own.value))
        return self.output.dense(ops.attention(q, k, v, segments, causal=False).flatten(1))


class _LayerScale(nn.Module):
    def __init__(self, config: DINOv2Config) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(config.dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


class _SwiGLU(nn.Module):
    """Gate and value in one matrix, as the checkpoints hold them."""

    def __init__(self, config: DINOv2Config) -> None:
        super().__init__()
        self.weights_in = nn.Linear(config.dim, 2 * config.mlp_dim)
        self.weights_out = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights_out(ops.swiglu(*self.weights_in(x).chunk(2, -1)))


class _Layer(nn.Module):
    def __init__(self, config: DINOv2Config) -> None:
        super().__init__()
        self.norm1 = ops.LayerNorm(config.dim, eps=config.eps)
        self.attention = _Attention(config)
        self.layer_scale1 = _LayerScale(config)
        self.norm2 = ops.LayerNorm(config.dim, eps=config.eps)
        self.mlp = _SwiGLU(config) if config.swiglu else MLP(config.dim, config.mlp_dim, config.activation)
        self.layer_scale2 = _LayerScale(config)

    def forward(self, x_TC: Tensor, segments: Segments) -> Tensor:
        x_TC = x_TC + self.layer_scale1(self.attention(self.norm1(x_TC), segments))
        return x_TC + self.layer_scale2(self.mlp(self.norm2(x_TC)))


class _Stack(nn.Module):
    def __init__(self, config: DINOv2Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.layers))


class DINOv2(ViTEncoder):
    """DINOv2 as an encoder block: pixels to packed patch features.

    >>> DINOv2Config(dim=8, layers=2, heads=2, image_size=28, trained_size=56, registers=4).build().spec.prefix
    5
    """

    def __init__(self, config: DINOv2Config, preprocess: ImagePreprocess | None = None) -> None:
        prefix = 1 + config.registers
        super().__init__(config, preprocess or config.default_preprocess(), name="dinov2", prefix=prefix, offers=WITH_CLS)
        self.embeddings = _Embeddings(config)
        self.encoder = _Stack(config)
        self.layernorm = ops.LayerNorm(config.dim, eps=config.eps)
        self.frozen = True

    def _states(self, pixels: Tensor, wanted: frozenset[int]) -> dict[int, Tensor]:
        states = hidden_states_of_images(self.embeddings(pixels), self.encoder.layer, wanted)
        last = self.config.layers
        if self.config.final_norm and last in states:
            states[last] = self.layernorm(states[last])
        return states

    def _query_and_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        own = self.encoder.layer[layer]
        normed, attention = own.norm1(x), own.attention
        query = attention.heads_of(attention.attention.query, normed[..., :1, :])
        return query, attention.heads_of(attention.attention.key, normed)
