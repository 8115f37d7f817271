"""Which keys a row of packed attention sees: the one place that knows, for all kernels.

Every mask is an interval: a row sees the keys ``low <= key < high`` of its segment. With ``place = row + len_k - len_q`` (bottom-right),

    high = len_k (FULL) | place + 1 (CAUSAL) | kv_end[row] - first key of the segment (KV_END), within 0..len_k
    low  = 0, or with a window place - window + 1

Blocks of keys that a whole tile of rows sees need no mask, blocks that none sees are not visited. ``kv_end`` may be anything: the extremes over
the rows of a tile are taken on the device. For a block of keys, the rows that see it are found by one pass over the segment's ``kv_end``
(4 bytes a row, 1/64 or less of what the loop over these rows then reads).

A program of the grid finds its segment on the device, from the boundaries alone: the grid depends on shapes only, nothing is copied and a
captured launch stays right when the boundaries change. Rows after the last segment are one more segment, which sees nothing, so that they are
written as zeros. Segments of one length (a batch of images) need no search.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .whole_numbers import cdiv

FULL = tl.constexpr(0)
CAUSAL = tl.constexpr(1)
KV_END = tl.constexpr(2)
"""What bounds a row on the right."""

SEARCH = tl.constexpr(128)
"""Segments looked at together: a thread of four warps each."""

SCAN = tl.constexpr(1024)
"""Rows of ``kv_end`` looked at together."""


def mask_kind(causal: bool, has_kv_end: bool) -> int:
    """Return ``FULL``, ``CAUSAL`` or ``KV_END`` as a number."""
    return (KV_END if has_kv_end else CAUSAL if causal else FULL).value


def grid_tiles(rows: int, segments: int, longest: int, even: bool, tile_rows: int) -> tuple[int, int]:
    """Return how many tiles a grid needs for packed rows, and how many a segment has (used when all are of one length).

    >>> grid_tiles(rows=577 * 4, segments=4, longest=577, even=True, tile_rows=128), grid_tiles(96, 2, 64, False, 64)
    ((20, 5), (4, 1))
    """
    each = cdiv(longest, tile_rows)
    return (segments * each if even else cdiv(rows, tile_rows) + segments, each)


@triton.constexpr_function
def narrow_keys(keys):
    """Return the widest tail of a segment that gets a block of its own, 16 or 32 keys instead of ``keys``."""
    return min(keys // 2, 32) if keys > 16 else 0


@triton.jit
def find_tile(tile, cu, segments, rows, blocks, EVEN: tl.constexpr, PACK: tl.constexpr, ROWS: tl.constexpr):
    """Return (segment, block within it); segment ``segments`` is the slack, beyond it there is nothing to do."""
    if EVEN:
        return tile // blocks, tile % blocks
    else:
        segment = segments + 1
        block = 0
        before = 0
        for first in range(0, segments + 1, SEARCH):
            index = first + tl.arange(0, SEARCH)
            begin = tl.load(cu + index, mask=index <= segments, other=rows)
            end = tl.load(cu + index + 1, mask=index < segments, other=rows)
            count = ((end - begin) * PACK + ROWS - 1) // ROWS
            upto = before + tl.cumsum(count, 0)
            here = (tile < upto) & (tile >= upto - count)
            segment = tl.minimum(segment, tl.min(tl.where(here, index, segments + 1), 0))
            block += tl.sum(tl.where(here, tile - (upto - count), 0), 0)
            before = tl.max(upto, 0)
        return segment, block


@triton.jit
def own_rows(cu, segment, segments, rows):
    """Return (first row, rows) of a segment, or of the slack."""
    begin = tl.load(cu + segment)
    return begin, tl.load(cu + segment + 1, mask=segment < segments, other=rows) - begin


@triton.jit
def other_rows(cu, segment, segments):
    """Return (first row, rows) of a segment on the other side; the slack meets nothing."""
    begin = tl.load(cu + segment)
    return begin, tl.load(cu + segment + 1, mask=segment < segments, other=begin) - begin


@triton.jit
def key_ends(row, live, begin_q, length_q, begin_k, length_k, kv_end, MASK: tl.constexpr):
    """``high`` of each row."""
    if MASK == FULL:
        end = row * 0 + length_k
    elif MASK == CAUSAL:
        end = row + length_k - length_q + 1
    else:
        end = tl.load(kv_end + begin_q + row, mask=live, other=0).to(tl.int32) - begin_k
    return tl.minimum(tl.maximum(end, 0), length_k)


@triton.jit
def key_starts(row, length_q, length_k, window, WINDOW: tl.constexpr):
    """``low`` of each row; may be negative."""
    if WINDOW:
        return row + length_k - length_q - window + 1
    else:
        return row * 0


@triton.jit
def seen(key, low, high, WINDOW: tl.constexpr):
    """Whether a row sees a key, the arguments broadcast against each other."""
    if WINDOW:
        return (key < high) & (key >= low)
    else:
        return key < high


@triton.jit
def key_blocks(low, high, live, length_k, MASK: tl.constexpr, WINDOW: tl.constexpr, KEYS: tl.constexpr):
    """Where the blocks of keys of a tile of rows begin: masked, from the second without a mask, masked from the third up to the fourth."""
    if MASK == FULL:
        last, whole = length_k, length_k
    else:
        last = tl.max(tl.where(live, high, 0), 0)
        whole = tl.min(tl.where(live, high, length_k), 0)
    first, clear = 0, 0
    if WINDOW:
        first = tl.maximum(tl.min(tl.where(live, low, length_k), 0), 0) // KEYS * KEYS
        clear = (tl.maximum(tl.max(tl.where(live, low, 0), 0), 0) + KEYS - 1) // KEYS * KEYS
        clear = tl.maximum(tl.minimum(clear, (last + KEYS - 1) // KEYS * KEYS), first)
    return first, clear, tl.maximum(whole // KEYS * KEYS, clear), last


@triton.jit
def row_blocks(
    first_key, begin_q, length_q, begin_k, length_k, kv_end, window,
    MASK: tl.constexpr, WINDOW: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Where the blocks of rows of a block of keys begin: masked, from the second without a mask, masked from the third up to the fourth."""
    shift = length_k - length_q
    last_key = tl.minimum(first_key + KEYS, length_k)
    first, whole = 0, 0
    if MASK == CAUSAL:
        first = tl.minimum(tl.maximum(first_key - shift, 0), length_q)
        whole = tl.maximum(last_key - 1 - shift, 0)
    elif MASK == KV_END:
        first = length_q  # two numbers go around the loop: of vectors that do, Triton 3.9 passes no alignment on to the loads below
        for at in range(0, length_q, SCAN):
            row = at + tl.arange(0, SCAN)
            end = tl.load(kv_end + begin_q + row, mask=row < length_q, other=0).to(tl.int32) - begin_k
            first = tl.minimum(first, tl.min(tl.where((end > first_key) & (row < length_q), row, length_q), 0))
            whole = tl.maximum(whole, tl.max(tl.where((end < last_key) & (row < length_q), row + 1, 0), 0))
    stop, clear = length_q, length_q
    if WINDOW:
        stop = tl.minimum(tl.maximum(last_key - 1 + window - shift, 0), length_q)
        clear = tl.minimum(tl.maximum(first_key + window - shift, 0), length_q)
        clear = tl.where(clear < stop, clear // ROWS * ROWS, stop)
    start = first // ROWS * ROWS
    second = tl.minimum((whole + ROWS - 1) // ROWS * ROWS, tl.maximum(stop, start))
    second = tl.maximum(second, start)
    return start, second, tl.maximum(clear, second), stop
