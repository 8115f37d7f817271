"""SigLIP 2's vision transformer for images of any shape (NaFlex), native and packed: no image is padded to another's length.

The table of positions is a square that is scaled to each image's grid; patches come ready cut, so the patch embedding is a linear layer.
Everything else is SigLIP's. Source: Tschannen et al., arXiv 2502.14786, 2.4.2; names as ``Siglip2VisionModel`` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..images.native import NativePreprocess
from ..images.pixels import PatchPixels
from ..spec import PATCHES, ByKeywords, Grid, LmmError, Segments, VisionFeatures
from ..spec.fields import field_problems
from .siglip import SigLIPTower
from .vit import WITHOUT_CLS, ViTEncoder, activation_problems, hidden_states, select_problems


@dataclass(frozen=True)
class NaFlexConfig(metaclass=ByKeywords):
    """Shape of a SigLIP 2 vision transformer for images of any shape; defaults are Base/16.

    Attributes:
        dim: width ``C``.
        layers: transformer layers in the checkpoint.
        heads: attention heads.
        mlp_dim: hidden width of the MLP.
        patch: side of a patch in pixels.
        positions: rows of the table of positions, a square number.
        max_patches: most patches of an image; its factor is chosen so that it has as many as it can.
        activation: ``gelu_pytorch_tanh``, or another of Hugging Face's names.
        eps: of the layer norms.
        head: the checkpoint has the attention-pooling head.
        select: hidden states that make up the features, Hugging Face indexing; several are joined on channels.
        final_norm: the last hidden state (-1) goes through ``post_layernorm``.
    """

    dim: int = 768
    layers: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    patch: int = 16
    positions: int = 256
    max_patches: int = 256
    activation: str = "gelu_pytorch_tanh"
    eps: float = 1e-6
    head: bool = True
    select: tuple[int, ...] = (-2,)
    final_norm: bool = False

    choices: ClassVar[tuple[str, ...]] = ("select", "final_norm", "max_patches")
    """Fields that are the user's and don't follow from the weights."""

    def __post_init__(self) -> None:
        problems = field_problems(self) or list(self._problems())
        if problems:
            raise LmmError("NaFlexConfig: " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if math.isqrt(self.positions) ** 2 != self.positions:
            yield f"positions {self.positions} is not a square number"
        if self.dim % self.heads:
            yield f"dim {self.dim} is not a multiple of heads {self.heads}"
        yield from activation_problems(self)
        yield from select_problems(self.select, self.layers)

    def default_preprocess(self) -> NativePreprocess:
        """Return SigLIP 2's preprocessing for images of any shape."""
        return NativePreprocess(self.patch, self.max_patches)

    def build(self) -> NaFlex:
        """Return the encoder with random weights."""
        return NaFlex(self)


class _Embeddings(nn.Module):
    def __init__(self, config: NaFlexConfig) -> None:
        super().__init__()
        self.side = math.isqrt(config.positions)
        self.patch_embedding = nn.Linear(3 * config.patch**2, config.dim)
        self.position_embedding = nn.Embedding(config.positions, config.dim)

    def forward(self, rows_M: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        return self.patch_embedding(rows_M) + self.positions(grids)

    def positions(self, grids: tuple[Grid, ...]) -> Tensor:
        """Return the positions of packed patches ``(M, C)``; each distinct grid is scaled once, bilinear with antialiasing in fp32."""
        table = self.position_embedding.weight
        square_1CHW = table.unflatten(0, (self.side, self.side)).permute(2, 0, 1)[None].float()
        scaled = {
            grid: F.interpolate(square_1CHW, (grid.h, grid.w), mode="bilinear", align_corners=False, antialias=True)[0].flatten(1).T.to(table.dtype)
            for grid in dict.fromkeys(grids)
        }
        return torch.cat([scaled[grid] for grid in grids]) if grids else table[:0]


class NaFlexVisionTransformer(SigLIPTower):
    """The tower itself, for packed images of any shape."""

    def __init__(self, config: NaFlexConfig) -> None:
        super().__init__(config, _Embeddings(config))

    def hidden_states(self, pixels: PatchPixels, wanted: frozenset[int]) -> dict[int, Tensor]:
        """Return ``{index: (M, C)}`` of the wanted hidden states, running no layer after the last of them."""
        x_MC = self.embeddings(pixels.rows.to(self.post_layernorm.weight.dtype), pixels.grids)
        lengths = tuple(grid.rows for grid in pixels.grids)
        most = max(lengths, default=0)
        segments = Segments(pixels.boundaries, pixels.boundaries, most, most, lengths, lengths)
        return self.normed(hidden_states(x_MC, segments, self.encoder.layers, wanted))


class NaFlex(ViTEncoder):
    """SigLIP 2 for images of any shape as an encoder block.

    >>> NaFlexConfig(dim=8, layers=2, heads=2, mlp_dim=8, positions=16).build().spec.image_size is None
    True
    """

    def __init__(self, config: NaFlexConfig, preprocess: NativePreprocess | None = None) -> None:
        super().__init__(config, preprocess or config.default_preprocess(), name="siglip2-naflex", prefix=0, offers=WITHOUT_CLS)
        self.vision_model = NaFlexVisionTransformer(config)
        self.frozen = True

    def forward(self, pixels: PatchPixels, *, need: frozenset[str] = PATCHES) -> VisionFeatures:  # type: ignore[override]
        """Encode images of any shape.

        Args:
            pixels: packed patches of ``I`` images.
            need: extras beside ``patches``, a subset of ``spec.offers``.

        Returns:
            Packed features of width ``spec.dim``, on the grids of the pixels.

        Raises:
            LmmError: pixels of another preprocessing, or something this encoder doesn't offer.
        """
        width = 3 * self.config.patch**2
        if not isinstance(pixels, PatchPixels) or pixels.rows.shape[1] != width:
            found = f"patches of width {pixels.rows.shape[1]}" if isinstance(pixels, PatchPixels) else type(pixels).__name__
            raise LmmError(f"encoder {self.name!r} needs PatchPixels of width {width}, found {found}: use its own preprocess")
        self._refuse_unknown(need)
        return self._features(self.vision_model.hidden_states(pixels, self._wanted(need)), pixels.grids, need)
