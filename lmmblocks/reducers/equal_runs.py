"""Packed rows of images: their boundaries, and runs of neighbours with equal grids, which are computed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..spec import LmmError, Segments, VisionFeatures, image_count


def equal_runs(grids: Sequence[Any], *tensors: Tensor) -> Iterator[tuple[Any, list[Tensor]]]:
    """Yield the grid (or row count) of each run and its rows ``(I, P, ...)`` of every tensor ``(M, ...)``. All of it is views."""
    start = 0
    for grid, run in groupby(grids):
        images, rows = len(list(run)), image_count(grid)
        yield grid, [tensor[start : start + images * rows].unflatten(0, (images, rows)) for tensor in tensors]
        start += images * rows


def image_segments(grids: Sequence[Any], device: torch.device) -> Segments:
    """Return the boundaries of packed images; nothing is copied to the device where all have as many rows."""
    counts = [image_count(grid) for grid in grids]
    if len(set(counts)) == 1:
        return Segments.uniform(len(counts), counts[0], device=device)
    return Segments.of(counts, device=device)


def check_one_row_per_patch(name: str, features: VisionFeatures, rows_MD: Tensor) -> None:
    """Refuse rows that aren't the patches that keys and CLS attention belong to.

    Raises:
        LmmError: another number of rows.
    """
    patches = sum(grid.rows for grid in features.grids)
    if rows_MD.shape[0] != patches:
        raise LmmError(
            f"reducer {name!r} scores the encoder's patches and needs one row for each of {patches}, found {rows_MD.shape[0]}: use it with a "
            f"projector that keeps the grid, or before_projector=True"
        )
