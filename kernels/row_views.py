"""How the rows of a view lie in memory, for kernels that take strides instead of copies.

The rows of ``x (..., D)`` are numbered in C order; row ``r`` starts at ``(r // inner) * outer_stride + (r % inner) * inner_stride``. Two
strides cover what the blocks make without a copy: packed rows, heads of a fused projection, images without their CLS token. Needs no Triton.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

RowStrides = tuple[int, int]
"""``outer_stride, inner_stride`` in elements."""


def row_strides(*tensors: Tensor) -> tuple[int, list[RowStrides]] | None:
    """Describe the rows of tensors of one shape by one ``inner`` and two strides each, or return None.

    Returns:
        ``inner``, which is 1 wherever one stride is enough for all, and the strides of each tensor.
    """
    for tensor in tensors:
        if not tensor.is_contiguous():
            return _two_strides(tensors)
    width = tensors[0].shape[-1] if tensors[0].dim() else 1
    return 1, [(width, 0)] * len(tensors)


def _two_strides(tensors: Sequence[Tensor]) -> tuple[int, list[RowStrides]] | None:
    lengths = tensors[0].shape[:-1]
    for split in range(len(lengths), -1, -1):
        found = [
            (
                _one_stride(lengths[:split], tensor.stride()[:split]),
                _one_stride(lengths[split:], tensor.stride()[split:-1]),
            )
            for tensor in tensors
        ]
        if all(outer is not None and inner is not None for outer, inner in found):
            return _product(lengths[split:]), found  # type: ignore[return-value]
    return None


def _one_stride(lengths: Sequence[int], strides: Sequence[int]) -> int | None:
    """Return the stride of several dimensions walked as one, or None; 0 where there is at most one place."""
    stride, reached = None, 0
    for length, step in zip(reversed(lengths), reversed(strides)):
        if length == 1:
            continue
        if stride is None:
            stride, reached = step, step * length
        elif step == reached:
            reached = step * length
        else:
            return None
    return stride or 0


def _product(lengths: Sequence[int]) -> int:
    product = 1
    for length in lengths:
        product *= length
    return product
