"""Average pooling by a factor, with an MLP before or after it (PerceptionLM, LLaVA-NeXT-Video)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..spec import Grid, VisionFeatures
from ..spec.options import remembers_options
from .grids import by_grid, channels_first, one_of, shrunk, whole
from .mlp import MLP


@remembers_options
class Pool(MLP):
    """Each ``factor x factor`` square of patches becomes its mean.

    Args:
        in_dim: encoder width ``C``.
        out_dim: decoder width ``D``.
        factor: side of a square.
        odd: what happens to a grid that isn't divisible: ``partial`` takes the mean of the patches that are there, or ``error``.
        depth: linear layers of the MLP, GELU between them.
        bias: add biases.
        first: ``pool`` (cheaper) or ``mlp``, as PerceptionLM has it.

    Raises:
        LmmError: an option of no such value.

    Source: Cho et al., arXiv 2504.13180 (PerceptionLM); parameter names of ``PerceptionLMMultiModalProjector``.

    >>> Pool(4, 8).out_grid(Grid(27, 27))
    Grid(h=14, w=14)
    """

    def __init__(
        self, in_dim: int, out_dim: int, factor: int = 2, odd: str = "partial", depth: int = 2, bias: bool = True, first: str = "pool"
    ) -> None:
        whole("pool", factor=factor)
        one_of("pool", odd=(odd, ("partial", "error")), first=(first, ("pool", "mlp")))
        super().__init__(in_dim, out_dim, depth, bias)
        self.factor, self.odd, self.first = factor, odd, first

    def out_grid(self, grid: Grid) -> Grid:
        """One row per square.

        Raises:
            LmmError: the grid isn't divisible and ``odd`` is ``error``.
        """
        return shrunk("pool", grid, self.factor, uneven="take one of these, or odd='partial'" if self.odd == "error" else "")

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image."""
        if self.first == "mlp":
            return self._pooled(self.project(features.patches), features.grids)
        return self.project(self._pooled(features.patches, features.grids))

    def _pooled(self, rows: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        for grid in set(grids):
            self.out_grid(grid)  # refuses what it doesn't count
        # A square that reaches over the border counts the patches inside only: ceil_mode, and no padding is ever added.
        return by_grid(rows, grids, channels_first(lambda maps: F.avg_pool2d(maps, self.factor, ceil_mode=True)))
