"""Tiles that hold whole rows: widths that are no power of two are cut into two parts that are.

5120 columns are a head of 4096 and a tail of 1024 instead of one tile of 8192 of which three eighths are masked: masked lanes cost
registers and issue slots, and with them loads in flight. Where the tail would be as wide as the head, one masked tile is as good.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import triton
import triton.language as tl

from .whole_numbers import next_power_of_2

WIDEST = 16384
"""Widest row of a tile: 32 elements a thread at 16 warps."""

TILE_ELEMENTS = 5120
"""At most of a tile, unless one row is wider: 32 to 40 elements a thread at 4 warps, four to five 16-byte loads of each input in flight."""


@dataclass(frozen=True)
class Tile:
    """How rows of one width are cut.

    Attributes:
        rows: of a tile, a power of two.
        head: columns of the first part, masked when more than the width.
        tail: columns of the second part, 0 when there is none.
    """

    rows: int
    head: int
    tail: int

    def warps(self, elements_a_thread: int) -> int:
        """Return 4 to 16 warps so that a thread holds about ``elements_a_thread``."""
        return _warps(self.rows * (self.head + self.tail), elements_a_thread)


@functools.cache
def tile_of(width: int, elements: int = TILE_ELEMENTS) -> Tile:
    """Return the tile for rows of ``width``.

    >>> tile_of(5120), tile_of(3584), tile_of(1152)
    (Tile(rows=1, head=4096, tail=1024), Tile(rows=1, head=4096, tail=0), Tile(rows=4, head=1024, tail=128))
    """
    head = _power_of_two_at_most(width)
    tail = next_power_of_2(width - head) if width > head else 0
    if tail == head:
        head, tail = 2 * head, 0
    return Tile(_power_of_two_at_most(max(1, elements // (head + tail))), head, tail)


def backward_tile_of(width: int) -> Tile:
    """Return the smaller tile of a backward: a thread keeps several fp32 rows of it, and two parts take registers for addresses of both."""
    return tile_of(width, 4096 if tile_of(width).tail == 0 else 3072)


def registers_for(warps: int, resident: int) -> int:
    """Return the registers a thread may have so that a multiprocessor of 65536 holds ``resident`` programs at once."""
    return 65536 // (32 * warps * resident) // 8 * 8


@functools.cache
def _warps(elements: int, elements_a_thread: int) -> int:
    return min(16, max(4, _power_of_two_at_most(elements // (32 * elements_a_thread))))


def _power_of_two_at_most(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)


@triton.jit
def row_start(row, inner, outer_stride, inner_stride):
    """First element of each row, in 64 bits; ``inner`` is the constant 1 for plain rows."""
    return (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride


@triton.jit
def load_part(base, start, column, live, D: tl.constexpr):
    """Load ``[rows, columns]`` in the tensor's dtype, zeros beyond the width and for dead rows."""
    return tl.load(base + start[:, None] + column[None, :], mask=live[:, None] & (column < D)[None, :], other=0.0)


@triton.jit
def store_part(base, start, column, live, D: tl.constexpr, values):
    """Store ``[rows, columns]``, rounded to the tensor's dtype."""
    mask = live[:, None] & (column < D)[None, :]
    tl.store(base + start[:, None] + column[None, :], values.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_weights(base, column, D: tl.constexpr):
    """Load ``[1, columns]`` as fp32; loaded as a tile, the layout is that of a one-row tile and nothing passes through shared memory."""
    return tl.load(base + column[None, :], mask=(column < D)[None, :], other=0.0).to(tl.float32)
