"""Splice: build the decoder's input rows from the embedding table and the projected image rows.

Forward copies each output row once from where the plan says it comes. Backward of the image rows is a gather (zeros for rows that were
truncated away); backward of the table adds the rows of each token id in the fixed order ``plan.token_order``, so gradients are the
same on every run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.splice_codes import NOWHERE
from ..spec import LmmError, SplicePlan
from .dispatch import Implementation, dispatch


def splice(
    table_VD: Tensor,
    image_rows_MD: Tensor,
    plan: SplicePlan,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return packed ``embeds_TD``.

    Args:
        table_VD: token embedding table.
        image_rows_MD: projected rows of all images of the batch, in plan order: ``(M, D)``, or ``(I, P, D)`` for images of one size. Rows and images
            may lie apart, as in ``features[:, 1:]``; ``M`` may be 0.
        plan: says where each packed row comes from.
        scale: factor of the text rows, rounded to the dtype of the table first (Gemma); image rows stay as they are.
        backend: ``auto`` or the name of an implementation.

    Returns:
        ``(T, D)``, dtype of the table. Rows of no segment are zero.

    Raises:
        LmmError: the number of image rows is not the plan's, widths differ, or an id lies outside the table.
    """
    refuse_misfits(table_VD, image_rows_MD, plan)
    return dispatch("splice", table_VD, image_rows_MD, plan, scale, None, backend=backend)


def refuse_misfits(table_VD: Tensor, image_rows: Tensor, plan: SplicePlan) -> None:
    """Raise LmmError with everything that doesn't fit."""
    problems = [*_misfits(table_VD, image_rows, plan), *_gradient_misfits(table_VD, plan)]
    if problems:
        raise LmmError("splice: " + "; ".join(problems))


def _misfits(table_VD: Tensor, image_rows: Tensor, plan: SplicePlan) -> list[str]:
    if image_rows.dim() not in (2, 3):
        return [f"image rows must be (M, D) or (I, P, D), found {tuple(image_rows.shape)}"]
    problems, (vocabulary, width) = [], table_VD.shape
    expected, found = plan.image_rows.shape[0], image_rows.shape[:-1].numel()
    if found != expected:
        problems.append(f"the plan places {expected} image rows, the projector gave {found}: make the projector's out_grid() and its output agree")
    if image_rows.shape[-1] != width:
        problems.append(f"image rows are {image_rows.shape[-1]} wide, the decoder is {width} wide")
    if plan.largest_id >= vocabulary:
        problems.append(
            f"the plan holds the id {plan.largest_id}, the table has {vocabulary} rows: use the tokenizer of this decoder or resize the table"
        )
    return problems


def _gradient_misfits(table_VD: Tensor, plan: SplicePlan) -> list[str]:
    problems = []
    learns = table_VD.requires_grad and torch.is_grad_enabled()
    if learns and plan.has_slack and plan.total_rows and not plan.token_order.shape[0]:
        problems.append("the plan was made with gradient=False but the table is trainable: make it with gradient=True, or freeze the table")
    return problems


class _Splice(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table_VD: Tensor,
        image_rows_MD: Tensor,
        plan: SplicePlan,
        scale: float | None,
        main_VD: Tensor | None,
    ) -> Tensor:
        ctx.plan, ctx.vocabulary, ctx.dtypes = plan, table_VD.shape[0], (table_VD.dtype, image_rows_MD.dtype)
        ctx.scale = None if scale is None else table_VD.new_full((), scale)
        ctx.main_VD = main_VD
        rows = plan.source.shape[0]
        # One slack row after the packed ones takes the image rows that were truncated away: no host sync, no boolean index.
        embeds = table_VD.new_empty(rows + 1, table_VD.shape[1])
        torch.index_select(table_VD, 0, plan.source.clamp_min(0), out=embeds[:rows])
        if ctx.scale is not None:
            embeds[:rows].mul_(ctx.scale)
        if plan.has_slack:
            embeds[:rows].masked_fill_((plan.source == NOWHERE)[:, None], 0)
        target = torch.where(plan.image_rows < 0, rows, plan.image_rows)
        embeds.index_copy_(0, target.long(), image_rows_MD.to(table_VD.dtype))
        return embeds[:rows]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (grad_TD,), plan = grads, ctx.plan
        table_grad = image_grad = None
        if ctx.needs_input_grad[0]:
            wide_grad = _table_gradient(grad_TD, plan, ctx.vocabulary, ctx.scale)
            if ctx.main_VD is None:
                table_grad = wide_grad.to(ctx.dtypes[0])
            else:
                ctx.main_VD.add_(wide_grad)
        if ctx.needs_input_grad[1]:
            rows = grad_TD.index_select(0, plan.image_rows.clamp_min(0))
            image_grad = torch.where((plan.image_rows >= 0)[:, None], rows, 0).to(ctx.dtypes[1])
        return table_grad, image_grad, None, None, None


def _table_gradient(grad_TD: Tensor, plan: SplicePlan, vocabulary: int, scale: Tensor | None) -> Tensor:
    """Return the gradient of the table in fp32 or wider."""
    text_rows = plan.token_order.long()
    there = text_rows >= 0 if plan.has_slack else None
    text_rows = text_rows if there is None else text_rows.clamp_min(0)
    ids = plan.source.index_select(0, text_rows).long()
    text_grad = grad_TD.index_select(0, text_rows).to(torch.promote_types(grad_TD.dtype, torch.float32))
    if there is not None:
        ids, text_grad = torch.where(there, ids, 0), torch.where(there[:, None], text_grad, 0)
    if scale is not None:
        text_grad = text_grad * scale
    return torch.ops.aten.embedding_dense_backward(text_grad, ids, vocabulary, -1, False)


def splice_reference(
    table_VD: Tensor,
    image_rows: Tensor,
    plan: SplicePlan,
    scale: float | None,
    accumulate_into: Tensor | None,  # of ``experimental.splice_into``; None = the gradient of the table is returned
) -> Tensor:
    """Gather the text rows, copy the image rows over their places."""
    return _Splice.apply(table_VD, image_rows.reshape(-1, table_VD.shape[1]), plan, scale, accumulate_into)


SPLICE_REFERENCE = Implementation("reference", splice_reference)
