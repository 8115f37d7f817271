"""The splice in Triton: one launch forward, two backward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..spec import SplicePlan
from .dispatch import Implementation
from .splice_kernels import KernelSplice, define_kernels
from .triton_gate import triton_distrust, triton_refusal

define_kernels("triton", "", "splice", "splice_bwd")


def splice_triton(
    table_VD: Tensor,
    image_rows: Tensor,
    plan: SplicePlan,
    scale: float | None,
    accumulate_into: Tensor | None,
) -> Tensor:
    """One launch forward, two backward, one where the table is frozen; strided image rows are read where they lie."""
    return KernelSplice.apply("triton", table_VD, image_rows, plan.source, plan.image_rows, plan.token_order, scale, accumulate_into)


def _supports(table_VD: Tensor, image_rows: Tensor, plan: SplicePlan, scale: float | None, main_VD: Tensor | None) -> bool | str:
    indices = (plan.source, plan.image_rows, plan.token_order)
    if not all(tensor.is_contiguous() for tensor in indices):
        return "source, image_rows and token_order of the plan must be contiguous"
    return triton_refusal(table_VD, image_rows, *indices, main_VD) or True


def _trusted(table_VD: Tensor, *rest: Any) -> bool | str:
    return triton_distrust("splice", table_VD) or True


SPLICE_TRITON = Implementation("triton", splice_triton, _supports, _trusted)
