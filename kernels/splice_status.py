"""How the plan's kernel writes the status of a plan: the gravest fault it found, unless an earlier one is still there.

Device functions only; arguments as of the kernels in ``splice_plan``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .splice_codes import PlanFault

_NONE = tl.constexpr(2**31 - 1)  # no index
_IMAGE_BOUNDS, _TOKEN = tl.constexpr(int(PlanFault.IMAGE_BOUNDS)), tl.constexpr(int(PlanFault.TOKEN))
_LABEL, _CAPACITY = tl.constexpr(int(PlanFault.LABEL)), tl.constexpr(int(PlanFault.CAPACITY))
_TOO_LONG = tl.constexpr(int(PlanFault.TOO_LONG))
_MISSING_IMAGES = tl.constexpr(int(PlanFault.MISSING_IMAGES))
_UNUSED_IMAGES = tl.constexpr(int(PlanFault.UNUSED_IMAGES))


@triton.jit
def _graver(found, new_code, new_where, code, where):
    return tl.where(found, new_code, code), tl.where(found, new_where, where)


@triton.jit
def write_status(
    status, counts, image_cu, samples, images, image_rows, marks, rows, capacity, truncated, too_long,
    EXPANDED: tl.constexpr, TRUNCATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keep the first fault that was ever seen: nobody may have looked yet."""
    wrong_id, wrong_label = tl.full((), _NONE, tl.int32), tl.full((), _NONE, tl.int32)
    for first in range(0, samples, BLOCK):
        sample = first + tl.arange(0, BLOCK)
        index = tl.load(counts + sample * 4 + 2, mask=sample < samples, other=_NONE)
        wrong_id = tl.minimum(wrong_id, tl.min(index, 0))
        index = tl.load(counts + sample * 4 + 3, mask=sample < samples, other=_NONE)
        wrong_label = tl.minimum(wrong_label, tl.min(index, 0))
    wrong_bound = tl.full((), _NONE, tl.int32)
    wanted = images
    if EXPANDED:
        wanted = image_rows
    else:
        for first in range(0, images + 1, BLOCK):
            index = first + tl.arange(0, BLOCK)
            row = tl.load(image_cu + index, mask=index <= images, other=0).to(tl.int32)
            least = tl.load(image_cu + index - 1, mask=(index > 0) & (index <= images), other=0).to(tl.int32)
            wrong = (row < least) | ((index == 0) & (row != 0)) | ((index == images) & (row != image_rows))
            wrong = tl.where(wrong & (index <= images), index, _NONE)
            wrong_bound = tl.minimum(wrong_bound, tl.min(wrong, 0))
    # The gravest fault is asked for last.
    code, where = tl.where(rows > capacity, _CAPACITY, 0), tl.where(rows > capacity, rows, 0)
    if not TRUNCATE:
        code, where = _graver(too_long < _NONE, _TOO_LONG, too_long, code, where)
    code, where = _graver(marks < wanted, _UNUSED_IMAGES, marks, code, where)
    code, where = _graver(marks > wanted, _MISSING_IMAGES, marks, code, where)
    code, where = _graver(wrong_label < _NONE, _LABEL, wrong_label, code, where)
    code, where = _graver(wrong_id < _NONE, _TOKEN, wrong_id, code, where)
    code, where = _graver(wrong_bound < _NONE, _IMAGE_BOUNDS, wrong_bound, code, where)
    old = tl.load(status)
    tl.store(status + 1, tl.where(old == 0, where, tl.load(status + 1)))
    tl.store(status, tl.where(old == 0, code, old))
    tl.store(status + 2, tl.minimum(rows, capacity))
    tl.store(status + 3, tl.load(status + 3) + truncated)
