"""Code that nothing in the library needs yet: ``README.md`` beside this file says what would make each part of it belong, or go.

Importing this package adds its ops to those that :class:`lmmblocks.backend` knows. Nothing outside imports it, and its names may change or vanish
in any release.
"""

from ..ops import dispatch as _dispatch
from .bias_gelu import BIAS_GELU_REFERENCE, BIAS_GELU_TRITON, bias_gelu
from .device_plan import DevicePlan
from .merge_rows import (
    MERGE_NEIGHBOURS_REFERENCE,
    MERGE_NEIGHBOURS_TRITON,
    MERGE_TO_NEAREST_REFERENCE,
    MERGE_TO_NEAREST_TRITON,
    merge_neighbours,
    merge_to_nearest,
)
from .outlier_counts import OUTLIER_COUNTS_REFERENCE, OUTLIER_COUNTS_TRITON, outlier_counts
from .plan_status import PlanCounts, check_plan
from .splice_into import splice_into
from .splice_plan import SPLICE_PLAN_REFERENCE, SPLICE_PLAN_TRITON, splice_plan

LADDERS = {
    "bias_gelu": (BIAS_GELU_TRITON, BIAS_GELU_REFERENCE),
    "merge_neighbours": (MERGE_NEIGHBOURS_TRITON, MERGE_NEIGHBOURS_REFERENCE),
    "merge_to_nearest": (MERGE_TO_NEAREST_TRITON, MERGE_TO_NEAREST_REFERENCE),
    "outlier_counts": (OUTLIER_COUNTS_TRITON, OUTLIER_COUNTS_REFERENCE),
    "splice_plan": (SPLICE_PLAN_TRITON, SPLICE_PLAN_REFERENCE),
}
_dispatch.begin_with(LADDERS)

__all__ = [
    "DevicePlan",
    "PlanCounts",
    "bias_gelu",
    "check_plan",
    "merge_neighbours",
    "merge_to_nearest",
    "outlier_counts",
    "splice_into",
    "splice_plan",
]
