"""How the plan's kernels read samples: where the ids of one lie, padded or packed, what each id is, and where an image begins.

Device functions only; arguments as of the kernels in ``splice_plan``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def span_of_sample(begins, sample, samples, length, PACKED: tl.constexpr):
    """Return the flat index of the first id of a sample and one past its last; nothing for samples that aren't there."""
    begin = sample * length
    end = tl.where(sample < samples, begin + length, begin)
    if PACKED:
        begin = tl.maximum(tl.load(begins + sample, mask=sample < samples, other=0).to(tl.int32), 0)
        end = tl.minimum(tl.load(begins + sample + 1, mask=sample < samples, other=0).to(tl.int32), length)
    return begin, end


@triton.jit
def memory_offset(at, sample, length, stride, PACKED: tl.constexpr):
    """Return where the flat index ``at`` lies in memory."""
    offset = at.to(tl.int64)
    if not PACKED:
        offset += (stride - length) * sample.to(tl.int64)
    return offset


@triton.jit
def read_ids(
    ids, mask, at, end, sample, length, ids_stride, mask_stride, image_token, PACKED: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """Return ids (int64), which of them are text, and which are marks."""
    live = at < end
    if MASKED:
        place = mask + memory_offset(at, sample, length, mask_stride, PACKED)
        live = live & (tl.load(place, mask=live, other=0) != 0)
    place = ids + memory_offset(at, sample, length, ids_stride, PACKED)
    token = tl.load(place, mask=live, other=0).to(tl.int64)
    mark = live & (token == image_token)
    return token, live & (token != image_token), mark


@triton.jit
def image_boundary(image_cu, index, inside, image_rows):
    """Return the first row of image ``index``: 0 for the first, and never outside the image rows."""
    row = tl.load(image_cu + index, mask=inside & (index > 0), other=0).to(tl.int32)
    return tl.minimum(tl.maximum(row, 0), image_rows)
