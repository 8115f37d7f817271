"""Loss and gradients of a linear head, a chunk of rows at a time: cuBLAS products around the kernel of ``cross_entropy.py``.

Shapes: ``hidden [R, D]`` with row strides, ``weight [V, D]``, ``logits [r, W]`` of a chunk with ``W`` = ``V`` padded to whole 128-byte lines, so
that every row starts aligned whatever the vocabulary.

FLOP: ``2 R D V`` for the losses alone. With gradients ``6 R D V``: a chunk's logits become their gradient where they lie and feed both other
products before the next chunk. To recompute them in the backward instead would cost ``8 R D V``, a third more than torch and Liger spend, so it
is done only where the factor of a row is not known in the forward (``ops/linear_cross_entropy_triton.py``).

Memory beside the inputs, ``b`` bytes an element: ``r V b`` logits, ``R D b`` and ``V D b`` gradients. One chunk needs no sum of products: cuBLAS
rounds ``dW`` once from its own fp32 sums. More chunks are summed in fp32, ``4 V D`` bytes more at the end than one chunk if ``b`` is 2; so
rows are cut only where one chunk of logits would cost more than that sum, ``R > 1024 + 4 D / b`` (9216 for ``D`` = 4096). In bf16, ``D`` = 4096,
by this formula:

=======  ======  ==========  =============================  ==========================================
rows R   V       chunks      logits + dW + dh               dW + dh alone, which no method avoids
=======  ======  ==========  =============================  ==========================================
614      32000   1           39 + 262 + 5 = 306 MB          267 MB; 1.15x
614      128256  1           158 + 1051 + 5 = 1213 MB       1056 MB; 1.15x
4096     32000   1           262 + 262 + 34 = 558 MB        296 MB; 1.9x
4096     128256  1           1051 + 1051 + 34 = 2135 MB     1084 MB; 2.0x
=======  ======  ==========  =============================  ==========================================

614 rows are 15% of 4096: packed plans hand over supervised rows only. Where all 4096 are supervised, less memory would cost the third of the
FLOP above. With a frozen head nothing is summed and the budget alone decides.

Rows of a chunk are never fewer than 1024, but for the equal cut of what is left: a sum into fp32 ``dW`` moves ``8 V D`` bytes for ``2 r D V``
FLOP, at 1024 rows 256 FLOP a byte, between the ridges of A100 (153) and H100 (295). Not measured on a GPU.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .cross_entropy import cross_entropy_rows

FLOOR_ROWS = 1024
LOGITS_BYTES = 256 << 20
"""Most bytes of one chunk's logits; exceeded where ``FLOOR_ROWS`` rows, the fewest of a chunk, need more."""

LINE_BYTES = 128
TILE_ROWS = 128
"""Rows of chunks are multiples of a GEMM's tile."""


def padded(vocabulary: int, dtype: torch.dtype) -> int:
    """Return the columns of a row of logits."""
    line = LINE_BYTES // dtype.itemsize
    return -(-vocabulary // line) * line


def rows_of_chunk(rows: int, vocabulary: int, width: int, dtype: torch.dtype, summed: bool) -> int:
    """Return how many rows are taken at once; chunks are about equally long.

    Args:
        rows: all of them.
        vocabulary: ``V``.
        width: ``D``.
        dtype: of the logits.
        summed: more than one chunk asks for an fp32 sum of ``dW`` that one does not.

    >>> rows_of_chunk(4096, 128256, 4096, torch.bfloat16, summed=True)
    4096
    >>> rows_of_chunk(4096, 128256, 4096, torch.bfloat16, summed=False)
    1024
    """
    if summed and rows <= FLOOR_ROWS + 4 * width // dtype.itemsize:
        return rows
    most = max(FLOOR_ROWS, LOGITS_BYTES // (padded(vocabulary, dtype) * dtype.itemsize))
    chunks = -(-rows // most)
    return rows if chunks <= 1 else min(most, -(-rows // (chunks * TILE_ROWS)) * TILE_ROWS)


@torch.no_grad()
def linear_cross_entropy_losses(hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, bias_V: Tensor | None, softcap: float | None) -> Tensor:
    """Return the fp32 losses ``(R,)``; arguments as :func:`linear_cross_entropy_grads`."""
    (rows, width), vocabulary, dtype = hidden_RD.shape, weight_VD.shape[0], hidden_RD.dtype
    losses_R = torch.empty(rows, dtype=torch.float32, device=hidden_RD.device)
    chunk = rows_of_chunk(rows, vocabulary, width, dtype, summed=False)
    logits_rW = torch.empty((chunk, padded(vocabulary, dtype)), dtype=dtype, device=hidden_RD.device)
    for first in range(0, rows, max(1, chunk)):
        part = slice(first, min(first + chunk, rows))
        logits = logits_rW[: part.stop - first]
        _put_logits(logits[:, :vocabulary], hidden_RD[part], weight_VD, bias_V)
        cross_entropy_rows(logits, targets_R[part], losses_R[part], vocabulary=vocabulary, softcap=softcap)
    return losses_R


@torch.no_grad()
def linear_cross_entropy_grads(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    targets_R: Tensor,
    factors_R: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    needs: list[bool],
    hidden_dtype: torch.dtype,
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the losses of rows and the gradients of ``sum_r factor_r loss_r``.

    Args:
        hidden_RD: ``(R, D)``, last stride 1.
        weight_VD: ``(V, D)``, dtype of ``hidden``.
        targets_R: ``(R,)``; ``cross_entropy.IGNORED`` marks a row without loss.
        factors_R: fp32 ``(R,)``, contiguous.
        bias_V: dtype of ``hidden``, or None.
        softcap: see ``ops.linear_cross_entropy``.
        needs: whether the gradients of ``hidden``, ``weight`` and ``bias`` are wanted.
        hidden_dtype: of the gradient of ``hidden``.
        weight_dtype: of the gradient of ``weight``.

    Returns:
        fp32 losses ``(R,)`` without the factors, and the three gradients, that of the bias in fp32; one that is not wanted has no elements.
    """
    (rows, width), vocabulary, dtype = hidden_RD.shape, weight_VD.shape[0], hidden_RD.dtype
    need_hidden, need_weight, need_bias = needs
    chunk = rows_of_chunk(rows, vocabulary, width, dtype, summed=need_weight and weight_dtype != torch.float32)
    losses_R = torch.empty(rows, dtype=torch.float32, device=hidden_RD.device)
    hidden_grad = hidden_RD.new_empty(hidden_RD.shape if need_hidden else 0, dtype=hidden_dtype)
    wide = torch.float32 if rows > chunk else weight_dtype
    weight_grad = weight_VD.new_empty(weight_VD.shape, dtype=wide) if need_weight else weight_VD.new_empty(0, dtype=weight_dtype)
    bias_grad = hidden_RD.new_zeros(vocabulary if need_bias else 0, dtype=torch.float32)
    logits_rW = torch.empty((chunk, padded(vocabulary, dtype)), dtype=dtype, device=hidden_RD.device)
    for first in range(0, rows, max(1, chunk)):
        part = slice(first, min(first + chunk, rows))
        logits = logits_rW[: part.stop - first]
        slope_rV = logits[:, :vocabulary]
        _put_logits(slope_rV, hidden_RD[part], weight_VD, bias_V)
        cross_entropy_rows(
            logits,
            targets_R[part],
            losses_R[part],
            vocabulary=vocabulary,
            softcap=softcap,
            factors_R=factors_R[part],
        )
        if need_hidden:
            put_product(hidden_grad[part], slope_rV, weight_VD)
        if need_weight:
            (add_product if first else put_product)(weight_grad, slope_rV.t(), hidden_RD[part])
        if need_bias:
            bias_grad += slope_rV.sum(0, dtype=torch.float32)
    if not rows:
        weight_grad.zero_()
    logits_rW = logits = slope_rV = None  # not beside both copies of a rounded ``dW``
    return losses_R, hidden_grad, weight_grad.to(weight_dtype), bias_grad


def _put_logits(out: Tensor, hidden: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> None:
    """Write logits, rounded once with the bias in them, as ``torch.nn.functional.linear`` has it."""
    if bias_V is None:
        torch.mm(hidden, weight_VD.t(), out=out)
    else:
        torch.addmm(bias_V, hidden, weight_VD.t(), out=out)


def put_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Write ``a @ b`` to ``out``, which may be fp32 beside narrower factors."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif out.dtype == torch.float32 and widens(out.device, a.dtype):
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(a, b))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a @ b`` to an fp32 sum.

    Where torch can't multiply narrow matrices into a wide one, each product is rounded once to the factors' dtype, and takes ``V D b`` bytes,
    before it is added in fp32; the sum over the chunks is fp32 either way.
    """
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif widens(total.device, a.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.add_(torch.mm(a, b))


@functools.cache
def widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether cuBLAS adds products of ``dtype`` to an fp32 matrix here.

    ``out_dtype`` came with torch 2.8, for CUDA only, and the first versions refuse an fp32 summand: a product of 16 x 16 tells.
    """
    if device.type != "cuda":
        return False
    factor, total = torch.zeros(16, 16, dtype=dtype, device=device), torch.zeros(16, 16, device=device)
    try:
        torch.addmm(total, factor, factor, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return True
