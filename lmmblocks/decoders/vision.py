"""The images of a pass as layer hooks see them: features, rows, and where they lie; also with a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..spec import ImageSpan, SplicePlan, VisionFeatures

if TYPE_CHECKING:
    from ..compose.image_rows import Encoded


@dataclass(frozen=True, slots=True)
class VisionContext:
    """The images that the segments of a pass hold; with a cache, also those read before.

    Attributes:
        features: what the encoder gave, with everything that hooks require; None without any image.
        rows_MD: the image rows as they were spliced into the decoder's input.
        counts: how many of these rows each image has.
        spans: where each image lies in its sequence.
        mask_T: bool, which rows of this pass are image rows.
        rows_M: int32, the row of this pass that each image row is; -1: none (truncated, dropped by a hook, or read in an earlier pass).
        row_counts: number of image rows of this pass in each segment, on the host.
        tiles: how many of ``features.grids`` belong to each image: 1, unless the encoder cuts images into tiles.
        memo: results a hook computed from the features, for its other layers and for the passes after the cached ones; empty again as soon as the
            set of images changes.
    """

    features: VisionFeatures | None
    rows_MD: Tensor
    counts: tuple[int, ...]
    spans: tuple[ImageSpan, ...]
    mask_T: Tensor
    rows_M: Tensor
    row_counts: tuple[int, ...]
    tiles: tuple[int, ...]
    memo: dict[Any, Any] = field(default_factory=dict)

    @staticmethod
    def of(encoded: Encoded, plan: SplicePlan) -> VisionContext:
        """Return what hooks may know about the images of a batch."""
        per_segment = [0] * len(plan.lengths)
        for span in plan.image_spans:
            per_segment[span.segment] += span.rows
        return VisionContext(
            encoded.features,
            encoded.rows_MD,
            encoded.counts,
            plan.image_spans,
            plan.source < 0,
            plan.image_rows,
            tuple(per_segment),
            encoded.tiles,
        )

    def kept(self, keep_T: Tensor, rows: Tensor, old: Sequence[int], new: Sequence[int]) -> VisionContext:
        """Return the context of a pass that some image rows have left; ``rows`` are the kept ones."""
        place = keep_T.cumsum(0) - 1
        at = self.rows_M.clamp_min(0).long()
        stays = (self.rows_M >= 0) & keep_T.index_select(0, at)
        return replace(
            self,
            mask_T=self.mask_T.index_select(0, rows),
            rows_M=torch.where(stays, place.index_select(0, at), -1).to(self.rows_M.dtype),
            row_counts=tuple(count - (had - has) for count, had, has in zip(self.row_counts, old, new)),
        )

    def for_pass(self, rows: int, segments: int) -> VisionContext:
        """Return the same images for a pass that holds none of their rows."""
        mask_T = torch.zeros(rows, dtype=torch.bool, device=self.rows_M.device)
        nowhere = torch.full_like(self.rows_M, -1)
        return replace(self, mask_T=mask_T, rows_M=nowhere, row_counts=(0,) * segments)

    def behind(self, earlier: VisionContext | None, lengths: Sequence[int]) -> VisionContext:
        """Return this pass's images together with the earlier ones of a cache whose sequences hold ``lengths`` rows."""
        spans = tuple(replace(span, start=span.start + lengths[span.segment]) for span in self.spans)
        if earlier is None or not earlier.counts:
            return replace(self, spans=spans)
        if not self.counts:
            return replace(earlier.for_pass(self.mask_T.shape[0], len(self.row_counts)), mask_T=self.mask_T)
        offset = len(earlier.counts)
        moved = tuple(replace(span, image=span.image + offset) for span in spans)
        assert earlier.features is not None and self.features is not None
        return replace(
            self,
            features=joined(earlier.features, self.features),
            rows_MD=torch.cat([earlier.rows_MD, self.rows_MD]),
            counts=earlier.counts + self.counts,
            tiles=earlier.tiles + self.tiles,
            spans=tuple(sorted(earlier.spans + moved, key=lambda span: (span.segment, span.start))),
            rows_M=torch.cat([torch.full_like(earlier.rows_M, -1), self.rows_M]),
            memo={},
        )

    def with_spans(self, spans: Sequence[ImageSpan]) -> VisionContext:
        """Return a context of the images of some spans only, renumbered in their order."""
        if [span.image for span in spans] == list(range(len(self.counts))):
            return replace(self, spans=tuple(spans))
        images = [span.image for span in spans]
        return replace(
            self,
            features=selected(self.features, self._tiles_of(images)) if images and self.features is not None else None,
            rows_MD=_pieces(self.rows_MD, self.counts, images),
            counts=tuple(self.counts[image] for image in images),
            tiles=tuple(self.tiles[image] for image in images),
            spans=tuple(replace(span, image=place) for place, span in enumerate(spans)),
            rows_M=_pieces(self.rows_M, self.counts, images),
            memo={},
        )

    def _tiles_of(self, images: Sequence[int]) -> list[int]:
        starts = list(accumulate(self.tiles, initial=0))
        return [tile for image in images for tile in range(starts[image], starts[image + 1])]


def joined(first: VisionFeatures, second: VisionFeatures) -> VisionFeatures:
    """Return the features of the images of both; what was asked about them is left out."""

    def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.cat([a, b])

    return replace(
        first,
        patches=torch.cat([first.patches, second.patches]),
        grids=first.grids + second.grids,
        prefix=both(first.prefix, second.prefix),
        layers={layer: torch.cat([first.layers[layer], second.layers[layer]]) for layer in first.layers},
        keys=both(first.keys, second.keys),
        cls_attn=both(first.cls_attn, second.cls_attn),
        towers=tuple(map(joined, first.towers, second.towers)),
        instruction=None,
    )


def selected(features: VisionFeatures, images: Sequence[int]) -> VisionFeatures:
    """Return the features of some images, in the order given; what was asked about them is left out."""
    counts = tuple(grid.rows for grid in features.grids)

    def some(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else _pieces(rows, counts, images)

    return replace(
        features,
        patches=_pieces(features.patches, counts, images),
        grids=tuple(features.grids[image] for image in images),
        prefix=None if features.prefix is None else _pieces(features.prefix, (1,) * len(counts), images),
        layers={layer: _pieces(rows, counts, images) for layer, rows in features.layers.items()},
        keys=some(features.keys),
        cls_attn=some(features.cls_attn),
        towers=tuple(selected(tower, images) for tower in features.towers),
        instruction=None,
    )


def _pieces(rows: Tensor, counts: Sequence[int], images: Sequence[int]) -> Tensor:
    parts = rows.split(list(counts)) if counts else ()
    return torch.cat([rows[:0], *(parts[image] for image in images)])
