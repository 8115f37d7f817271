"""Spatial vision aggregator: each query looks at its own window of the image in every tower (Cambrian-1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .. import ops
from ..spec import FeatureSpec, Grid, LmmError, Segments, VisionFeatures
from ..spec.options import remembers_options
from .grids import regions, whole


class _NormLinear(nn.Sequential):
    def __init__(self, dim: int) -> None:
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False))


class _Attention(nn.Module):
    """One softmax over the windows of all towers; every tower has projections of its own."""

    def __init__(self, dim: int, towers: int, heads: int) -> None:
        super().__init__()
        self.heads, self.towers = heads, towers
        self.q_proj = _NormLinear(dim)
        for index in range(towers):
            self.add_module(f"k_proj_{index}", _NormLinear(dim))
            self.add_module(f"v_proj_{index}", _NormLinear(dim))
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, queries_QC: Tensor, windows: Sequence[Tensor], segments: Segments) -> Tensor:
        q = self.q_proj(queries_QC).unflatten(-1, (self.heads, -1))
        k, v = (
            torch.cat([self.get_submodule(f"{name}_{index}")(window) for index, window in enumerate(windows)], 1)
            .flatten(0, 1)
            .unflatten(-1, (self.heads, -1))
            for name in ("k_proj", "v_proj")
        )
        return self.o_proj(ops.attention(q, k, v, segments, causal=False).flatten(1))


class _MLP(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.linear_2(nn.functional.gelu(self.linear_1(rows)))


class _Layer(nn.Module):
    def __init__(self, dim: int, sides: Sequence[int], heads: int) -> None:
        super().__init__()
        self.proj_context, self.proj_in = nn.Linear(dim, dim, bias=False), nn.Linear(2 * dim, dim, bias=False)
        self.proj_out, self.norm = _MLP(dim), nn.LayerNorm(dim)
        self.cross_attn = _Attention(dim, len(sides), heads)
        for index, side in enumerate(sides):
            if side > 1:
                self.register_parameter(f"pos_embed_{index}", nn.Parameter(torch.randn(side**2, dim)))

    def forward(self, queries_QC: Tensor, context_QC: Tensor, windows: Sequence[Tensor], segments: Segments) -> Tensor:
        """``windows``: ``(Q, side * side, C)`` of each tower."""
        placed = [window + getattr(self, f"pos_embed_{index}", 0) for index, window in enumerate(windows)]
        rows = self.proj_in(torch.cat([queries_QC, self.proj_context(context_QC)], -1))
        rows = self.norm(rows + self.cross_attn(rows, placed, segments))
        return self.proj_out(rows) + queries_QC


class _Sampler(nn.Module):
    def __init__(self, layers: list[_Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


@remembers_options
class SVA(nn.Module):
    """A grid of queries, all alike at first; each sees a window of ``windows[t] x windows[t]`` patches of tower ``t`` and the image's mean.

    The grid of queries follows from the windows: the first tower's grid divided by ``windows[0]``; that of every other tower must give the
    same. Cambrian's 24 x 24 queries over towers of 24 x 24 and 96 x 96 patches are ``windows=(1, 4)``.

    Args:
        in_dim: encoder width ``C``; not used where ``dims`` is given.
        out_dim: decoder width ``D``.
        dims: width of each tower; None = one tower of ``in_dim``. A composed model takes it from the encoder.
        windows: side of a query's window in each tower; None = 1 for each. A composed model takes it from the grids of the towers.
        dim: width inside.
        depth: layers of attention.
        heads: attention heads.

    Raises:
        LmmError: an option of no such value.

    Source: Tong et al., arXiv 2406.16860; ``cambrian/model/vision_sampler.py`` and ``cambrian_arch.py``, whose names are kept
    (``mm_projector_aux_*``, ``vision_sampler_0``, ``vision_query``, ``mm_projector``). One group of queries, as the released models have;
    the rows at the ends of lines (``image_newline``) are not part of it.

    >>> SVA(8, 16, dims=(4, 4), windows=(1, 2), dim=8, heads=2).out_grid(Grid(6, 6))
    Grid(h=6, w=6)
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        dims: Sequence[int] | None = None,
        windows: Sequence[int] | None = None,
        dim: int = 1024,
        depth: int = 3,
        heads: int = 16,
    ) -> None:
        super().__init__()
        widths = (in_dim,) if dims is None else tuple(dims)
        sides = (1,) * len(widths) if windows is None else tuple(windows)
        whole("sva", dim=dim, depth=depth, heads=heads, **{f"windows[{index}]": side for index, side in enumerate(sides)})
        if len(sides) != len(widths) or not widths or dim % heads:
            raise LmmError(
                f"projector 'sva': found dims {widths}, windows {sides}, dim {dim} and heads {heads}: dims and windows need one number per tower, "
                f"dim must be a multiple of heads"
            )
        self.windows = sides
        self.requires = frozenset({"patches"} if dims is None else {"towers"})
        for index, width in enumerate(widths):
            layers = nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim), nn.LayerNorm(dim)
            self.add_module(f"mm_projector_aux_{index}", nn.Sequential(*layers))
        self.vision_query = nn.Parameter(torch.randn(1, dim) * dim**-0.5)
        self.vision_sampler_0 = _Sampler([_Layer(dim, sides, heads) for _ in range(depth)])
        self.mm_projector = nn.Sequential(nn.Linear(dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))

    @classmethod
    def from_spec(cls, spec: FeatureSpec, out_dim: int, **options: Any) -> SVA:
        """Make it for an encoder: widths and windows are those of its towers, unless options say otherwise."""
        if not spec.towers:
            return cls(spec.dim, out_dim, **options)
        found: dict[str, Any] = {"dims": [tower.dim for tower in spec.towers]}
        sides = [tower.grid.h if tower.grid else tower.image_size // tower.patch for tower in spec.towers if tower.grid or tower.image_size]
        if len(sides) == len(spec.towers):
            found["windows"] = [max(1, side // min(sides)) for side in sides]
        return cls(spec.dim, out_dim, **found | options)

    def out_grid(self, grid: Grid) -> Grid:
        """One row per window of the first tower.

        Raises:
            LmmError: the grid isn't divisible by the window.
        """
        return self._queries(grid, 0)

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image.

        Raises:
            LmmError: another number of towers, or grids whose windows don't give the same grid of queries.
        """
        towers = features.towers if "towers" in self.requires else (features,)
        counts = self._counts(towers)
        rows = [self.get_submodule(f"mm_projector_aux_{index}")(tower.patches) for index, tower in enumerate(towers)]
        windows = [regions(row, tower.grids, side) for row, tower, side in zip(rows, towers, self.windows)]
        images = rows[0].split([grid.rows for grid in towers[0].grids])
        means = [image.mean(0).expand(count, -1) for image, count in zip(images, counts)]
        context_QC = torch.cat(means) if means else rows[0]
        segments = Segments.uniform(sum(counts), 1, sum(side**2 for side in self.windows), device=context_QC.device)
        queries_QC = self.vision_query.expand(sum(counts), -1)
        for layer in self.vision_sampler_0.layers:
            queries_QC = layer(queries_QC, context_QC, windows, segments)
        return self.mm_projector(queries_QC)

    def _counts(self, towers: Sequence[VisionFeatures]) -> tuple[int, ...]:
        if len(towers) != len(self.windows):
            raise LmmError(f"projector 'sva' was made for {len(self.windows)} towers, the encoder gives {len(towers)}: set dims=... and windows=...")
        each = [[self._queries(grid, index) for grid in tower.grids] for index, tower in enumerate(towers)]
        for image, found in enumerate(zip(*each)):
            if len(set(found)) > 1:
                sizes = ", ".join(f"{tower.grids[image]} / {side}" for tower, side in zip(towers, self.windows))
                raise LmmError(
                    f"projector 'sva': the towers give image {image} unequal grids of queries ({sizes}): choose other windows or image sizes"
                )
        return tuple(grid.rows for grid in each[0])

    def _queries(self, grid: Grid, tower: int) -> Grid:
        side = self.windows[tower]
        if grid.h % side or grid.w % side:
            raise LmmError(
                f"projector 'sva' has windows of {side}x{side} in tower {tower}, which don't divide its {grid} patches: choose windows that do"
            )
        return Grid(grid.h // side, grid.w // side)
