"""Rows of an image merged into the most similar of a few targets, for all images at once: VisionZip's merging.

Shapes: ``x [M, D]`` packed rows of images, ``keys [M, C]``, ``scores [M]``, ``cu [I + 1]``; images of any number of rows. ``out [I, K + T, D]``: the
``K`` rows that stay as they are, then ``x_t`` plus the mean of the rows whose keys are most similar (cosine) to those of target ``t``; of equally
similar targets the first. What stays and what is a target is chosen in ``row_choice.py``.

Bytes per call (``b`` bytes an element): reads ``M D b`` of rows and ``M C b`` of keys, the latter ``ceil(T / 16)`` times, all but the first from
L2; writes ``I (K + T) D b``. Floor ``M (D + C) b / bandwidth``.

Launches: two for the choice, then two (nearest target, means), however many images and sizes of images there are. Each number is one
program's, added in a fixed order: the same bits on every run.

Launch table: not measured on a GPU; tiles as in ``merge_rows.py``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_bounds import other_rows
from .attention_heads import aligned
from .device import launching_on
from .merge_rows import LINES, PLACES, WIDTH, row_tile, squares
from .row_choice import choose_rows
from .whole_numbers import cdiv


@triton.jit(do_not_specialize=["segments", "keep", "targets"])
def _nearest_target_kernel(
    keys, slot, kept, owner, cu, key_row, segments, keep, targets,
    C: tl.constexpr, VECTOR: tl.constexpr, LINES: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Number of the target most similar to each row; -1 for rows that stay and for targets."""
    image = tl.program_id(0)
    begin, length = other_rows(cu, image, segments)
    place = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    inside = place < length
    key_row = aligned(key_row, VECTOR)
    best, nearest = tl.zeros((PLACES,), tl.float32) + float("-inf"), tl.zeros((PLACES,), tl.int32)
    for first_target in range(0, targets, LINES):
        target = first_target + tl.arange(0, LINES)
        live = target < targets
        row = tl.load(kept + image * (keep + targets) + keep + target, mask=live, other=0)
        found, square = tl.zeros((PLACES, LINES), tl.float32), tl.zeros((LINES,), tl.float32)
        for first in range(0, C, WIDTH):
            a = row_tile(keys, begin + place, key_row, inside, first, C, WIDTH)
            b = row_tile(keys, row, key_row, live, first, C, WIDTH)
            found = tl.dot(a, tl.trans(b), found, input_precision="ieee")
            square += squares(b)
        found = tl.where(live[None, :], found / tl.maximum(tl.sqrt(square), 1e-12)[None, :], float("-inf"))
        highest = tl.max(found, 1)
        where = tl.min(tl.where(found == highest[:, None], target[None, :], targets), 1)
        nearest = tl.where(highest > best, where, nearest)
        best = tl.maximum(best, highest)
    free = tl.load(slot + begin + place, mask=inside, other=0) < 0
    tl.store(owner + begin + place, tl.where(free, nearest, -1), mask=inside)


@triton.jit(do_not_specialize=["segments", "keep", "targets"])
def _joined_means_kernel(
    x, owner, kept, out, cu, x_row, segments, keep, targets,
    D: tl.constexpr, VECTOR: tl.constexpr, LINES: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Copies of rows that stay, and targets with the mean of those that joined them."""
    keep_tiles = (keep + LINES - 1) // LINES
    tiles = keep_tiles + (targets + LINES - 1) // LINES
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    begin, length = other_rows(cu, image, segments)
    copies = tile < keep_tiles
    target = (tile - keep_tiles) * LINES + tl.arange(0, LINES)
    line = tl.where(copies, tile * LINES + tl.arange(0, LINES), keep + target)
    live = line < tl.where(copies, keep, keep + targets)
    first, x_row = tl.program_id(1) * WIDTH, aligned(x_row, VECTOR)
    to = image * (keep + targets) + line
    own = tl.load(kept + to, mask=live, other=0)
    total, count = tl.zeros((LINES, WIDTH), tl.float32), tl.zeros((LINES,), tl.float32)
    for at in range(0, tl.where(copies, 0, length), PLACES):
        place = at + tl.arange(0, PLACES)
        inside = place < length
        joins = tl.load(owner + begin + place, mask=inside, other=-1)[None, :] == target[:, None]
        rows = row_tile(x, begin + place, x_row, inside, first, D, WIDTH)
        total = tl.dot(joins.to(rows.dtype), rows, total, input_precision="ieee")
        count += tl.sum(joins.to(tl.float32), 1)
    total = total / tl.maximum(count, 1.0)[:, None] + row_tile(x, own, x_row, live, first, D, WIDTH).to(tl.float32)
    column = first + tl.arange(0, WIDTH)
    at = out + to.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=live[:, None] & (column < D)[None, :])


def merge_to_nearest(x: Tensor, keys: Tensor, scores: Tensor, cu: Tensor, longest: int, keep: int, targets: int) -> Tensor:
    """Launch VisionZip's merging.

    Args:
        x: ``(M, D)``, last stride 1, rows on 16 bytes.
        keys: ``(M, C)``, likewise.
        scores: ``(M,)``, contiguous.
        cu: int32 ``(I + 1,)``.
        longest: rows of the largest image, above 0.
        keep: rows of the highest score, which stay as they are.
        targets: of the others, above 0.

    Returns:
        ``(I * (keep + targets), D)``.
    """
    images, width = cu.shape[0] - 1, x.shape[1]
    kept, slot = choose_rows(scores, cu, longest, keep, targets, False)
    owner = torch.empty_like(slot)
    out = torch.empty((images * (keep + targets), width), dtype=x.dtype, device=x.device)
    tile, tiles = (LINES, PLACES, WIDTH), cdiv(keep, LINES) + cdiv(targets, LINES)
    with launching_on(x):
        _nearest_target_kernel[(images, cdiv(longest, PLACES))](
            keys,
            slot,
            kept,
            owner,
            cu,
            keys.stride(0),
            images,
            keep,
            targets,
            keys.shape[1],
            16 // keys.element_size(),
            *tile,
            num_warps=4,
        )
        _joined_means_kernel[(images * tiles, cdiv(width, WIDTH))](
            x,
            owner,
            kept,
            out,
            cu,
            x.stride(0),
            images,
            keep,
            targets,
            width,
            16 // x.element_size(),
            *tile,
            num_warps=4,
        )
    return out
