"""Rows of an image that stay, each with what its nearest neighbours hold, for all images at once: PruMerge's merging.

Shapes: ``x [M, D]`` packed rows of images, ``keys [M, C]``, ``scores [M]``, ``cu [I + 1]``; images of any number of rows. ``out [I, K + 1, D]``:

    out[i, s] = x_s + sum over j of scores_j x_j        j: the ``n`` rows most similar to ``s``, which stays; of equals the earlier
    out[i, K] = sum over j of scores_j x_j              j: what doesn't stay

Similarity is the cosine of keys, products of native operands summed in fp32. What stays is chosen in ``row_choice.py``.

Bytes per call (``b`` bytes an element, ``L = ceil(K / 16)``, ``P`` rows of the largest image): reads ``M D b`` of rows and ``M C b`` of keys ``L``
times, all but the first from L2; passes ``8 I K P`` bytes of similarities and weights on. Floor ``M (D + C) b / bandwidth``.

Launches: two for the choice, then three (similarities, the nearest, sums), however many images and sizes of images there are. Each number is
one program's, added in a fixed order: the same bits on every run.

Launch table: not measured on a GPU. Tiles are the lowest of the tensor cores, since 8 to 64 rows stay of an image; the nearest ``n`` are found
without a sort, by the bits of the ``n``-th largest similarity: 32 counts of a row that a program holds in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_bounds import other_rows
from .attention_heads import aligned
from .device import launching_on
from .row_choice import choose_rows, rows_of_program
from .whole_numbers import cdiv

LINES, PLACES, WIDTH = 16, 64, 64
"""Rows that stay, rows of the image, and columns of a step."""


@triton.jit
def row_tile(base, row, row_stride, live, first, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    column = first + tl.arange(0, WIDTH)
    at = base + row.to(tl.int64)[:, None] * row_stride + column[None, :]
    return tl.load(at, mask=live[:, None] & (column < COLUMNS)[None, :], other=0.0)


@triton.jit
def squares(tile):
    wide = tile.to(tl.float32)
    return tl.sum(wide * wide, 1)


@triton.jit(do_not_specialize=["segments", "stay"])
def _similarities_kernel(
    keys, similar, kept, cu, key_row, segments, stay, lines, line_stride,
    C: tl.constexpr, VECTOR: tl.constexpr, LINES: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Cosine of rows that stay with all rows of their image; ``-inf`` with themselves."""
    tiles = (stay + LINES - 1) // LINES
    image = tl.program_id(0) // tiles
    line = tl.program_id(0) % tiles * LINES + tl.arange(0, LINES)
    begin, length = other_rows(cu, image, segments)
    place = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    live, inside = line < stay, place < length
    own = tl.load(kept + image * stay + line, mask=live, other=0)
    key_row = aligned(key_row, VECTOR)
    found = tl.zeros((LINES, PLACES), tl.float32)
    own_square, square = tl.zeros((LINES,), tl.float32), tl.zeros((PLACES,), tl.float32)
    for first in range(0, C, WIDTH):
        a = row_tile(keys, own, key_row, live, first, C, WIDTH)
        b = row_tile(keys, begin + place, key_row, inside, first, C, WIDTH)
        found = tl.dot(a, tl.trans(b), found, input_precision="ieee")
        own_square += squares(a)
        square += squares(b)
    own_norm, norm = tl.maximum(tl.sqrt(own_square), 1e-12), tl.maximum(tl.sqrt(square), 1e-12)
    found = found / own_norm[:, None] / norm[None, :]
    found = tl.where(own[:, None] == (begin + place)[None, :], float("-inf"), found)
    at = similar + (image * lines + line).to(tl.int64)[:, None] * line_stride + place[None, :]
    tl.store(at, found, mask=live[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["segments", "stay", "lines", "neighbours"])
def _nearest_kernel(weights, scores, slot, kept, cu, segments, stay, lines, line_stride, neighbours, ROWS: tl.constexpr):
    """Similarities of one row that stays become weights, in place; the line after them all gets those of what doesn't stay."""
    image, line = tl.program_id(0), tl.program_id(1)
    begin, length = other_rows(cu, image, segments)
    place = tl.arange(0, ROWS)
    live = place < length
    score = tl.load(scores + begin + place, mask=live, other=0.0).to(tl.float32)
    at = weights + (image * lines + line).to(tl.int64) * line_stride + place
    if line == stay:
        stays = tl.load(slot + begin + place, mask=live, other=0) >= 0
        tl.store(at, tl.where(stays, 0.0, score), mask=live)
    else:
        # Radix select: find the wanted-th largest similarity bit by bit, without sorting.
        # 1. Integers in the order of the floats. -0 becomes 0 first: they are equal, their bits aren't.
        found = tl.load(at, mask=live, other=float("-inf")) + 0.0
        bits = found.to(tl.int32, bitcast=True)
        rising = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        # 2. Its sign, then its 31 other bits from the highest: a bit is set if at least `wanted` numbers are as large with it.
        wanted = tl.minimum(neighbours, length - 1)
        positive = tl.sum((rising >= 0).to(tl.int32), 0) >= wanted
        least = tl.where(positive, 0, -2147483648)
        bit = 1 << 30
        for _ in range(31):
            higher = least + bit
            bit = bit // 2
            least = tl.where(tl.sum((rising >= higher).to(tl.int32), 0) >= wanted, higher, least)
        # 3. All above it are neighbours, and of those equal to it the first ones, until there are enough.
        above, equal = live & (rising > least), live & (rising == least)
        room = wanted - tl.sum(above.to(tl.int32), 0)
        near = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room))
        # 4. Weights in place of similarities: 1 for the row itself, the score for a neighbour, 0 for all others.
        own = tl.load(kept + image * stay + line) - begin
        tl.store(at, tl.where(place == own, 1.0, tl.where(near, score, 0.0)), mask=live)


@triton.jit(do_not_specialize=["segments", "lines"])
def _weighted_sums_kernel(
    x, weights, out, cu, x_row, segments, lines, line_stride,
    D: tl.constexpr, VECTOR: tl.constexpr, LINES: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    tiles = (lines + LINES - 1) // LINES
    image = tl.program_id(0) // tiles
    line = tl.program_id(0) % tiles * LINES + tl.arange(0, LINES)
    begin, length = other_rows(cu, image, segments)
    live, first = line < lines, tl.program_id(1) * WIDTH
    to = (image * lines + line).to(tl.int64)
    total = tl.zeros((LINES, WIDTH), tl.float32)
    for at in range(0, length, PLACES):
        place = at + tl.arange(0, PLACES)
        inside = place < length
        weight = tl.load(
            weights + to[:, None] * line_stride + place[None, :],
            mask=live[:, None] & inside[None, :],
            other=0.0,
        )
        rows = row_tile(x, begin + place, aligned(x_row, VECTOR), inside, first, D, WIDTH)
        total = tl.dot(weight.to(rows.dtype), rows, total, input_precision="ieee")
    column = first + tl.arange(0, WIDTH)
    tl.store(
        out + to[:, None] * D + column[None, :],
        total.to(out.dtype.element_ty),
        mask=live[:, None] & (column < D)[None, :],
    )


def merge_neighbours(
    x: Tensor,
    keys: Tensor,
    scores: Tensor,
    cu: Tensor,
    longest: int,
    keep: int,
    spread: int,
    neighbours: int,
    rest: bool,
) -> Tensor:
    """Launch PruMerge's merging.

    Args:
        x: ``(M, D)``, last stride 1, rows on 16 bytes.
        keys: ``(M, C)``, likewise.
        scores: ``(M,)``, contiguous.
        cu: int32 ``(I + 1,)``.
        longest: rows of the largest image, above 0.
        keep: rows of the highest score that stay.
        spread: more rows, spread over the others.
        neighbours: rows that are added to each.
        rest: append the sum of what doesn't stay.

    Returns:
        ``(I * (keep + spread + rest), D)``.
    """
    images, stay, width = cu.shape[0] - 1, keep + spread, x.shape[1]
    lines, line_stride = stay + rest, cdiv(longest, 16) * 16
    kept, slot = choose_rows(scores, cu, longest, keep, spread, True)
    weights = torch.empty((images, lines, line_stride), dtype=torch.float32, device=x.device)
    out = torch.empty((images * lines, width), dtype=x.dtype, device=x.device)
    rows, warps = rows_of_program(longest)
    tile = LINES, PLACES, WIDTH
    with launching_on(x):
        _similarities_kernel[(images * cdiv(stay, LINES), cdiv(longest, PLACES))](
            keys,
            weights,
            kept,
            cu,
            keys.stride(0),
            images,
            stay,
            lines,
            line_stride,
            keys.shape[1],
            16 // keys.element_size(),
            *tile,
            num_warps=4,
        )
        _nearest_kernel[(images, lines)](
            weights,
            scores,
            slot,
            kept,
            cu,
            images,
            stay,
            lines,
            line_stride,
            neighbours,
            rows,
            num_warps=warps,
        )
        _weighted_sums_kernel[(images * cdiv(lines, LINES), cdiv(width, WIDTH))](
            x,
            weights,
            out,
            cu,
            x.stride(0),
            images,
            lines,
            line_stride,
            width,
            16 // x.element_size(),
            *tile,
            num_warps=4,
        )
    return out
