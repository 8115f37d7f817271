"""The splice in CUDA (``csrc/splice``): Python allocates what the launchers write, and no width or row stride is refused.

Rows that start on 16 bytes are moved 16 bytes at a time; where one doesn't (seen at the launch, by its pointer and stride), one element at a time.
Sums are added in the order of the Triton kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..spec import SplicePlan
from .cuda_gate import check, cuda_distrust, cuda_refusal, extension, raw_stream
from .dispatch import Implementation
from .splice_kernels import PIECE_ROWS, KernelSplice, define_kernels

define_kernels("cuda", "_cuda", __name__, __name__)

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Of ``LmmDtype`` in csrc/common/launch.cuh."""


def splice_fwd(table_VD: Tensor, images: Tensor, source_T: Tensor, scale: float | None) -> Tensor:
    """Launch the forward; arguments and result as of :func:`lmmblocks.kernels.splice.splice_fwd`."""
    (vocabulary, width), rows = table_VD.shape, source_T.shape[0]
    out_TD = table_VD.new_empty(rows, width)
    image, image_row, rows_per_image = _image_layout(images)
    _launch(
        "splice_forward",
        table_VD,
        table=table_VD.data_ptr(),
        images=images.data_ptr(),
        source=source_T.data_ptr(),
        out=out_TD.data_ptr(),
        table_row=table_VD.stride(0),
        image=image,
        image_row=image_row,
        out_row=width,
        rows=rows,
        vocabulary=vocabulary,
        image_rows=images.shape[:-1].numel(),
        rows_per_image=rows_per_image,
        width=width,
        table_type=_TYPES[table_VD.dtype],
        image_type=_TYPES[images.dtype],
        scaled=scale is not None,
        scale=1.0 if scale is None else scale,
    )
    return out_TD


def _image_layout(images: Tensor) -> tuple[int, int, int]:
    """Return the stride of an image, the stride of its rows, and rows of an image."""
    if images.dim() == 3:
        return images.stride(0), images.stride(1), max(1, images.shape[1])
    return 0, images.stride(0), max(1, images.shape[0])


def splice_bwd_rows(
    grad_TD: Tensor,
    source_T: Tensor,
    image_rows_M: Tensor | None,
    token_order_K: Tensor | None,
    vocabulary: int,
    image_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the first pass; arguments and results as of :func:`lmmblocks.kernels.splice_bwd.splice_bwd_rows`."""
    rows, width = grad_TD.shape
    images = 0 if image_rows_M is None else image_rows_M.shape[0]
    tokens, ids = (0, 0) if token_order_K is None else (token_order_K.shape[0], vocabulary + 1)
    image_grad_MD = grad_TD.new_empty(images, width, dtype=image_dtype)
    partial_PD = grad_TD.new_empty(-(-tokens // PIECE_ROWS), width, dtype=torch.float32)
    bounds = grad_TD.new_empty(ids, dtype=torch.int32)
    _launch(
        "splice_backward_rows",
        grad_TD,
        grad=grad_TD.data_ptr(),
        source=source_T.data_ptr(),
        image_rows=0 if image_rows_M is None else image_rows_M.data_ptr(),
        image_grad=image_grad_MD.data_ptr(),
        order=0 if token_order_K is None else token_order_K.data_ptr(),
        partial=partial_PD.data_ptr(),
        bounds=bounds.data_ptr(),
        grad_row=grad_TD.stride(0),
        rows=rows,
        width=width,
        images=images,
        tokens=tokens,
        ids=ids,
        grad_type=_TYPES[grad_TD.dtype],
        image_type=_TYPES[image_dtype],
    )
    return image_grad_MD, partial_PD, bounds


def splice_bwd_table(
    grad_TD: Tensor,
    token_order_K: Tensor,
    partial_PD: Tensor,
    bounds: Tensor,
    scale: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the second pass: every byte of the table's gradient is written once."""
    table_grad_VD = grad_TD.new_empty(bounds.shape[0] - 1, grad_TD.shape[1], dtype=dtype)
    _launch_table(table_grad_VD, grad_TD, token_order_K, partial_PD, bounds, scale, adding=False)
    return table_grad_VD


def splice_bwd_table_into(
    main_grad_VD: Tensor,
    grad_TD: Tensor,
    token_order_K: Tensor,
    partial_PD: Tensor,
    bounds: Tensor,
    scale: float | None,
) -> None:
    """Do the same, but add to ``main_grad_VD`` in place: rows of ids that don't occur are neither read nor written."""
    _launch_table(main_grad_VD, grad_TD, token_order_K, partial_PD, bounds, scale, adding=True)


def _launch_table(out: Tensor, grad: Tensor, order: Tensor, partial: Tensor, bounds: Tensor, scale: float | None, adding: bool) -> None:
    _launch(
        "splice_backward_table",
        grad,
        grad=grad.data_ptr(),
        order=order.data_ptr(),
        partial=partial.data_ptr(),
        bounds=bounds.data_ptr(),
        table_grad=out.data_ptr(),
        grad_row=grad.stride(0),
        table_row=out.stride(0),
        vocabulary=out.shape[0],
        width=out.shape[1],
        adding=adding,
        grad_type=_TYPES[grad.dtype],
        table_type=_TYPES[out.dtype],
        scaled=scale is not None,
        scale=1.0 if scale is None else scale,
    )


def _launch(name: str, tensor: Tensor, **fields: int | float) -> None:
    device = tensor.device
    launch = getattr(extension(device), name)
    check(launch(**fields, device=device.index or 0, stream=raw_stream(device)), name)


def splice_cuda(
    table_VD: Tensor,
    image_rows: Tensor,
    plan: SplicePlan,
    scale: float | None,
    accumulate_into: Tensor | None,
) -> Tensor:
    """One launch forward, two backward, one where the table is frozen; strided image rows are read where they lie."""
    return KernelSplice.apply("cuda", table_VD, image_rows, plan.source, plan.image_rows, plan.token_order, scale, accumulate_into)


def _supports(table_VD: Tensor, image_rows: Tensor, plan: SplicePlan, scale: float | None, main_VD: Tensor | None) -> bool | str:
    indices = (plan.source, plan.image_rows, plan.token_order)
    if not all(tensor.is_contiguous() and tensor.dtype == torch.int32 for tensor in indices):
        return "source, image_rows and token_order of the plan must be contiguous int32"
    return cuda_refusal(table_VD, image_rows, *indices, main_VD, dtypes=tuple(_TYPES)) or True


def _trusted(table_VD: Tensor, *rest: Any) -> bool | str:
    return cuda_distrust("splice", table_VD) or True


SPLICE_CUDA = Implementation("cuda", splice_cuda, _supports, _trusted)
