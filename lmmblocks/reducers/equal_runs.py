"""Packed rows of images cut into runs of neighbours with equal grids, which are computed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor

from ..spec import LmmError, VisionFeatures, image_count


def equal_runs(grids: Sequence[Any], *tensors: Tensor) -> Iterator[tuple[Any, list[Tensor]]]:
    """Yield the grid (or row count) of each run and its rows ``(I, P, ...)`` of every tensor ``(M, ...)``. All of it is views."""
    start = 0
    for grid, run in groupby(grids):
        images, rows = len(list(run)), image_count(grid)
        yield grid, [tensor[start : start + images * rows].unflatten(0, (images, rows)) for tensor in tensors]
        start += images * rows


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
