"""A splice whose backward adds the gradient of the table to a buffer in place: a main gradient in fp32 that lives over many micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..ops.dispatch import dispatch
from ..ops.splice import refuse_misfits
from ..spec import LmmError, SplicePlan


def splice_into(
    table_VD: Tensor, image_rows_MD: Tensor, plan: SplicePlan, main_grad_VD: Tensor, *, scale: float | None = None, backend: str = "auto"
) -> Tensor:
    """Return packed ``embeds_TD`` as :func:`lmmblocks.ops.splice` does; the table's own ``grad`` stays as it is.

    Args:
        table_VD: token embedding table.
        image_rows_MD: see :func:`lmmblocks.ops.splice`.
        plan: says where each packed row comes from.
        main_grad_VD: fp32 ``(V, D)``; the backward adds to it.
        scale: factor of the text rows.
        backend: ``auto`` or the name of an implementation of ``splice``.

    Raises:
        LmmError: what :func:`lmmblocks.ops.splice` refuses, or a buffer that doesn't fit.
    """
    refuse_misfits(table_VD, image_rows_MD, plan)
    if problems := list(_misfits(table_VD, main_grad_VD)):
        raise LmmError("splice_into: " + "; ".join(problems))
    return dispatch("splice", table_VD, image_rows_MD, plan, scale, main_grad_VD, backend=backend)


def _misfits(table_VD: Tensor, main: Tensor) -> Iterator[str]:
    wanted = torch.promote_types(table_VD.dtype, torch.float32)
    alike = (main.shape, main.dtype, main.device) == (table_VD.shape, wanted, table_VD.device)
    if not alike or main.stride(-1) != 1:
        yield (
            f"main_grad_VD must be a {wanted} {tuple(table_VD.shape)} on {table_VD.device} with contiguous rows, found {main.dtype} "
            f"{tuple(main.shape)} on {main.device} with strides {main.stride()}"
        )
    if main.requires_grad:
        yield "main_grad_VD must not require a gradient itself: pass a buffer, or .detach() it"
