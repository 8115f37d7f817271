"""One cross-attention from learned queries to the patches, with 2-D sine-cosine positions on both (Qwen-VL)."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..spec import PATCHES, Grid, LmmError, Segments, VisionFeatures
from ..spec.options import remembers_options
from .grids import by_grid, whole

_EPS = 1e-6


def sincos_2d(side: int, dim: int) -> Tensor:
    """Return fp32 ``(side * side, dim)``: the first half of the channels encodes the column, the other half the row (MAE's order).

    Each half is ``sin(place * w)`` and after it ``cos(place * w)`` with ``w_i = 10000 ** (-i / (dim / 4))``.
    """
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    place = torch.cat([angles.sin(), angles.cos()], 1)
    columns, rows = place.expand(side, -1, -1), place[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], -1).flatten(0, 1).float()


class FusedAttention(nn.Module):
    """Attention with the parameters of ``torch.nn.MultiheadAttention``, packed.

    Args:
        dim: width of queries, keys, values and output.
        heads: attention heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight, self.in_proj_bias = nn.Parameter(torch.empty(3 * dim, dim)), nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
        parts = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3))
        q, k, v = (F.linear(rows, weight, bias).unflatten(-1, (self.heads, -1)) for rows, weight, bias in parts)
        return self.out_proj(ops.attention(q, k, v, segments, causal=False).flatten(1))


class _Pool(nn.Module):
    """Qwen-VL's ``attn_pool``."""

    def __init__(self, in_dim: int, dim: int, grid: int, heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.query = nn.Parameter(torch.randn(grid * grid, dim) * 0.02)
        self.register_buffer("pos_embed", sincos_2d(grid, dim))
        self.kv_proj = nn.Linear(in_dim, dim, bias=False) if in_dim != dim else nn.Identity()
        self.attn = FusedAttention(dim, heads)
        self.ln_q, self.ln_kv = nn.LayerNorm(dim, eps=_EPS), nn.LayerNorm(dim, eps=_EPS)

    def positions(self, grid: Grid) -> Tensor:
        """Return the positions of an image's patches, ``(H, W, D)``: the queries' own, stretched to the grid where it is another."""
        table: Tensor = self.pos_embed.unflatten(0, (self.grid, self.grid))
        if (grid.h, grid.w) == (self.grid, self.grid):
            return table
        stretched = F.interpolate(table.float().permute(2, 0, 1)[None], size=(grid.h, grid.w), mode="bicubic", align_corners=False)
        return stretched[0].permute(1, 2, 0).to(table.dtype)

    def forward(self, features: VisionFeatures) -> Tensor:
        images, grids = len(features.grids), features.grids
        values = self.ln_kv(self.kv_proj(features.patches))
        keys = by_grid(values, grids, lambda maps: (maps + self.positions(Grid(*maps.shape[1:3]))).flatten(1, 2))
        queries = (self.ln_q(self.query) + self.pos_embed).expand(images, -1, -1).flatten(0, 1)
        segments = Segments.of([self.grid**2] * images, [grid.rows for grid in grids], device=values.device)
        return self.attn(queries, keys, values, segments)


@remembers_options
class Resampler(nn.Module):
    """Any image becomes ``grid x grid`` rows, as in Qwen-VL: attention, LayerNorm, a square matrix.

    Args:
        in_dim: encoder width ``C``.
        out_dim: decoder width ``D``, which is the width of the attention too; a multiple of 4.
        grid: side of the square of queries.
        heads: attention heads; None = one for every 128 of ``out_dim``.
        post: the LayerNorm and the matrix after the attention.

    Raises:
        LmmError: an option of no such value.

    Source: Bai et al., arXiv 2308.12966; names of ``visual.py`` of Qwen/Qwen-VL: ``attn_pool.*``, ``ln_post.*``, ``proj``.

    >>> Resampler(8, 16, grid=4, heads=2).out_grid(Grid(32, 20))
    Grid(h=4, w=4)
    """

    requires = PATCHES

    def __init__(self, in_dim: int, out_dim: int, grid: int = 16, heads: int | None = None, post: bool = True) -> None:
        super().__init__()
        chosen = max(1, out_dim // 128) if heads is None else heads
        whole("resampler", grid=grid, heads=chosen)
        if out_dim % 4 or out_dim % chosen:
            raise LmmError(f"projector 'resampler' needs a width that is a multiple of 4 and of its {chosen} heads, found {out_dim}: set heads=...")
        self.attn_pool = _Pool(in_dim, out_dim, grid, chosen)
        self.ln_post = nn.LayerNorm(out_dim, eps=_EPS) if post else None
        if post:
            self.proj = nn.Parameter(torch.randn(out_dim, out_dim) * out_dim**-0.5)

    def out_grid(self, grid: Grid) -> Grid:
        """One row per query."""
        return Grid(self.attn_pool.grid, self.attn_pool.grid)

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image."""
        rows = self.attn_pool(features)
        return rows if self.ln_post is None else self.ln_post(rows) @ self.proj
