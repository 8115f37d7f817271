"""Packed attention of a few query rows against long keys, the keys split over programs: decoding from a cache.

Shapes, results and masks are those of ``attention_forward.py`` without ``kv_end``: ``q [T_q, N, E]``, ``k, v [T_k, K, E]`` as the cache packs
them (views with strides of rows and heads), ``len_q <= 16`` rows a segment and as many keys as there are; ``out [T_q, N, E]``, ``lse [N, T_q]``.
Or keys in pages, ``k, v [pages, page_rows, K, E]``: key ``j`` of segment ``s`` in row ``j % page_rows`` of page ``table[s, j // page_rows]``.

Bytes per call (``b`` bytes an element): reads ``2 T_k K E b`` once, of which the floor is made: ``2 T_k K E b / bandwidth``. With ``P > 1``
splits also writes and reads ``P T_q N (4 E + 4)`` of partial results, which stay in L2.

One program holds all query heads of a group for the rows of a segment (``len_q * N / K`` rows of a tile of 16 to 64), so that keys are read once
a group, and walks over one part of the segment's keys in rising order. Parts are equally long for all segments, so that a long one has
many and a short one few; programs without a part end at once. The parts of a row leave fp32 sums and logarithms of weights; a second kernel
adds them in the order of the keys. With one part the first kernel writes the result itself: the plain forward, with the same blocks of keys.
Nothing depends on the state of the GPU or on other programs: the same bits on every run.

How many parts there are follows from lengths that the host knows (of pages, from the longest there may be) and from the number of
multiprocessors. The kernel makes a part longer where the boundaries on the device ask for it, so that a captured launch stays right when the
cache has grown.

Launch table: not measured on a GPU. Reading is all that counts, so tiles are as low as the tensor cores allow, and ``RESIDENT`` programs of a
multiprocessor have one or two blocks of keys and values each in flight, 16 to 32 KiB a block; bandwidth times latency of an A100 is 10 KiB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_bounds import (  # fmt: skip
    FULL,
    find_tile,
    grid_tiles,
    key_ends,
    key_starts,
    mask_kind,
    other_rows,
    own_rows,
)
from .attention_forward import LN_2, LOG2_E, LOWEST, attend
from .attention_heads import aligned, load_rows, store_rows, zero_rows
from .attention_tiles import Tile
from .device import launching_on, multiprocessors
from .head_parts import head_parts
from .relaunch import relaunched
from .whole_numbers import cdiv, next_power_of_2

RESIDENT = 2
"""Programs that a multiprocessor is given."""

FEWEST_BLOCKS = 4
"""Blocks of keys of a part: below this, writing and adding parts costs more than it saves."""

ADDED = 2048
"""Elements of the parts that are added together at a time: 16 a thread."""


@relaunched
@triton.jit(do_not_specialize=["rows_q", "segments", "blocks", "parts", "part_blocks", "window", "page_rows"])
def _attention_decode_kernel(
    q, k, v, out, lse, cu_q, cu_k, table, q_row, q_head, k_row, k_head, v_row, v_head, table_row, page_rows, k_page, v_page,
    rows_q, segments, blocks, parts, part_blocks, scale, window, softcap, heads,
    E: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, GROUP: tl.constexpr, VECTOR: tl.constexpr, PAGED: tl.constexpr,
    MASK: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    # 1. Which rows of which segment: all heads of a group lie in one tile, so keys are read once a group.
    segment, block = find_tile(tl.program_id(0), cu_q, segments, rows_q, blocks, EVEN, GROUP, ROWS)
    if segment > segments:
        return
    if PAGED:  # as many rows for each; cu_k are lengths
        length_q, begin_k, length_k = rows_q // segments, 0, tl.load(cu_k + segment)
        begin_q = segment * length_q
        table += segment.to(tl.int64) * table_row
    else:
        begin_q, length_q = own_rows(cu_q, segment, segments, rows_q)
        begin_k, length_k = other_rows(cu_k, segment, segments)
    place = block * ROWS + tl.arange(0, ROWS)
    row = place // GROUP
    live = row < length_q
    kv_head = tl.program_id(1).to(tl.int64)
    head = kv_head * GROUP + place % GROUP
    # 2. Which keys any of the rows sees.
    low = key_starts(row, length_q, length_k, window, WINDOW)
    high = key_ends(row, live, begin_q, length_q, begin_k, length_k, None, MASK)
    first, last = 0, length_k
    if MASK != FULL:
        last = tl.max(tl.where(live, high, 0), 0)
    if WINDOW:
        first = tl.maximum(tl.min(tl.where(live, low, length_k), 0), 0)
        if not PAGED:  # there, what no row sees may be anything
            first = first // KEYS * KEYS
    # 3. Which part of them is this program's: lengths come from the device, so a captured launch divides each later length well.
    visible = (tl.maximum(last - first, 0) + KEYS - 1) // KEYS
    part_keys = tl.maximum(part_blocks, (visible + parts - 1) // parts) * KEYS
    begin = first + tl.program_id(2) * part_keys
    row64 = (begin_q + row).to(tl.int64)
    at = tl.program_id(2).to(tl.int64) * rows_q * heads
    log_at = at + head * rows_q + row64
    if (tl.program_id(2) > 0) & (begin >= last):  # nothing left for it: a log-sum of -inf, and its part of the output is never read
        tl.store(lse + log_at, tl.zeros((ROWS,), tl.float32) + float("-inf"), mask=live)
        return
    k_row, v_row = aligned(k_row, VECTOR), aligned(v_row, VECTOR)
    k += kv_head * aligned(k_head, VECTOR)
    v += kv_head * aligned(v_head, VECTOR)
    if not PAGED:
        k += begin_k.to(tl.int64) * k_row
        v += begin_k.to(tl.int64) * v_row
    queries = load_rows(q, row64 * aligned(q_row, VECTOR) + head * aligned(q_head, VECTOR), live, E, MAIN, REST, True)
    state = zero_rows(ROWS, MAIN, REST), tl.zeros((ROWS,), tl.float32) + LOWEST, tl.zeros((ROWS,), tl.float32)

    # 4. One loop: a mask costs nothing beside the bytes of a block.
    for key in range(begin, tl.minimum(begin + part_keys, last), KEYS):
        keys = key + tl.arange(0, KEYS)
        k_rows, v_rows = k, v
        if PAGED:  # rows are counted from where key 0 would lie if all pages were laid out as each key's own
            turn = keys // page_rows
            page = tl.load(table + turn, mask=keys < length_k, other=0).to(tl.int64)
            skipped = (turn * page_rows).to(tl.int64)
            k_rows += (page * aligned(k_page, VECTOR) - skipped * k_row)[:, None]
            v_rows += (page * aligned(v_page, VECTOR) - skipped * v_row)[:, None]
        state = attend(
            state, queries, k_rows, v_rows, k_row, v_row, keys, length_k, low, high, scale, softcap,
            E, MAIN, REST, True, WINDOW, SOFTCAP,
        )  # fmt: skip

    # 5. The result, or its part, which the next kernel adds to the others.
    total, top, weight = state
    some = weight > 0
    store_rows(out, (at + row64 * heads + head) * E, live, total, 1.0 / tl.where(some, weight, 1.0), E, MAIN, REST)
    log_weight = tl.where(some, (top + tl.math.log2(tl.where(some, weight, 1.0))) * LN_2, float("-inf"))
    tl.store(lse + log_at, log_weight, mask=live)


@relaunched
@triton.jit(do_not_specialize=["rows", "parts"])
def _attention_combine_kernel(
    partial, partial_lse, out, lse, rows, heads, parts, E: tl.constexpr, WIDTH: tl.constexpr, ADDED: tl.constexpr
):  # fmt: skip
    """One row of one head: the parts weighted by their share of the softmax, in the order of the keys."""
    # 1. The largest log-sum of all parts.
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column, each = tl.arange(0, WIDTH), tl.arange(0, ADDED)
    partial += (row * heads + head) * E
    partial_lse += head * rows + row
    top = tl.zeros((ADDED,), tl.float32) + LOWEST
    for first in range(0, parts, ADDED):
        part = first + each
        at = part.to(tl.int64) * rows * heads
        top = tl.maximum(top, tl.load(partial_lse + at, mask=part < parts, other=float("-inf")))
    highest = tl.max(top, 0)
    # 2. Each part counts exp(its log-sum - the largest).
    total, weight = tl.zeros((WIDTH,), tl.float32), 0.0
    for first in range(0, parts, ADDED):
        part = first + each
        at = part.to(tl.int64) * rows * heads
        logs = tl.load(partial_lse + at, mask=part < parts, other=float("-inf"))
        shares = tl.math.exp2((logs - highest) * LOG2_E)
        inside = (shares > 0)[:, None] & (column < E)[None, :]  # parts that were never written are not read
        values = tl.load(partial + at[:, None] * E + column[None, :], mask=inside, other=0.0)
        total += tl.sum(values * shares[:, None], 0)
        weight += tl.sum(shares, 0)
    some = weight > 0
    total = total / tl.where(some, weight, 1.0)
    tl.store(out + (row * heads + head) * E + column, total.to(out.dtype.element_ty), mask=column < E)
    log_weight = tl.where(some, highest + tl.math.log2(tl.where(some, weight, 1.0)) * LN_2, float("-inf"))
    tl.store(lse + head * rows + row, log_weight)


def decode_tile(rows: int, head_dim: int, dtype: torch.dtype) -> Tile:
    """Return the tile of segments with at most ``rows`` packed rows, heads of a group counted."""
    lines = min(max(16, next_power_of_2(rows)), 64)
    width = sum(head_parts(head_dim))
    if dtype == torch.float32:
        return Tile(min(lines, 32 if width <= 128 else 16), 32 if width <= 128 else 16, 4, 1)
    return Tile(lines, 64 if width <= 128 else 32, 4, 3 if width <= 64 else 2)


@lru_cache(maxsize=256)
def parts_of(visible: Sequence[int], tiles: int, keys: int, slots: int) -> tuple[int, int]:
    """Return how many parts the longest segment has, and the blocks of a part: the shortest parts that all run at once.

    Args:
        visible: keys that each segment sees, on the host.
        tiles: programs of a part: kv heads times blocks of rows of a segment.
        keys: of a block.
        slots: programs that run at once.

    >>> parts_of((4096,), 8, 64, 216), parts_of((4096, 100), 8, 64, 216), parts_of((200,) * 4, 8, 64, 216), parts_of((4096,) * 64, 8, 64, 216)
    ((16, 4), (16, 4), (1, 4), (1, 64))
    """
    blocks = [cdiv(length, keys) for length in visible]
    longest = max(blocks, default=0)
    if longest <= FEWEST_BLOCKS or len(blocks) * tiles >= slots:
        return 1, max(longest, 1)
    size = max(FEWEST_BLOCKS, cdiv(sum(blocks) * tiles, slots))
    while size < longest and sum(cdiv(each, size) for each in blocks) * tiles > slots:
        size += 1
    return cdiv(longest, size), size


def attention_decode(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, longest_q: int, even: bool,
    causal: bool, scale: float, window: int | None, softcap: float | None, visible: Sequence[int], parts: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the forward.

    Args:
        q: ``(T_q, N, E)``, last stride 1, rows and heads on 16 bytes.
        k: ``(T_k, K, E)``, likewise.
        v: shape of ``k``.
        cu_q: int32 ``(S + 1,)``.
        cu_k: int32 ``(S + 1,)``.
        longest_q: rows of the longest query segment.
        even: all query segments are that long and leave no slack.
        causal: a row sees keys up to its own place.
        scale: of the scores, above 0.
        window: keys a row sees up to its own place, or None.
        softcap: limit of the scores, or None.
        visible: keys that the rows of each segment see, on the host; only the number of parts depends on it.
        parts: of a segment at most, 0 = as many as keep the device busy.

    Returns:
        ``out (T_q, N, E)`` and fp32 ``lse (N, T_q)``, contiguous.
    """

    def division(tiles: int, keys: int) -> tuple[int, int]:
        slots = RESIDENT * multiprocessors(q.device)
        return (parts, 1) if parts else parts_of(tuple(visible), tiles, keys, slots)

    places = cu_q, cu_k, None, cu_q.shape[0] - 1
    return _launched(q, k, v, places, longest_q, even, (causal, scale, window, softcap), division)


def paged_attention_decode(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, lengths: Tensor, max_length: int,
    causal: bool, scale: float, window: int | None, softcap: float | None, part_keys: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the forward on keys in pages.

    Args:
        q: ``(S * rows, N, E)``, last stride 1, rows and heads on 16 bytes.
        k_pages: ``(pages, page_rows, K, E)``, likewise.
        v_pages: shape of ``k_pages``.
        page_table: int32 ``(S, max_pages)``, last stride 1.
        lengths: int32 ``(S,)``.
        max_length: most keys of a segment; only the number of parts depends on it.
        causal: as for :func:`attention_decode`, like ``scale``, ``window``, ``softcap``.
        part_keys: of every part, 0 = as many parts as keep the device busy.

    Returns:
        ``out (S * rows, N, E)`` and fp32 ``lse (N, S * rows)``, contiguous.
    """
    segments = lengths.shape[0]
    rows = q.shape[0] // max(segments, 1)
    most = max_length if window is None else min(max_length, window + rows - 1)

    def division(tiles: int, keys: int) -> tuple[int, int]:
        if part_keys:
            size = cdiv(part_keys, keys)
            return max(cdiv(cdiv(most, keys), size), 1), size
        slots = RESIDENT * multiprocessors(q.device)
        return parts_of((most,) * segments, tiles, keys, slots)[0], FEWEST_BLOCKS

    places = lengths, lengths, page_table, segments
    return _launched(q, k_pages, v_pages, places, rows, True, (causal, scale, window, softcap), division)


def _launched(
    q: Tensor, k: Tensor, v: Tensor, places: tuple[Tensor, Tensor, Tensor | None, int], longest_q: int, even: bool,
    mask: tuple[bool, float, int | None, float | None], division: Callable[[int, int], tuple[int, int]],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Allocate and launch; ``division`` gives the parts of a segment and the fewest blocks of one, from tiles of a part and keys of a block."""
    (rows, heads, width), kv_heads, (cu_q, cu_k, table, segments) = q.shape, k.shape[-2], places
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(heads, rows, dtype=torch.float32)
    if not rows or not heads:
        return out, lse
    (causal, scale, window, softcap), group, paged = mask, heads // kv_heads, table is not None
    tile = decode_tile(longest_q * group, width, q.dtype)
    programs, blocks = grid_tiles(rows * group, segments, longest_q * group, even, tile.rows)
    parts, part_blocks = division(kv_heads * max(blocks, 1), tile.keys)
    split, padded = parts > 1, next_power_of_2(width)
    partial = lse.new_empty(parts, rows, heads, width) if split else out
    partial_lse = lse.new_empty(parts, heads, rows) if split else lse
    pages = (table.stride(0), k.shape[1], k.stride(0), v.stride(0)) if paged else (0, 1, 0, 0)
    with launching_on(q):
        _attention_decode_kernel[(programs, kv_heads, parts)](
            q, k, v, partial, partial_lse, cu_q, cu_k, table,
            q.stride(0), q.stride(1), k.stride(-3), k.stride(-2), v.stride(-3), v.stride(-2), *pages,
            rows, segments, blocks, parts, part_blocks, scale, window or 0, softcap or 0.0, heads,
            width, *head_parts(width), group, 16 // q.element_size(), paged,
            mask_kind(causal, False), window is not None, softcap is not None, even, tile.rows, tile.keys,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if split:
            added = partial, partial_lse, out, lse, rows, heads, parts, width, padded, ADDED // padded
            _attention_combine_kernel[(rows, heads)](*added, num_warps=4)
    return out, lse
