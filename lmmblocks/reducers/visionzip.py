"""VisionZip: the patches that CLS attends to most stay; the others are merged into a few by the similarity of their keys.

Yang et al., arXiv 2412.04467; ``clip_encoder.py`` of dvlab-research/VisionZip. Attention and keys are those of the layer that made the features,
attention summed over heads (their mean has the same order), keys averaged over heads. Of the patches that don't stay, every ``step``-th is a target;
each of the others joins the target of most similar key (cosine), and a target becomes itself plus the mean of those that joined it.
"""

from __future__ import annotations

import torch
import torch.nn as nn
from torch import Tensor

from ..spec import Grid, LmmError, VisionFeatures, image_count
from ..spec.options import remembers_options
from . import merging
from .equal_runs import check_one_row_per_patch, image_segments


@remembers_options
class VisionZip(nn.Module):
    """Keeps ``dominant`` rows and merges the rest into ``contextual`` rows; the paper's budgets are 54 + 10, 108 + 20 and 162 + 30.

    Args:
        dominant: rows that stay, CLS among them where ``cls`` is set.
        contextual: merged rows.
        cls: keep the CLS token as the first row, as the original does; before the projector only.
        before_projector: merge the encoder's features, as the paper does, instead of the projected rows.

    Raises:
        LmmError: numbers that leave nothing, or ``cls`` after the projector.
    """

    def __init__(self, dominant: int = 54, contextual: int = 10, cls: bool = True, before_projector: bool = True) -> None:
        super().__init__()
        if dominant <= cls or contextual < 1:
            raise LmmError(f"reducer 'visionzip' needs dominant > {int(cls)} and contextual >= 1, found {dominant} and {contextual}")
        if cls and not before_projector:
            raise LmmError("reducer 'visionzip': the CLS token isn't projected: set cls=False or before_projector=True")
        self.dominant, self.contextual, self.cls = dominant - cls, contextual, cls
        self.before_projector = before_projector
        self.requires = frozenset({"patches", "keys", "cls_attn"} | ({"prefix"} if cls else set()))

    def out_count(self, grid: Grid | int) -> int:
        """Return the rows of one image.

        Raises:
            LmmError: it has too few patches.
        """
        if self.dominant + self.contextual > image_count(grid):
            raise LmmError(
                f"reducer 'visionzip' makes {self.dominant} + {self.contextual} rows of patches, an image has {image_count(grid)}: lower "
                f"dominant or contextual"
            )
        return self.cls + self.dominant + self.contextual

    def forward(self, features: VisionFeatures, rows: Tensor, grids: tuple[Grid | int, ...]) -> Tensor:
        """Return CLS, dominant rows in the order of the patches, contextual rows, image after image.

        Raises:
            LmmError: ``rows`` are not one per patch.
        """
        check_one_row_per_patch("visionzip", features, rows)
        assert features.keys is not None and features.cls_attn is not None
        merged_MD = merging.merge_to_nearest(
            rows,
            features.keys.mean(1),
            features.cls_attn,
            image_segments(grids, rows.device),
            keep=self.dominant,
            targets=self.contextual,
        )
        if self.cls:
            assert features.prefix is not None
            merged_ITD = merged_MD.unflatten(0, (len(grids), self.dominant + self.contextual))
            merged_MD = torch.cat([features.prefix[:, :1], merged_ITD], 1).flatten(0, 1)
        return merged_MD
