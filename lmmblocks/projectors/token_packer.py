"""TokenPacker: a coarse query per square of patches looks at the patches of its square, in several layers of the encoder."""

from __future__ import annotations

from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..spec import FeatureSpec, Grid, LmmError, Segments, VisionFeatures
from ..spec.options import remembers_options
from .grids import by_grid, channels_first, regions, shrunk, whole
from .resampler import FusedAttention

_EPS = 1e-6


def _mlp(in_dim: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, dim), nn.GELU(), nn.Linear(dim, dim))


@remembers_options
class TokenPacker(nn.Module):
    """Each ``factor x factor`` square becomes one row.

    The queries are the last of the encoder's layers, made coarser by bilinear interpolation; keys and values are all of them, joined.

    Args:
        in_dim: encoder width ``C`` of all layers together.
        out_dim: decoder width ``D``.
        layers: how many layers of the encoder are joined; a composed model takes it from the encoder.
        factor: side of a square.
        dim: width of the attention.
        heads: attention heads.

    Raises:
        LmmError: an option of no such value.

    Source: Li et al., arXiv 2407.02392; names of ``TokenPacker`` in ``llava/model/multimodal_projector/builder.py``. The released models
    join layers 12, 16, 22 and 23 of CLIP-L: ``CLIPConfig(select=(12, 16, 22, 23))``.

    >>> TokenPacker(8, 16, layers=2, dim=8, heads=2).out_grid(Grid(24, 24))
    Grid(h=12, w=12)
    """

    requires = frozenset({"patches", "layers"})

    def __init__(self, in_dim: int, out_dim: int, layers: int = 1, factor: int = 2, dim: int = 1024, heads: int = 8) -> None:
        super().__init__()
        whole("token_packer", layers=layers, factor=factor, dim=dim, heads=heads)
        if in_dim % layers or dim % heads:
            raise LmmError(
                f"projector 'token_packer': the encoder's width {in_dim} must be a multiple of layers {layers}, and dim {dim} of heads {heads}"
            )
        self.layers, self.factor = layers, factor
        self.q_proj_1 = nn.Linear(in_dim // layers, dim, bias=False)
        self.k_proj_1, self.v_proj_1 = _mlp(in_dim, dim), _mlp(in_dim, dim)
        self.ln_q_1, self.ln_k_1, self.ln_v_1 = (nn.LayerNorm(dim, eps=_EPS) for _ in range(3))
        self.clip_attn = FusedAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))

    @classmethod
    def from_spec(cls, spec: FeatureSpec, out_dim: int, **options: Any) -> TokenPacker:
        """Make it for an encoder: the number of joined layers is the encoder's."""
        return cls(spec.dim, out_dim, **{"layers": max(1, len(spec.layers)), **options})

    def out_grid(self, grid: Grid) -> Grid:
        """One row per square.

        Raises:
            LmmError: the grid isn't divisible by ``factor``.
        """
        return shrunk("token_packer", grid, self.factor, uneven="take one of these")

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image.

        Raises:
            LmmError: the encoder gives another number of layers, or a grid that isn't divisible.
        """
        if len(features.layers) != self.layers:
            raise LmmError(
                f"projector 'token_packer' was made for {self.layers} layers, the encoder gives {sorted(features.layers)}: "
                f"set layers={len(features.layers)}, or select {self.layers} layers in the encoder"
            )
        grids = features.grids
        count = sum(self.out_grid(grid).rows for grid in grids)
        last = next(reversed(features.layers.values()))
        queries = self.ln_q_1(self.q_proj_1(by_grid(last, grids, channels_first(self._coarser))))
        keys = regions(self.ln_k_1(self.k_proj_1(features.patches)), grids, self.factor).flatten(0, 1)
        values = regions(self.ln_v_1(self.v_proj_1(features.patches)), grids, self.factor).flatten(0, 1)
        squares = Segments.uniform(count, 1, self.factor**2, device=queries.device)
        return self.mlp(self.clip_attn(queries, keys, values, squares))

    def _coarser(self, maps_ICHW: Tensor) -> Tensor:
        h, w = (max(1, side // self.factor) for side in maps_ICHW.shape[-2:])
        return F.interpolate(maps_ICHW.float(), size=(h, w), mode="bilinear", align_corners=False).to(maps_ICHW.dtype)
