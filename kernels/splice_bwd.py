"""Splice, backward: the image gradient is a gather, the gradient of the table a sum in a fixed order, without atomics.

Shapes: ``dout [T, D]``, ``dW [V, D]``, ``dimages [M, D]``, ``source [T]`` int32 of the forward, ``image_rows [M]`` int32 (packed row of each
image row, -1: truncated away), ``order [K]`` int32 (text rows sorted by token id, -1 after the last). The last dimension is contiguous.

Bytes per call (``b`` = bytes of an element): the image gradient reads and writes ``M D b``. The gradient of the table reads ``K D b`` and writes
``V D b``, zeros included, each byte once; ids with 128 rows or more write and read ``D`` fp32 per 64 of their rows besides. Floor
``(2 M + K + V) D b / bandwidth``. Two launches: 1. image rows, first place of each id in ``order``, partial sums of frequent ids; 2. ``dW``.

Deterministic, and each row of ``dW`` depends on the rows of its own id only: they are added in the order of the packed batch, in fp32. An id with
at least ``2 CHUNK`` rows is cut into pieces of ``CHUNK`` rows counted from its own first row (the last piece takes the rest), whose sums
are added in order. Pieces start at least ``CHUNK`` places of ``order`` apart, so ``place // CHUNK`` is a slot of its own for each: no table
of pieces is needed, and the workspace is ``ceil(K / CHUNK) D`` fp32.

Launch table: not measured on a GPU. 8 rows of 16 bytes a thread are 16 KiB in flight a CTA of 4 warps, more than a multiprocessor of an A100
(9 KiB) or an H100 (14 KiB) needs to cover 500 ns at its bandwidth; the 64 fp32 sums of a thread leave room for 4 or 5 CTAs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import launching_on
from .splice import column_tiles
from .whole_numbers import cdiv

ROWS = 8
"""Rows that are loaded at once; divides ``CHUNK``."""

CHUNK = 64
"""Rows of one piece of a frequent id. Shorter pieces write more partial sums, longer ones leave one CTA busy when the others are done."""

TABLE_ROWS = 4
"""Rows of ``dW`` of one program: 8 KiB of zeros in one store where their ids don't occur, few enough that frequent neighbours spread."""

SEARCH_IDS = 256
"""Ids whose first place one program looks up."""

_BEHIND = tl.constexpr(2**31 - 1)  # sorts after every id


@triton.jit
def _first_place(ids, source, order, tokens, steps):
    """Return, for each id, how many places of ``order`` hold a smaller one: a binary search of every lane at once."""
    low = ids * 0
    high = low + tokens
    for _ in range(steps):
        open = low < high
        middle = (low + high) // 2
        row = tl.load(order + middle, mask=open, other=-1)
        token = tl.load(source + row, mask=row >= 0, other=_BEHIND)
        smaller = token < ids
        low = tl.where(open & smaller, middle + 1, low)
        high = tl.where(open & (token >= ids), middle, high)
    return low


@triton.jit
def _piece_of_slot(slot, source, order, tokens, steps, CHUNK: tl.constexpr):
    """Return begin and end of the piece that starts in places ``[slot CHUNK, (slot + 1) CHUNK)``; equal where none does.

    Only two runs of equal ids can have one: the run of the first place, and the run of the last, if it begins in between.
    """
    first = slot * CHUNK
    last = tl.minimum(first + CHUNK, tokens) - 1
    lane = tl.arange(0, 4)
    row = tl.load(order + tl.where(lane < 2, first, last))
    token = tl.load(source + row, mask=row >= 0, other=_BEHIND - 1)
    bound = _first_place(token + lane % 2, source, order, tokens, steps)
    begin_a, end_a = tl.sum(tl.where(lane == 0, bound, 0)), tl.sum(tl.where(lane == 1, bound, 0))
    begin_b, end_b = tl.sum(tl.where(lane == 2, bound, 0)), tl.sum(tl.where(lane == 3, bound, 0))
    piece, pieces = (first - begin_a + CHUNK - 1) // CHUNK, (end_a - begin_a) // CHUNK
    in_a = (pieces >= 2) & (piece < pieces)
    in_b = (end_b - begin_b >= 2 * CHUNK) & (begin_b > first)
    begin = tl.where(in_a, begin_a + piece * CHUNK, begin_b)
    end = tl.where(in_a & (piece == pieces - 1), end_a, begin + CHUNK)
    return begin, tl.where(in_a | in_b, end, begin)


@triton.jit
def _sum_of_rows(
    grad, order, grad_stride, begin, end, column, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Return the fp32 sum of the gradient rows at places ``[begin, end)`` of ``order``."""
    lane = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for place in range(begin, end, ROWS):
        live = place + lane < end
        row = tl.load(order + place + lane, mask=live, other=0).to(tl.int64)
        address = grad + row[:, None] * grad_stride + column[None, :]
        total += tl.load(address, mask=live[:, None] & (column < D)[None, :], other=0.0).to(tl.float32)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["images", "tokens", "steps", "slots", "ids", "searches"])
def _splice_bwd_rows_kernel(
    grad, source, image_rows, image_grad, order, partial, bounds, grad_stride, images, tokens, steps, slots, ids, searches,
    D: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, IDS: tl.constexpr,
):  # fmt: skip
    """Three kinds of programs: pieces of frequent ids first (the longest), first place of each id, rows of images."""
    tiles: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    program = tl.program_id(0)
    if program < slots * tiles:
        slot, column = program // tiles, program % tiles * BLOCK_D + tl.arange(0, BLOCK_D)
        begin, end = _piece_of_slot(slot, source, order, tokens, steps, CHUNK)
        total = _sum_of_rows(grad, order, grad_stride, begin, end, column, D, ROWS, BLOCK_D)
        tl.store(partial + slot.to(tl.int64) * D + column, total, mask=column < tl.where(begin < end, D, 0))
    elif program < slots * tiles + searches:
        token = (program - slots * tiles) * IDS + tl.arange(0, IDS)
        tl.store(bounds + token, _first_place(token, source, order, tokens, steps), mask=token < ids)
    else:
        program -= slots * tiles + searches
        image_row = program // tiles * ROWS + tl.arange(0, ROWS)
        column = program % tiles * BLOCK_D + tl.arange(0, BLOCK_D)
        live = (image_row < images)[:, None] & (column < D)[None, :]
        row = tl.load(image_rows + image_row, mask=image_row < images, other=-1)
        address = grad + row.to(tl.int64)[:, None] * grad_stride + column[None, :]
        tile = tl.load(address, mask=(row >= 0)[:, None] & live, other=0.0)
        out = image_grad + image_row.to(tl.int64)[:, None] * D + column[None, :]
        tl.store(out, tile.to(image_grad.dtype.element_ty), mask=live)


@triton.jit
def _splice_bwd_table_kernel(
    grad, order, partial, bounds, table_grad, grad_stride, table_stride, vocabulary, scale,
    D: tl.constexpr, SCALED: tl.constexpr, ADDING: tl.constexpr,
    CHUNK: tl.constexpr, ROWS: tl.constexpr, IDS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    first = tl.program_id(0) // tiles * IDS
    column = tl.program_id(0) % tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    inside, lane = column < D, tl.arange(0, ROWS // 2)
    if not ADDING:  # all absent ids of the tile at once
        token = first + tl.arange(0, IDS)
        known = token < vocabulary
        begin = tl.load(bounds + token, mask=known, other=0)
        absent = begin == tl.load(bounds + token + 1, mask=known, other=1)
        at = table_grad + token.to(tl.int64)[:, None] * table_stride + column[None, :]
        zeros = tl.zeros((IDS, BLOCK_D), table_grad.dtype.element_ty)
        tl.store(at, zeros, mask=absent[:, None] & inside[None, :])
    for index in range(first, tl.minimum(first + IDS, vocabulary)):
        start, stop = tl.load(bounds + index), tl.load(bounds + index + 1)
        if start < stop:
            pieces = tl.where(stop - start >= 2 * CHUNK, (stop - start) // CHUNK, 0)
            single = tl.where(pieces > 0, start, stop)  # a frequent id has no rows left to add, only sums of pieces
            total = _sum_of_rows(grad, order, grad_stride, start, single, column, D, ROWS, BLOCK_D)
            sums = tl.zeros((ROWS // 2, BLOCK_D), tl.float32)  # a row of fp32 is two loads
            for piece in range(0, pieces, ROWS // 2):
                live = (piece + lane < pieces)[:, None] & inside[None, :]
                slot = (start // CHUNK + piece + lane).to(tl.int64)
                sums += tl.load(partial + slot[:, None] * D + column[None, :], mask=live, other=0.0)
            total += tl.sum(sums, 0)
            if SCALED:
                total *= tl.full((1,), scale, tl.float32).to(grad.dtype.element_ty).to(tl.float32)
            place = table_grad + (tl.full((), 0, tl.int64) + index) * table_stride + column
            if ADDING:
                total += tl.load(place, mask=inside, other=0.0)
            tl.store(place, total.to(table_grad.dtype.element_ty), mask=inside)


def splice_bwd_rows(
    grad_TD: Tensor,
    source_T: Tensor,
    image_rows_M: Tensor | None,
    token_order_K: Tensor | None,
    vocabulary: int,
    image_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the first pass of the backward; what isn't needed is not computed and comes back empty.

    Args:
        grad_TD: gradient of the packed rows, last stride 1.
        source_T: int32 ``(T,)`` of the forward.
        image_rows_M: int32 packed row of each image row, -1: none; None = no gradient of the images.
        token_order_K: int32 text rows sorted by token id, -1 after the last; None = no gradient of the table.
        vocabulary: rows of the table.
        image_dtype: of the image gradient.

    Returns:
        Image gradient ``(M, D)``; fp32 partial sums ``(ceil(K / 64), D)`` of frequent ids, other slots undefined; int32 ``(V + 1,)`` first
        place of each id in ``token_order``. The last two are for :func:`splice_bwd_table`.
    """
    width, device = grad_TD.shape[1], grad_TD.device
    images = 0 if image_rows_M is None else image_rows_M.shape[0]
    tokens = 0 if token_order_K is None else token_order_K.shape[0]
    ids = 0 if token_order_K is None else vocabulary + 1
    image_grad_MD = torch.empty((images, width), dtype=image_dtype, device=device)
    partial_PD = torch.empty((cdiv(tokens, CHUNK), width), dtype=torch.float32, device=device)
    bounds = torch.empty(ids, dtype=torch.int32, device=device)
    block, tiles, warps = column_tiles(width)
    slots, searches = partial_PD.shape[0], cdiv(ids, SEARCH_IDS)
    programs = slots * tiles + searches + cdiv(images, ROWS) * tiles
    if programs and width:
        with launching_on(grad_TD):
            _splice_bwd_rows_kernel[(programs,)](
                grad_TD, source_T, source_T if image_rows_M is None else image_rows_M, image_grad_MD,
                source_T if token_order_K is None else token_order_K, partial_PD, bounds,
                grad_TD.stride(0), images, tokens, tokens.bit_length(), slots, ids, searches,
                width, CHUNK, ROWS, block, SEARCH_IDS, num_warps=warps,
            )  # fmt: skip
    return image_grad_MD, partial_PD, bounds


def splice_bwd_table(
    grad_TD: Tensor,
    token_order_K: Tensor,
    partial_PD: Tensor,
    bounds: Tensor,
    scale: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the second pass: the gradient of the table, every byte written once.

    Args:
        grad_TD: gradient of the packed rows, last stride 1.
        token_order_K: as in the first pass.
        partial_PD: of the first pass.
        bounds: of the first pass.
        scale: factor of the text rows in the forward, None = 1.
        dtype: of the table.

    Returns:
        ``(V, D)``, contiguous.
    """
    table_grad_VD = torch.empty((bounds.shape[0] - 1, grad_TD.shape[1]), dtype=dtype, device=grad_TD.device)
    _launch_table(grad_TD, token_order_K, partial_PD, bounds, scale, table_grad_VD, False)
    return table_grad_VD


def splice_bwd_table_into(
    main_grad_VD: Tensor,
    grad_TD: Tensor,
    token_order_K: Tensor,
    partial_PD: Tensor,
    bounds: Tensor,
    scale: float | None,
) -> None:
    """Do the same, but add to ``main_grad_VD`` in place: rows of ids that don't occur are neither read nor written."""
    _launch_table(grad_TD, token_order_K, partial_PD, bounds, scale, main_grad_VD, True)


def _launch_table(
    grad: Tensor,
    order: Tensor,
    partial: Tensor,
    bounds: Tensor,
    scale: float | None,
    out: Tensor,
    adding: bool,
) -> None:
    (vocabulary, width), (block, tiles, warps) = out.shape, column_tiles(out.shape[1])
    if out.numel():
        with launching_on(grad):
            _splice_bwd_table_kernel[(cdiv(vocabulary, TABLE_ROWS) * tiles,)](
                grad, order, partial, bounds, out, grad.stride(0), out.stride(0), vocabulary, 1.0 if scale is None else scale,
                width, scale is not None, adding, CHUNK, ROWS, TABLE_ROWS, block, num_warps=warps,
            )  # fmt: skip
