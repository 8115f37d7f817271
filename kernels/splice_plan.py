"""The splice plan, made on the device from token ids that only the device holds: no sync, and room for what the shapes allow.

Shapes: ``ids``, ``mask`` and ``labels`` ``[B, L]`` padded with a row stride, or ``[N]`` packed with ``begins [B + 1]``; ``image_cu [I + 1]`` int32
boundaries of the image rows, or none where the text holds one mark per image row; out: ``source, positions, kv_end`` int32 ``[T]``, ``labels``
int64 ``[T]``, ``cu_seqlens`` int32 ``[B + 1]``, ``image_rows`` int32 ``[M]``, and 4 words of status.

Two launches of ``B`` CTAs. The first counts the text ids and marks of each sample and finds its first wrong id and label. In the second each program
sums the lengths of the samples before its own, then walks its ids with running sums; nothing waits for another program. Slack
rows, and image rows that nobody marks, are filled by all programs in turn. One program writes the status, so no atomics are needed.

Bytes per call: ids and mask are read twice, labels twice, each output is written once, about 20 bytes a packed row; floor
``20 T / bandwidth``, which is below the time of a launch. The walk is serial within a sample: a CTA takes 512 ids a step.

Whatever the ids and boundaries hold, no access leaves its tensor: image boundaries are clamped to ``[0, M]``, rows to ``[0, T]``, and an
id that is not in the vocabulary gets no source. Faults are reported in the status word, see ``splice_codes``.

Launch table: not measured on a GPU, see ``WARPS``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import launching_on
from .splice_codes import NOWHERE
from .splice_samples import image_boundary, memory_offset, read_ids, span_of_sample
from .splice_status import write_status
from .whole_numbers import next_power_of_2

BLOCK = 512
"""Ids, rows or samples of one step."""

WARPS = 8
"""2 ids a thread: the running sums of a block stay in registers, and the few CTAs needn't share a multiprocessor."""

COUNTS = 4
"""Words that the first launch keeps of a sample: text ids, marks, index of the first wrong id, of the first wrong label."""

IGNORE = -100
NO_LIMIT = 2**31 - 1

_NOWHERE, _IGNORE, _NONE = tl.constexpr(NOWHERE), tl.constexpr(IGNORE), tl.constexpr(NO_LIMIT)


@triton.jit(do_not_specialize=["ids_stride", "mask_stride", "labels_stride", "length", "samples"])
def _splice_count_kernel(
    ids, mask, labels, begins, counts, ids_stride, mask_stride, labels_stride, length, samples, image_token, vocabulary,
    PACKED: tl.constexpr, MASKED: tl.constexpr, LABELLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0)
    begin, end = span_of_sample(begins, sample, samples, length, PACKED)
    text_ids = tl.zeros((BLOCK,), tl.int32)
    marks = tl.zeros((BLOCK,), tl.int32)
    wrong_id = tl.full((BLOCK,), _NONE, tl.int32)
    wrong_label = tl.full((BLOCK,), _NONE, tl.int32)
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        token, text, mark = read_ids(ids, mask, at, end, sample, length, ids_stride, mask_stride, image_token, PACKED, MASKED)
        text_ids += text.to(tl.int32)
        marks += mark.to(tl.int32)
        wrong = text & ((token < 0) | (token >= vocabulary))
        wrong_id = tl.minimum(wrong_id, tl.where(wrong, at, _NONE))
        if LABELLED:
            place = labels + memory_offset(at, sample, length, labels_stride, PACKED)
            label = tl.load(place, mask=text, other=0).to(tl.int64)
            wrong = text & (label < 0) & (label != _IGNORE)
            wrong_label = tl.minimum(wrong_label, tl.where(wrong, at, _NONE))
    tl.store(counts + sample * 4, tl.sum(text_ids, 0))
    tl.store(counts + sample * 4 + 1, tl.sum(marks, 0))
    tl.store(counts + sample * 4 + 2, tl.min(wrong_id, 0))
    tl.store(counts + sample * 4 + 3, tl.min(wrong_label, 0))


@triton.jit
def _lengths(
    counts, image_cu, first, samples, marks_before, images, image_rows, EXPANDED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return, for a block of samples, their indices, rows and marks."""
    sample = first + tl.arange(0, BLOCK)
    there = sample < samples
    text = tl.load(counts + sample * 4, mask=there, other=0)
    marks = tl.load(counts + sample * 4 + 1, mask=there, other=0)
    mark_end = marks_before + tl.cumsum(marks, 0)
    if EXPANDED:
        return sample, text + marks, marks
    begin = image_boundary(image_cu, tl.minimum(mark_end - marks, images), there, image_rows)
    end = image_boundary(image_cu, tl.minimum(mark_end, images), there, image_rows)
    return sample, text + tl.maximum(end - begin, 0), marks


@triton.jit
def _store_rows(
    source, positions, labels, kv_end, row, chosen, position, label, end, live,
    LABELLED: tl.constexpr, BIDIRECTIONAL: tl.constexpr,
):  # fmt: skip
    """Write packed rows; ``end`` is one past the last row that each may see."""
    tl.store(source + row, chosen, mask=live)
    tl.store(positions + row, position, mask=live)
    if LABELLED:
        tl.store(labels + row, label, mask=live)
    if BIDIRECTIONAL:
        tl.store(kv_end + row, end, mask=live)


@triton.jit
def _place_image(
    image_cu, source, positions, labels, kv_end, image_places, start, kept, index, top, image_rows,
    LABELLED: tl.constexpr, BIDIRECTIONAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the rows of image ``index``, whose first is row ``top`` of the segment that begins at ``start`` and keeps ``kept`` rows."""
    begin = image_boundary(image_cu, index, index >= 0, image_rows)
    end = image_boundary(image_cu, index + 1, index >= 0, image_rows)
    label = tl.full((BLOCK,), _IGNORE, tl.int64)
    seen = start + tl.minimum(top + end - begin, kept)
    for first in range(begin, end, BLOCK):
        image_row = first + tl.arange(0, BLOCK)
        position, there = top + image_row - begin, image_row < end
        row, live = start + position, there & (position < kept)
        tl.store(image_places + image_row, tl.where(position < kept, row, -1), mask=there)
        _store_rows(
            source, positions, labels, kv_end, row, -1 - image_row, position, label, seen, live,
            LABELLED, BIDIRECTIONAL,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[*("ids_stride", "mask_stride", "labels_stride", "length", "samples", "images", "image_rows", "capacity", "max_length")]
)
def _splice_place_kernel(
    ids, mask, given_labels, begins, counts, image_cu, status, source, positions, labels, kv_end, cu_seqlens, image_places,
    ids_stride, mask_stride, labels_stride, length, samples, image_token, vocabulary, images, image_rows, capacity, max_length,
    PACKED: tl.constexpr, MASKED: tl.constexpr, LABELLED: tl.constexpr, EXPANDED: tl.constexpr, BIDIRECTIONAL: tl.constexpr,
    TRUNCATE: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    own, lane = tl.program_id(0), tl.arange(0, BLOCK)
    nothing = tl.full((BLOCK,), _IGNORE, tl.int64)
    # 1. Where the own segment starts, what is before it, and how much there is in all.
    zero = tl.full((), 0, tl.int32)
    before, kept, total, truncated, too_long = zero, zero, zero, zero, zero + _NONE
    first_mark, marks = zero, zero
    for first in range(0, samples, SAMPLES):
        sample, rows, own_marks = _lengths(counts, image_cu, first, samples, marks, images, image_rows, EXPANDED, SAMPLES)
        fitting = tl.minimum(rows, max_length)
        before += tl.sum(tl.where(sample < own, fitting, 0), 0)
        kept += tl.sum(tl.where(sample == own, fitting, 0), 0)
        first_mark += tl.sum(tl.where(sample < own, own_marks, 0), 0)
        total += tl.sum(fitting, 0)
        truncated += tl.sum(rows - fitting, 0)
        too_long = tl.minimum(too_long, tl.min(tl.where(rows > fitting, sample, _NONE), 0))
        marks += tl.sum(own_marks, 0)
    start = tl.minimum(before, capacity)
    kept = tl.minimum(kept, capacity - start)
    tl.store(cu_seqlens + own, start, mask=own < samples)
    if own == 0:
        tl.store(cu_seqlens + samples, tl.minimum(total, capacity))
        write_status(
            status, counts, image_cu, samples, images, image_rows, marks, total, capacity, truncated, too_long,
            EXPANDED, TRUNCATE, SAMPLES,
        )  # fmt: skip
    # 2. The rows of the own segment, a block of ids at a time.
    begin, end = span_of_sample(begins, own, samples, length, PACKED)
    row_before, mark_before = zero, first_mark
    for first in range(begin, end, BLOCK):
        at = first + lane
        token, text, mark = read_ids(ids, mask, at, end, own, length, ids_stride, mask_stride, image_token, PACKED, MASKED)
        rank = mark_before + tl.cumsum(mark.to(tl.int32), 0) - mark.to(tl.int32)
        if EXPANDED:
            rows = (text | mark).to(tl.int32)
        else:
            shown = mark & (rank < images)
            image_begin = image_boundary(image_cu, rank, shown, image_rows)
            image_end = image_boundary(image_cu, rank + 1, shown, image_rows)
            rows = tl.where(shown, tl.maximum(image_end - image_begin, 0), text.to(tl.int32))
        offset = row_before + tl.cumsum(rows, 0) - rows
        chosen = tl.where((token >= 0) & (token < vocabulary), token, _NOWHERE).to(tl.int32)
        label = nothing
        if LABELLED:
            address = given_labels + memory_offset(at, own, length, labels_stride, PACKED)
            label = tl.load(address, mask=text, other=_IGNORE).to(tl.int64)
        live = text & (offset < kept)
        if EXPANDED:
            chosen = tl.where(mark, tl.where(rank < image_rows, -1 - rank, _NOWHERE), chosen)
            live = (text | mark) & (offset < kept)
            place = tl.where(offset < kept, start + offset, -1)
            tl.store(image_places + rank, place, mask=mark & (rank < image_rows))
        row = start + offset
        _store_rows(
            source, positions, labels, kv_end, row, chosen, offset, label, row + 1, live, LABELLED, BIDIRECTIONAL
        )  # fmt: skip
        block_marks = tl.sum(mark.to(tl.int32), 0)
        if not EXPANDED:
            for index in range(mark_before, tl.minimum(mark_before + block_marks, images)):
                top = tl.sum(tl.where(mark & (rank == index), offset, 0), 0)
                _place_image(
                    image_cu, source, positions, labels, kv_end, image_places, start, kept, index, top, image_rows,
                    LABELLED, BIDIRECTIONAL, BLOCK,
                )  # fmt: skip
        row_before += tl.sum(rows, 0)
        mark_before += block_marks
    # 3. All programs in turn: slack rows, and image rows that no mark asks for.
    step = tl.num_programs(0) * BLOCK
    for first in range(tl.minimum(total, capacity) + own * BLOCK, capacity, step):
        row, slack = first + lane, first + lane < capacity
        _store_rows(
            source, positions, labels, kv_end, row, lane * 0 + _NOWHERE, lane * 0, nothing, row + 1, slack,
            LABELLED, BIDIRECTIONAL,
        )  # fmt: skip
    unmarked = tl.minimum(marks, image_rows)
    if not EXPANDED:
        unmarked = image_boundary(image_cu, tl.minimum(marks, images), marks >= 0, image_rows)
    for first in range(unmarked + own * BLOCK, image_rows, step):
        tl.store(image_places + first + lane, lane * 0 - 1, mask=first + lane < image_rows)


def splice_plan(
    ids: Tensor,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
    image_cu_rows: Tensor | None,
    status: Tensor,
    image_token: int,
    vocabulary: int,
    image_rows: int,
    capacity: int,
    max_length: int,
    truncate: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch.

    Args:
        ids: integers, ``(B, L)`` padded or ``(N,)`` packed, last stride 1.
        cu_seqlens: integers ``(B + 1,)`` for packed ids, else None.
        mask: ``(B, L)``, 0 = padding; None = every id counts. Only for padded ids.
        labels: integers in the shape of ids; None = no labels.
        image_cu_rows: integers ``(I + 1,)``; None = every mark stands for one image row.
        status: int32 ``(4,)``; keeps the first fault.
        image_token: the mark.
        vocabulary: ids are below this.
        image_rows: ``M``.
        capacity: ``T``.
        max_length: most rows of a segment.
        truncate: longer segments are cut on the right; False = they are cut and reported as a fault.
        bidirectional: write ``kv_end``.

    Returns:
        ``source (T,)``, ``positions (T,)``, ``cu_seqlens (B + 1,)``, ``image_rows (M,)`` int32, int64 ``labels (T,)`` and int32 ``kv_end (T,)``;
        the last two are empty where not asked for.
    """
    packed, device = cu_seqlens is not None, ids.device
    samples = cu_seqlens.shape[0] - 1 if cu_seqlens is not None else ids.shape[0]
    length = ids.shape[-1]
    images = 0 if image_cu_rows is None else image_cu_rows.shape[0] - 1
    int32 = {"dtype": torch.int32, "device": device}
    source_T, positions_T = torch.empty(capacity, **int32), torch.empty(capacity, **int32)
    cu_out, places_M = torch.empty(samples + 1, **int32), torch.empty(image_rows, **int32)
    labels_T = torch.empty(capacity if labels is not None else 0, dtype=torch.int64, device=device)
    kv_end_T = torch.empty(capacity if bidirectional else 0, **int32)
    counts = torch.empty((samples, COUNTS), **int32)
    strides = [0 if packed or tensor is None else tensor.stride(0) for tensor in (ids, mask, labels)]
    given = [ids if tensor is None else tensor for tensor in (mask, labels, cu_seqlens)]
    kinds = (packed, mask is not None, labels is not None)
    with launching_on(ids):
        if samples:
            _splice_count_kernel[(samples,)](
                ids, *given, counts, *strides, length, samples, image_token, vocabulary, *kinds, BLOCK,
                num_warps=WARPS,
            )  # fmt: skip
        _splice_place_kernel[(max(samples, 1),)](
            ids, *given, counts, ids if image_cu_rows is None else image_cu_rows, status,
            source_T, positions_T, labels_T, kv_end_T, cu_out, places_M, *strides, length, samples, image_token, vocabulary,
            images, image_rows, capacity, max_length, *kinds, image_cu_rows is None, bidirectional, truncate,
            BLOCK, min(BLOCK, max(16, next_power_of_2(samples))), num_warps=WARPS,
        )  # fmt: skip
    return source_T, positions_T, cu_out, places_M, labels_T, kv_end_T
