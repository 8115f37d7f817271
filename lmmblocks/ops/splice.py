"""Splice: build the decoder's input rows from the embedding table and the projected image rows.

Forward copies each output row once from where the plan says it comes. Backward of the image rows is a gather (zeros for rows that were
truncated away); backward of the table adds the rows of each token id in the fixed order ``plan.token_order``, so gradients are the
same on every run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..spec import LmmError, SplicePlan
from .dispatch import Implementation, dispatch, register_implementation


def splice(
    table_VD: Tensor, image_rows_MD: Tensor, plan: SplicePlan, *, scale: float | None = None, backend: str = "auto"
) -> Tensor:
    """Return packed ``embeds_TD``.

    Args:
        table_VD: token embedding table.
        image_rows_MD: projected rows of all images of the batch, in plan order; ``M`` may be 0.
        plan: says where each packed row comes from.
        scale: factor of the text rows, rounded to the dtype of the table first (Gemma); image rows stay as they are.
        backend: ``auto`` or the name of an implementation.

    Returns:
        ``(T, D)``, dtype of the table.

    Raises:
        LmmError: the number of image rows is not the plan's, or widths differ.
    """
    expected = plan.image_rows.shape[0]
    if image_rows_MD.shape[0] != expected:
        raise LmmError(
            f"splice: the plan places {expected} image rows, the projector gave {image_rows_MD.shape[0]}: "
            f"make the projector's out_grid() and its output agree"
        )
    if image_rows_MD.shape[1] != table_VD.shape[1]:
        raise LmmError(f"splice: image rows are {image_rows_MD.shape[1]} wide, the decoder is {table_VD.shape[1]} wide")
    return dispatch("splice", table_VD, image_rows_MD, plan, scale, backend=backend)


class _Splice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, image_rows_MD: Tensor, plan: SplicePlan, scale: float | None) -> Tensor:
        ctx.plan, ctx.vocabulary, ctx.dtypes = plan, table_VD.shape[0], (table_VD.dtype, image_rows_MD.dtype)
        ctx.scale = None if scale is None else table_VD.new_full((), scale)
        rows = plan.source.shape[0]
        # One slack row behind the packed ones takes the image rows that were truncated away: no host sync, no boolean index.
        embeds = table_VD.new_empty(rows + 1, table_VD.shape[1])
        torch.index_select(table_VD, 0, plan.source.clamp_min(0), out=embeds[:rows])
        if ctx.scale is not None:
            embeds[:rows].mul_(ctx.scale)
        target = torch.where(plan.image_rows < 0, rows, plan.image_rows)
        embeds.index_copy_(0, target.long(), image_rows_MD.to(table_VD.dtype))
        return embeds[:rows]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad_TD,), plan = grads, ctx.plan
        table_grad = image_grad = None
        if ctx.needs_input_grad[0]:
            text_rows = plan.token_order.long()
            ids = plan.source.index_select(0, text_rows).long()
            text_grad = grad_TD.index_select(0, text_rows).to(torch.promote_types(grad_TD.dtype, torch.float32))
            if ctx.scale is not None:
                text_grad = text_grad * ctx.scale
            table_grad = torch.ops.aten.embedding_dense_backward(text_grad, ids, ctx.vocabulary, -1, False).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            rows = grad_TD.index_select(0, plan.image_rows.clamp_min(0))
            image_grad = torch.where((plan.image_rows >= 0)[:, None], rows, 0).to(ctx.dtypes[1])
        return table_grad, image_grad, None, None


def splice_reference(table_VD: Tensor, image_rows_MD: Tensor, plan: SplicePlan, scale: float | None) -> Tensor:
    """Gather the text rows, copy the image rows over their places."""
    return _Splice.apply(table_VD, image_rows_MD, plan, scale)


register_implementation("splice", Implementation("reference", splice_reference))
