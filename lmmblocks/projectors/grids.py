"""Packed rows as maps of one size, and back: what projectors that look at neighbours have in common. Lengths stay on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import Grid, LmmError, VisionFeatures
from ..spec.fields import problem


def by_grid(rows_MC: Tensor, grids: Sequence[Grid], run: Callable[[Tensor], Tensor]) -> Tensor:
    """Run ``run`` once for all images of one grid.

    Args:
        rows_MC: packed rows, in the order of ``grids``.
        grids: one per image.
        run: maps ``(I, H, W, C)`` of one size to ``(I, rows, ...)``.

    Returns:
        What ``run`` gave for each image, packed in the order of ``grids``.
    """
    images_of: dict[Grid, list[int]] = {}
    for index, grid in enumerate(grids):
        images_of.setdefault(grid, []).append(index)
    if len(images_of) == 1:
        return run(rows_MC.view(len(grids), grids[0].h, grids[0].w, -1)).flatten(0, 1)
    if not images_of:
        return run(rows_MC.view(0, 1, 1, rows_MC.shape[1])).flatten(0, 1)
    each = rows_MC.split([grid.rows for grid in grids])
    results: dict[int, Tensor] = {}
    for grid, images in images_of.items():
        maps = torch.stack([each[index] for index in images]).unflatten(1, (grid.h, grid.w))
        results |= zip(images, run(maps))
    return torch.cat([results[index] for index in range(len(grids))])


def regions(rows_MC: Tensor, grids: Sequence[Grid], side: int) -> Tensor:
    """Cut every image into squares of ``side x side`` patches, zeros below and to the right where it ends before the square does.

    Returns:
        ``(regions, side * side, C)``: regions of an image row by row, patches of a region row by row.
    """

    def cut(maps_IHWC: Tensor) -> Tensor:
        _, h, w, _ = maps_IHWC.shape
        maps_IHWC = F.pad(maps_IHWC, (0, 0, 0, -w % side, 0, -h % side))
        squares = maps_IHWC.unflatten(2, (-1, side)).unflatten(1, (-1, side))
        return squares.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    return by_grid(rows_MC, grids, cut)


def channels_first(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Make a layer on ``(I, C, H, W)`` one from ``(I, H, W, C)`` to ``(I, H' * W', C')``, as :func:`by_grid` wants it."""
    return lambda maps_IHWC: run(maps_IHWC.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


def interleave(first: Tensor, lengths_first: Sequence[int], then: Tensor, lengths_then: Sequence[int]) -> Tensor:
    """Pack, for each image, its rows of ``first`` and after them its rows of ``then``."""
    pairs = zip(first.split(list(lengths_first)), then.split(list(lengths_then)))
    rows = [part for pair in pairs for part in pair]
    return torch.cat(rows) if rows else first


def context(features: VisionFeatures, prefix: bool) -> tuple[Tensor, tuple[int, ...]]:
    """Return what queries of an image may look at: its patches, after its prefix tokens where ``prefix`` is set, and their numbers."""
    lengths = tuple(grid.rows for grid in features.grids)
    if not prefix:
        return features.patches, lengths
    if features.prefix is None:
        raise LmmError("a projector made with prefix=True needs features.prefix: call the encoder with need={'patches', 'prefix'}")
    count = features.prefix.shape[1]
    rows = interleave(features.prefix.flatten(0, 1), [count] * len(lengths), features.patches, lengths)
    return rows, tuple(length + count for length in lengths)


def shrunk(name: str, grid: Grid, factor: int, *, uneven: str) -> Grid:
    """Return the grid of ``factor x factor`` regions; an incomplete one at the border counts.

    Args:
        name: of the projector, for the message.
        grid: of the patches.
        factor: side of a region.
        uneven: what to tell the user where the grid isn't divisible; empty where that is allowed.

    Raises:
        LmmError: the grid isn't divisible and ``uneven`` is given.
    """
    if uneven and (grid.h % factor or grid.w % factor):
        fits = [n for n in range(2, min(grid.h, grid.w) + 1) if not grid.h % n and not grid.w % n]
        known = f"; factors that divide it: {fits}" if fits else ""
        raise LmmError(f"projector {name!r} with factor {factor} needs a grid divisible by {factor}, found {grid}{known}: {uneven}")
    return Grid(-(-grid.h // factor), -(-grid.w // factor))


def whole(name: str, **values: Any) -> None:
    """Refuse options that aren't whole numbers above 0, all in one message."""
    wrong = [wrong for key, value in values.items() if (wrong := problem(key, value, int))]
    if wrong:
        raise LmmError(f"projector {name!r}: {'; '.join(wrong)}")


def one_of(name: str, **choices: tuple[Any, tuple[str, ...]]) -> None:
    """Refuse options that are none of their choices, all in one message."""
    wrong = [wrong for key, (value, known) in choices.items() if (wrong := problem(key, value, Literal[known]))]
    if wrong:
        raise LmmError(f"projector {name!r}: {'; '.join(wrong)}")
