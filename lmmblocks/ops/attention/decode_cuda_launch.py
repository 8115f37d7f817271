"""Launches of ``csrc/attention/decode.cu``: outputs and workspace, and what the host decides about dividing the keys.

Its part is only how many parts there should be together; how long they are follows from lengths that the kernel finds on the device. So the same
launch, captured once, is right and well divided for every length that a cache grows to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.device import multiprocessors
from ..cuda_gate import check, launcher, pointers, raw_stream

STEP_KEYS = 16
"""Keys that a warp takes at a time: sizes of pages and parts are multiples of it."""

LEAST_STEPS = 16
"""Fewest steps of a part: 64 keys for each of its four warps. With fewer, writing and adding parts costs more than it saves; not measured."""

RESIDENT = 2
"""CTAs of a multiprocessor of an A100, whose shared memory they fill; an H100 has room for three."""

DTYPES = {torch.float16: 1, torch.bfloat16: 2}
"""As ``csrc/common/launch.cuh`` numbers them."""

WIDTHS = (64, 128, 256)
"""Head dims the kernel is compiled for."""

ORDER = (
    "q k v out lse cu_q cu_k page_table lengths partial partial_log ranges q_row q_head k_page k_row k_head v_page v_row v_head table_row "
    "rows_q longest_q segments heads kv_heads head_dim page_rows parts goal least_steps most_parts causal window dtype device scale softcap stream"
)
"""Arguments of the launcher, as the struct of csrc/attention/decode.h lists them."""

_MOST = 2**31 - 1


class Division(NamedTuple):
    """How keys are divided; see ``csrc/attention/decode_parts.cuh``.

    Attributes:
        parts: most there can be together: the launch, and the workspace, have room for so many.
        goal: parts that all segments should have together.
        least_steps: of a part.
        most_parts: of a segment; 1 = nothing is split.
    """

    parts: int
    goal: int
    least_steps: int
    most_parts: int


def division_of(segments: int, tiles: int, most_keys: int, multiprocessors: int, part_keys: int = 0) -> Division:
    """Divide keys so that all parts run at once, from shapes and the kind of GPU only.

    Args:
        segments: how many.
        tiles: CTAs that each part takes: kv heads times tiles of rows of a segment.
        most_keys: that a segment has, or may have when a captured launch is run again.
        multiprocessors: of the device.
        part_keys: of every part, instead; 0 = by the above.

    >>> division_of(1, 8, 32768, 108), division_of(8, 8, 4096, 108).parts, division_of(64, 8, 4096, 108).parts
    (Division(parts=27, goal=27, least_steps=16, most_parts=2147483647), 27, 127)
    >>> division_of(4, 8, 256, 108), division_of(4, 8, 4096, 108, part_keys=1024)
    (Division(parts=4, goal=1, least_steps=16, most_parts=1), Division(parts=16, goal=2147483647, least_steps=64, most_parts=4))
    """
    steps = -(-most_keys // STEP_KEYS)
    if part_keys:
        least = part_keys // STEP_KEYS
        most = max(1, -(-steps // least))
        return Division(segments * most, _MOST, least, most)
    if steps <= LEAST_STEPS or segments == 0:
        return Division(segments, 1, LEAST_STEPS, 1)
    goal = max(RESIDENT * multiprocessors // max(tiles, 1) - (segments - 1), segments)
    return Division(goal + segments - 1, goal, LEAST_STEPS, _MOST)


def packed_decode(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, longest_q: int, longest_k: int, causal: bool, scale: float,
    window: int | None, softcap: float | None, part_keys: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch it on packed keys.

    Args:
        q: ``(T_q, N, E)``, last stride 1, rows and heads on 16 bytes.
        k: ``(T_k, K, E)``, likewise.
        v: shape of ``k``.
        cu_q: int32 ``(S + 1,)``.
        cu_k: int32 ``(S + 1,)``.
        longest_q: rows of the longest query segment.
        longest_k: keys of the longest segment; only the division depends on it.
        causal: a row sees keys up to its own place.
        scale: of the scores, above 0.
        window: keys a row sees up to its own place, or None.
        softcap: limit of the scores, or None.
        part_keys: see :func:`division_of`.

    Returns:
        ``out (T_q, N, E)`` and fp32 ``lse (N, T_q)``, contiguous.
    """
    size = (cu_q.shape[0] - 1, max(longest_q, 1), longest_k if window is None else min(longest_k, window + longest_q))
    places = (*pointers(cu_q, cu_k), 0, 0)
    return _launched(q, k, v, size, places, (0, 0, 0, 0), (int(causal), window or 0, scale, softcap or 0.0), part_keys)


def paged_decode(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, lengths: Tensor, max_length: int, causal: bool, scale: float,
    window: int | None, softcap: float | None, part_keys: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch it on keys in pages.

    Args:
        q: ``(S * rows, N, E)``, last stride 1, rows and heads on 16 bytes.
        k_pages: ``(pages, page_rows, K, E)``, likewise.
        v_pages: shape of ``k_pages``.
        page_table: int32 ``(S, max_pages)``, last stride 1.
        lengths: int32 ``(S,)``, contiguous.
        max_length: most keys of a segment; only the division depends on it.
        causal: a row sees keys up to its own place.
        scale: of the scores, above 0.
        window: keys a row sees up to its own place, or None.
        softcap: limit of the scores, or None.
        part_keys: see :func:`division_of`.

    Returns:
        ``out (S * rows, N, E)`` and fp32 ``lse (N, S * rows)``, contiguous.
    """
    segments = lengths.shape[0]
    rows = max(q.shape[0] // max(segments, 1), 1)
    size = (segments, rows, max_length if window is None else min(max_length, window + rows))
    pages = (k_pages.stride(0), v_pages.stride(0), page_table.stride(0), k_pages.shape[1])
    places = (0, 0, *pointers(page_table, lengths))
    return _launched(q, k_pages, v_pages, size, places, pages, (int(causal), window or 0, scale, softcap or 0.0), part_keys)


def _launched(
    q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int, int], places: tuple[int, ...], pages: tuple[int, int, int, int],
    mask: tuple[int, int, float, float], part_keys: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Allocate and launch.

    Args:
        q: queries.
        k: keys, packed or in pages.
        v: values.
        size: segments, rows of the longest, most keys that its rows see.
        places: where ``cu_q, cu_k, page_table, lengths`` lie.
        pages: strides of a page of keys, of values, and of a row of the page table, and rows of a page; zeros where keys are packed.
        mask: ``causal, window, scale, softcap``.
        part_keys: see :func:`division_of`.
    """
    (rows, heads, width), (segments, longest_q, most_keys), device = q.shape, size, q.device
    kv_heads, (causal, window, scale, softcap), (k_page, v_page, table_row, page_rows) = k.shape[-2], mask, pages
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(heads, rows, dtype=torch.float32)
    tile_rows = 16 if width > 128 or longest_q * heads <= 16 * kv_heads else 32
    tiles = kv_heads * -(-longest_q * (heads // max(kv_heads, 1)) // tile_rows)
    division = division_of(segments, tiles, most_keys, multiprocessors(device), part_keys)
    held = division.parts * longest_q * heads if division.most_parts > 1 else 0
    partial = q.new_empty(held * (width + 1), dtype=torch.float32) if held else None
    ranges = q.new_empty(2 * segments, dtype=torch.int32) if held else None
    logs = 0 if partial is None else partial.data_ptr() + 4 * held * width
    code = launcher("attention_decode", device, ORDER)(
        *pointers(q, k, v, out, lse), *places, *pointers(partial), logs, *pointers(ranges),
        q.stride(0), q.stride(1), k_page, *k.stride()[-3:-1], v_page, *v.stride()[-3:-1], table_row,
        rows, longest_q, segments, heads, kv_heads, width, page_rows, *division, causal, window, DTYPES[q.dtype], device.index or 0,
        scale, softcap, raw_stream(device),
    )  # fmt: skip
    check(code, "attention_decode")
    return out, lse
