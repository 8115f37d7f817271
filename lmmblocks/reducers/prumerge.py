"""LLaVA-PruMerge: keep the patches that CLS attends to most, and add to each what its nearest neighbours hold.

Shang et al., arXiv 2403.15388; ``token_prune_merge_advanced`` and ``_plus`` of ``clip_encoder.py`` in 42Shawn/LLaVA-PruMerge, whose loops
over images and kept patches are here one function, ``merging.merge_neighbours``. For a kept patch ``i`` with the ``n`` patches ``j`` of
most similar keys (cosine over all heads side by side): ``x_i + sum_j a_j x_j`` with CLS attention ``a``, which isn't normalised again. One more row
gathers the patches that weren't kept: ``sum_j a_j x_j``.

The original takes keys and attention from CLIP's last layer, with all heads as one (``softmax(q k / sqrt(C))``), beside features of the last but
one. Here both come from the layer that made the features, and the attention is the mean over its heads, as encoders offer it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor

from ..spec import Grid, LmmError, VisionFeatures, image_count
from ..spec.options import remembers_options
from . import merging
from .equal_runs import check_one_row_per_patch, image_segments


@remembers_options
class PruMerge(nn.Module):
    """Keeps a fixed number of patches of every image.

    The paper's adaptive number (outliers of the CLS attention) is known only when the encoder has run. A batch is planned on the host before that:
    every length, position and label follows from it. So the number is a setting here; :func:`outlier_counts` tells what the adaptive rule would keep,
    and its mean over some images is a good setting.

    Args:
        keep: patches kept by CLS attention.
        spatial: PruMerge+: this many more, evenly spread over the patches that weren't kept; the paper's fixed budget takes as many as ``keep``.
        neighbours: ``n``.
        rest: append the row of what wasn't kept.
        before_projector: merge the encoder's features, as the paper does, instead of the projected rows.

    Raises:
        LmmError: no number of patches to keep.
    """

    requires = frozenset({"patches", "keys", "cls_attn"})

    def __init__(
        self,
        keep: int | None = None,
        spatial: int = 0,
        neighbours: int = 32,
        rest: bool = True,
        before_projector: bool = True,
    ) -> None:
        super().__init__()
        if keep is None or keep < 1 or spatial < 0 or neighbours < 0:
            raise LmmError(
                f"reducer 'prumerge' needs keep >= 1, spatial >= 0 and neighbours >= 0, found {keep}, {spatial}, {neighbours}: the adaptive number "
                f"of the paper isn't known before the encoder runs, but batches are planned before; measure it with "
                f"lmmblocks.reducers.outlier_counts and set keep, such as 32"
            )
        self.keep, self.spatial, self.neighbours, self.rest = keep, spatial, neighbours, rest
        self.before_projector = before_projector

    def out_count(self, grid: Grid | int) -> int:
        """Return the rows of one image.

        Raises:
            LmmError: it has fewer patches than are to be kept.
        """
        if self.keep + self.spatial > image_count(grid):
            raise LmmError(f"reducer 'prumerge' keeps {self.keep} + {self.spatial} patches, an image has {image_count(grid)}: lower keep or spatial")
        return self.keep + self.spatial + self.rest

    def forward(self, features: VisionFeatures, rows: Tensor, grids: tuple[Grid | int, ...]) -> Tensor:
        """Return merged rows, those of the largest attention first, image after image.

        Raises:
            LmmError: ``rows`` are not one per patch.
        """
        check_one_row_per_patch("prumerge", features, rows)
        assert features.keys is not None and features.cls_attn is not None
        return merging.merge_neighbours(
            rows,
            features.keys.flatten(1),
            features.cls_attn,
            image_segments(grids, rows.device),
            keep=self.keep,
            spread=self.spatial,
            neighbours=self.neighbours,
            rest=self.rest,
        )


def outlier_counts(cls_attn: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Return how many patches of each image the paper's adaptive rule keeps: those above ``Q3 + 1.5 (Q3 - Q1)`` of the CLS attention.

    Args:
        cls_attn: ``(M,)``, see ``VisionFeatures``.
        grids: of each image.

    Returns:
        int64 ``(I,)``, on the device.
    """
    return merging.outlier_counts(cls_attn, image_segments(grids, cls_attn.device))
