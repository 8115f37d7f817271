"""What the Triton and the CUDA splice share: the schemas of their ops, the shapes these return, and autograd.

Motivation: both families compute the same sums in the same order by way of the same workspace, so a family is no more than four ops.

How it works: :func:`define_kernels` defines the ops of a family under its name, and :class:`KernelSplice` is given the name. The backward is a
pass over pieces of frequent ids, ids and image rows, and a pass over the table, which a frozen table doesn't need.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .library import kernel_op

PIECE_ROWS = 64
"""Rows of a frequent id whose sum is one row of the backward's workspace: ``CHUNK`` of the Triton kernels, ``kPieceRows`` of the CUDA kernels."""


class SpliceKernels(NamedTuple):
    """The ops of one family of kernels."""

    fwd: Any
    bwd_rows: Any
    bwd_table: Any
    bwd_table_into: Any


KERNELS: dict[str, SpliceKernels] = {}
"""By the name of the implementation, so that compiled code holds a name and not the ops."""


def define_kernels(name: str, suffix: str, forward: str, backward: str) -> None:
    """Define the ops of a family and put them into :data:`KERNELS`.

    Args:
        name: of the implementation.
        suffix: of the ops' names.
        forward: module of ``splice_fwd``, as :func:`kernel_op` takes it.
        backward: module of ``splice_bwd_rows``, ``splice_bwd_table`` and ``splice_bwd_table_into``.
    """
    fwd = kernel_op(
        f"splice_fwd{suffix}(Tensor table, Tensor images, Tensor source, float? scale) -> Tensor",
        f"{forward}:splice_fwd",
        lambda table, images, source, scale: table.new_empty(source.shape[0], table.shape[1]),
    )
    bwd_rows = kernel_op(
        f"splice_bwd_rows{suffix}(Tensor grad, Tensor source, Tensor? image_rows, Tensor? token_order, SymInt vocabulary, "
        "ScalarType image_dtype) -> (Tensor, Tensor, Tensor)",
        f"{backward}:splice_bwd_rows",
        _empty_pieces,
    )
    bwd_table = kernel_op(
        f"splice_bwd_table{suffix}(Tensor grad, Tensor token_order, Tensor partial, Tensor bounds, float? scale, ScalarType dtype) -> Tensor",
        f"{backward}:splice_bwd_table",
        lambda grad, token_order, partial, bounds, scale, dtype: grad.new_empty(bounds.shape[0] - 1, grad.shape[1], dtype=dtype),
    )
    bwd_table_into = kernel_op(
        f"splice_bwd_table_into{suffix}(Tensor(a!) main_grad, Tensor grad, Tensor token_order, Tensor partial, Tensor bounds, float? scale) -> ()",
        f"{backward}:splice_bwd_table_into",
        lambda main_grad, grad, token_order, partial, bounds, scale: None,
    )
    KERNELS[name] = SpliceKernels(fwd, bwd_rows, bwd_table, bwd_table_into)


def _empty_pieces(
    grad: Tensor,
    source: Tensor,
    image_rows: Tensor | None,
    token_order: Tensor | None,
    vocabulary: int,
    image_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    images, width = 0 if image_rows is None else image_rows.shape[0], grad.shape[1]
    pieces, ids = (0, 0) if token_order is None else (-(-token_order.shape[0] // PIECE_ROWS), vocabulary + 1)
    return (
        grad.new_empty(images, width, dtype=image_dtype),
        grad.new_empty(pieces, width, dtype=torch.float32),
        grad.new_empty(ids, dtype=torch.int32),
    )


class KernelSplice(torch.autograd.Function):
    """The splice by the kernels of one family: ``apply(family, table, images, source, image_rows, token_order, scale, main)``."""

    @staticmethod
    def forward(
        ctx: Any,
        family: str,
        table_VD: Tensor,
        images: Tensor,
        source_T: Tensor,
        image_rows_M: Tensor,
        token_order_K: Tensor,
        scale: float | None,
        main_VD: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(source_T, image_rows_M, token_order_K)
        ctx.family, ctx.scale, ctx.main_VD = family, scale, main_VD
        ctx.table, ctx.images = (table_VD.shape[0], table_VD.dtype), (images.shape, images.dtype)
        return KERNELS[family].fwd(table_VD, images, source_T, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None, None, None, None, None, None]:
        # A broadcast gradient (of a sum) has stride 0.
        grad_TD = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        source_T, image_rows_M, order_K = ctx.saved_tensors
        (vocabulary, dtype), (shape, image_dtype) = ctx.table, ctx.images
        of_table, of_images = ctx.needs_input_grad[1:3]
        kernels = KERNELS[ctx.family]
        image_grad, partial_PD, bounds = kernels.bwd_rows(
            grad_TD,
            source_T,
            image_rows_M if of_images else None,
            order_K if of_table else None,
            vocabulary,
            image_dtype,
        )
        table_grad = None
        if of_table and ctx.main_VD is None:
            table_grad = kernels.bwd_table(grad_TD, order_K, partial_PD, bounds, ctx.scale, dtype)
        elif of_table:
            kernels.bwd_table_into(ctx.main_VD, grad_TD, order_K, partial_PD, bounds, ctx.scale)
        image_grad = image_grad.view(shape) if of_images else None
        return None, table_grad, image_grad, None, None, None, None, None
