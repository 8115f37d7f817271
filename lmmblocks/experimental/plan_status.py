"""What a plan that was made on the device says about itself, once somebody waits for the answer.

Motivation: a plan made on the device can meet faults (an id outside the vocabulary, marks without images) that only the device sees. Asking after
each plan would stop the host; a device assertion would kill the process.

How it works: the kernel writes the first fault into the plan's status, which is only ever overwritten while it is clean, so a status that is handed
from plan to plan (or replayed in a captured graph) keeps the first fault of all. Rows of a fault are zeros, never somebody else's.
:func:`check_plan` reads the status; with ``LMMBLOCKS_DEBUG=1`` every plan is checked as it is made.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..kernels.splice_codes import PlanFault
from ..spec import LmmError, SplicePlan
from .device_plan import DevicePlan

DEBUG = "LMMBLOCKS_DEBUG"

_MESSAGES = {
    PlanFault.IMAGE_BOUNDS: "image_cu_rows must climb from 0 to the number of image rows, which boundary {where} breaks",
    PlanFault.TOKEN: "token id number {where} (counted through all ids as given) is neither in the vocabulary nor the image mark: "
    "tokenise for this decoder, or name its image_token",
    PlanFault.LABEL: "label number {where} (counted through all labels as given) is neither a token nor -100 (not supervised)",
    PlanFault.MISSING_IMAGES: "the text has {where} image marks, more than there are images (or image rows, without image_cu_rows): "
    "pass the rows of every image the text shows",
    PlanFault.UNUSED_IMAGES: "the text has {where} image marks, fewer than there are images (or image rows, without image_cu_rows): "
    "pass the rows of no other images",
    PlanFault.TOO_LONG: "sample {where} has more rows than max_length: raise max_length, or set truncate to 'right'",
    PlanFault.CAPACITY: "the batch has {where} rows, more than the plan has room for: raise total_rows",
}


@dataclass(frozen=True, slots=True)
class PlanCounts:
    """What the host learns from a plan that was made on the device.

    Attributes:
        rows: packed rows in use; the rest of ``total_rows`` is slack.
        truncated: rows cut off by ``truncate="right"``, summed over all plans that shared the status.
    """

    rows: int
    truncated: int


def check_plan(plan: SplicePlan) -> PlanCounts:
    """Wait for the device and raise what went wrong when the plan was made.

    Args:
        plan: of :func:`~lmmblocks.experimental.splice_plan`; a plan made on the host was checked there and passes.

    Returns:
        Rows in use and rows truncated.

    Raises:
        LmmError: the first fault, and where it is.
    """
    if not isinstance(plan, DevicePlan):
        return PlanCounts(plan.total_rows, sum(plan.truncated))
    code, where, rows, truncated = plan.status.tolist()
    if code:
        raise LmmError(f"splice_plan: {_MESSAGES[PlanFault(code)].format(where=where)}")
    return PlanCounts(rows, truncated)


def debugging() -> bool:
    """Return whether every plan is checked as it is made: ``LMMBLOCKS_DEBUG`` is set to something other than 0."""
    return os.environ.get(DEBUG, "0") not in ("", "0")
