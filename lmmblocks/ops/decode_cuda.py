"""Launches of ``csrc/attention/decode.cu``: outputs and workspace, and what the host decides about dividing the keys.

Its part is only how many parts there should be together; how long they are follows from lengths that the kernel finds on the device. So the same
launch, captured once, is right and well divided for every length that a cache grows to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cuda_gate import check, extension, raw_stream

STEP_KEYS = 16
"""Keys that a warp takes at a time: sizes of pages and parts are multiples of it."""

LEAST_STEPS = 16
"""Of a part: 64 keys for each of its four warps. Below, writing and adding parts costs more than it saves; not measured."""

RESIDENT = 2
"""CTAs of a multiprocessor of an A100, whose shared memory they fill; an H100 has room for three."""

DTYPES = {torch.float16: 1, torch.bfloat16: 2}
"""As ``csrc/common/launch.cuh`` numbers them."""

WIDTHS = (64, 128, 256)
"""Head dims the kernel is compiled for."""

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
    places = {"cu_q": cu_q.data_ptr(), "cu_k": cu_k.data_ptr(), "page_table": 0, "lengths": 0, "table_row": 0, "page_rows": 0}
    strides = {"k_page": 0, "v_page": 0, **_row_and_head("k", k), **_row_and_head("v", v)}
    size = (cu_q.shape[0] - 1, max(longest_q, 1), longest_k if window is None else min(longest_k, window + longest_q))
    return _launched(q, k, v, size, {**places, **strides}, _mask(causal, scale, window, softcap), part_keys)


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
    places = {"cu_q": 0, "cu_k": 0, "page_table": page_table.data_ptr(), "lengths": lengths.data_ptr()}
    places |= {"table_row": page_table.stride(0), "page_rows": k_pages.shape[1]}
    strides = {"k_page": k_pages.stride(0), "v_page": v_pages.stride(0), **_row_and_head("k", k_pages), **_row_and_head("v", v_pages)}
    size = (segments, rows, max_length if window is None else min(max_length, window + rows))
    return _launched(q, k_pages, v_pages, size, {**places, **strides}, _mask(causal, scale, window, softcap), part_keys)


def _row_and_head(name: str, keys: Tensor) -> dict[str, int]:
    return {f"{name}_row": keys.stride(-3), f"{name}_head": keys.stride(-2)}


def _mask(causal: bool, scale: float, window: int | None, softcap: float | None) -> dict[str, Any]:
    return {"causal": int(causal), "scale": scale, "window": window or 0, "softcap": softcap or 0.0}


def _launched(
    q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int, int], places: Mapping[str, int], mask: Mapping[str, Any], part_keys: int
) -> tuple[Tensor, Tensor]:
    """Allocate and launch; ``size`` is segments, rows of the longest, most keys that its rows see."""
    from ..kernels.device import multiprocessors  # asks the driver once

    (rows, heads, width), (segments, longest_q, most_keys) = q.shape, size
    kv_heads = k.shape[-2]
    out, lse = q.new_empty(q.shape), q.new_empty((heads, rows), dtype=torch.float32)
    tile_rows = 16 if width > 128 or longest_q * heads <= 16 * kv_heads else 32
    tiles = kv_heads * -(-longest_q * (heads // max(kv_heads, 1)) // tile_rows)
    division = division_of(segments, tiles, most_keys, multiprocessors(q.device), part_keys)
    held = division.parts * longest_q * heads if division.most_parts > 1 else 0
    partial, ranges = q.new_empty(held * (width + 1), dtype=torch.float32), q.new_empty(2 * segments if held else 0, dtype=torch.int32)
    code = extension(q.device).attention_decode(
        q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), out=out.data_ptr(), lse=lse.data_ptr(),
        partial=partial.data_ptr(), partial_log=partial[held * width :].data_ptr(), ranges=ranges.data_ptr(),
        q_row=q.stride(0), q_head=q.stride(1), rows_q=rows, longest_q=longest_q, segments=segments,
        heads=heads, kv_heads=kv_heads, head_dim=width, dtype=DTYPES[q.dtype], device=max(q.get_device(), 0),
        **division._asdict(), **places, **mask, stream=raw_stream(q.device),
    )  # fmt: skip
    check(code, "attention_decode")
    return out, lse
