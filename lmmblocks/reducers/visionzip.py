"""VisionZip: the patches that CLS attends to most stay; the others are merged into a few by the similarity of their keys.

Yang et al., arXiv 2412.04467; ``clip_encoder.py`` of dvlab-research/VisionZip. Attention and keys are those of the layer that made the features,
attention summed over heads (their mean has the same order), keys averaged over heads. Of the patches that don't stay, every ``step``-th is a target;
each of the others joins the target of most similar key (cosine), and a target becomes itself plus the mean of those that joined it.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..spec import Grid, LmmError, VisionFeatures, image_count
from .equal_runs import check_one_row_per_patch, equal_runs


class VisionZip(nn.Module):
    """Keeps ``dominant`` rows and merges the rest into ``contextual`` rows; the paper's budgets are 54 + 10, 108 + 20 and 162 + 30.

    Args:
        dominant: rows that stay, CLS among them where ``cls`` is set.
        contextual: merged rows.
        cls: keep the CLS token as the first row, as the original does; before the projector only.
        before_projector: merge the encoder's features, as the paper does, instead of the projected rows.

    Raises:
        LmmError: numbers that leave nothing, or ``cls`` behind the projector.
    """

    def __init__(
        self, dominant: int = 54, contextual: int = 10, cls: bool = True, before_projector: bool = True
    ) -> None:
        super().__init__()
        if dominant <= cls or contextual < 1:
            raise LmmError(f"reducer 'visionzip' needs dominant > {int(cls)} and contextual >= 1, found {dominant} and {contextual}")
        if cls and not before_projector:
            raise LmmError("reducer 'visionzip': the CLS token isn't projected: set cls=False or before_projector=True")
        self.options = dict(dominant=dominant, contextual=contextual, cls=cls, before_projector=before_projector)
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

    def forward(
        self, features: VisionFeatures, rows: Tensor, grids: tuple[Grid | int, ...]
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Return CLS, dominant rows in the order of the patches, contextual rows, for each image, and the number of each image.

        Raises:
            LmmError: ``rows`` are not one per patch.
        """
        check_one_row_per_patch("visionzip", features, rows)
        assert features.keys is not None and features.cls_attn is not None
        done, parts = 0, [rows[:0]]
        for _, (x_IPD, keys_IPE, attention_IP) in equal_runs(grids, rows, features.keys.mean(1), features.cls_attn):
            zipped = self._zipped(x_IPD, keys_IPE, attention_IP)
            if self.cls:
                assert features.prefix is not None
                zipped = torch.cat([features.prefix[done : done + zipped.shape[0], :1], zipped], 1)
            done += zipped.shape[0]
            parts.append(zipped.flatten(0, 1))
        return torch.cat(parts), tuple(self.out_count(grid) for grid in grids)

    def _zipped(self, x_IPD: Tensor, keys_IPE: Tensor, attention_IP: Tensor) -> Tensor:
        top = attention_IP.topk(self.dominant, dim=1).indices
        stays_IP = torch.zeros_like(attention_IP, dtype=torch.uint8).scatter(1, top, 1)
        order_IP = stays_IP.argsort(dim=1, stable=True)  # the others in their order, then those that stay in theirs
        x_IPD = x_IPD.gather(1, order_IP[..., None].expand_as(x_IPD))
        others_IRD, dominant_IKD = x_IPD.tensor_split([x_IPD.shape[1] - self.dominant], 1)
        keys_IPE = F.normalize(keys_IPE.float(), dim=-1).gather(1, order_IP[..., None].expand_as(keys_IPE))
        return torch.cat([dominant_IKD, self._contextual(others_IRD, keys_IPE[:, : others_IRD.shape[1]])], 1)

    def _contextual(self, x_IRD: Tensor, keys_IRE: Tensor) -> Tensor:
        step = max(1, x_IRD.shape[1] // self.contextual)
        targets = slice(0, step * self.contextual, step)
        similar_IRT = keys_IRE @ keys_IRE[:, targets].transpose(1, 2)
        joins_IRT = torch.zeros_like(similar_IRT, dtype=x_IRD.dtype).scatter(2, similar_IRT.argmax(2, keepdim=True), 1)
        joins_IRT[:, targets] = 0
        mean_ITD = joins_IRT.transpose(1, 2) @ x_IRD / joins_IRT.sum(1).clamp_min(1)[..., None]
        return x_IRD[:, targets] + mean_ITD
