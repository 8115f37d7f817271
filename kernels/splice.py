"""Splice, forward: copy each packed row from the embedding table or from the image rows.

Shapes: ``table [V, D]``, ``images [M, D]`` or a strided ``[I, P, D]``, ``source [T]`` int32 (``>= 0``: row of the table, ``< 0``: image row
``-(source + 1)``, ``NOWHERE``: a zero row), ``out [T, D]``. All with row strides; the last dimension is contiguous.

Bytes per call (``b`` = bytes of an element): reads ``T D b + 4 T``, writes ``T D b``; floor ``2 T D b / bandwidth``. Two masked streams fill one
tile, so each output byte is written once, nothing is zeroed first and rows that were truncated away are not read. Text repeats, so its
rows come from the L2 often; image rows come once and are marked to leave it first.

Launch table: not measured on a GPU. A thread moves 16 bytes of bf16 at a time; 4 rows of two streams are 8 independent loads in flight a thread, of
which one stream's hit: 8 KiB a CTA of 4 warps. An A100 needs about 9 KiB in flight a multiprocessor to cover 500 ns at 1.8 TB/s, an H100
14 KiB: two of the CTAs that fit cover both, so one table serves both.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import launching_on
from .splice_codes import NOWHERE
from .whole_numbers import cdiv, next_power_of_2

WIDEST_TILE = 1024
"""Columns of a tile: 8 elements a thread, one 16-byte access of bf16, at 4 warps."""

ROWS = 4
"""Rows of a tile."""

_NOWHERE = tl.constexpr(NOWHERE)


@triton.jit(do_not_specialize=["rows", "image_rows", "rows_per_image"])
def _splice_fwd_kernel(
    table, images, source, out, table_stride, image_stride, row_stride, rows, vocabulary, image_rows, rows_per_image, scale,
    D: tl.constexpr, SCALED: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    row = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (column < D)[None, :]
    chosen = tl.load(source + row, mask=row < rows, other=_NOWHERE)
    text = ((chosen >= 0) & (chosen < vocabulary))[:, None]
    place = -(chosen + 1)
    image = ((place >= 0) & (place < image_rows))[:, None]
    from_text = table + chosen.to(tl.int64)[:, None] * table_stride + column[None, :]
    start = (place // rows_per_image).to(tl.int64) * image_stride
    start += (place % rows_per_image).to(tl.int64) * row_stride
    text_tile = tl.load(from_text, mask=text & inside, other=0.0)
    from_image = images + start[:, None] + column[None, :]
    image_tile = tl.load(from_image, mask=image & inside, other=0.0, eviction_policy="evict_first")
    if SCALED:  # the factor is rounded to the dtype of the table first, the product a second time
        factor = tl.full((1, 1), scale, tl.float32).to(text_tile.dtype).to(tl.float32)
        text_tile = (text_tile.to(tl.float32) * factor).to(text_tile.dtype)
    tile = tl.where(text, text_tile, image_tile.to(text_tile.dtype))
    tl.store(out + row.to(tl.int64)[:, None] * D + column[None, :], tile, mask=(row < rows)[:, None] & inside)


def column_tiles(width: int) -> tuple[int, int, int]:
    """Return columns of a tile, tiles of a row, and warps."""
    block = min(WIDEST_TILE, next_power_of_2(width))
    return block, cdiv(width, block), max(1, block // 256)


def _image_layout(images: Tensor) -> tuple[int, int, int]:
    """Return the stride of an image, the stride of its rows, and rows of an image."""
    if images.dim() == 3:
        return images.stride(0), images.stride(1), max(1, images.shape[1])
    return 0, images.stride(0), max(1, images.shape[0])


def splice_fwd(table_VD: Tensor, images: Tensor, source_T: Tensor, scale: float | None) -> Tensor:
    """Launch the forward.

    Args:
        table_VD: ``(V, D)``, last stride 1.
        images: ``(M, D)`` or ``(I, P, D)``, last stride 1, any row and image stride; the dtype may differ from the table's.
        source_T: int32 ``(T,)``, contiguous.
        scale: factor of the text rows, None = 1.

    Returns:
        ``(T, D)`` in the dtype of the table, contiguous; rows from nowhere, and of ids or image rows that don't exist, are zero.
    """
    (vocabulary, width), rows = table_VD.shape, source_T.shape[0]
    out_TD = torch.empty((rows, width), dtype=table_VD.dtype, device=table_VD.device)
    block, tiles, warps = column_tiles(width)
    image_rows = images.numel() // width if width else 0
    if out_TD.numel():
        with launching_on(table_VD):
            _splice_fwd_kernel[(cdiv(rows, ROWS) * tiles,)](
                table_VD, images, source_T, out_TD, table_VD.stride(0), *_image_layout(images)[:2], rows, vocabulary,
                image_rows, _image_layout(images)[2], 1.0 if scale is None else scale,
                width, scale is not None, ROWS, block, num_warps=warps,
            )  # fmt: skip
    return out_TD
