"""Cross-entropy of rows of logits, which become their own gradient in place.

``z_v = softcap(logit_v)``, ``loss_r = logsumexp(z_r) - z_{r, t_r}`` and, over the logits,
``g_rv = f_r (exp(z_rv - logsumexp_r) - [v = t_r]) dz/dlogit`` with a factor ``f_r`` for each row.

Shapes: ``logits [R, W]`` contiguous, of which the first ``V`` columns count and the rest (``W`` is padded, see ``linear_cross_entropy.py``) are
written as zeros; ``targets [R]``; ``factors, losses [R]`` fp32. A bias is in the logits.

A row whose target is ``IGNORED`` has loss 0 and a gradient of zeros, and its logits are not read. Any other target outside ``[0, V)`` reads
nothing out of bounds and gives NaN for the row's loss and gradient: seen at once, without asking the device.

Bytes per call (``b`` = bytes of a logit): without gradient ``R V b`` read. With it ``2 R V b`` read and ``R V b`` written; floor
``2 R V b / bandwidth`` where the second reading comes from L2 (rows of the CTAs at work: 108 x 4 x 64 KB = 28 MB of A100's 40 for a vocabulary of
32000 in bf16, but 110 MB for 128256), else ``3 R V b / bandwidth``. Beside the products around it, ``6 R D V`` FLOP, this is 3 to 5%.

One program owns a row: no atomics, and nobody else reads what it overwrites. Maximum and sum are kept for each lane of the tile and joined
once at the end: one reduction across warps instead of one a tile, for a second exponential of each element.

Launch table: not measured on a GPU. 16 elements a thread are two 16-byte loads in flight; 8 warps need 64 to 80 registers, so that 3 or
4 CTAs share a multiprocessor with 24 to 32 KiB in flight, over twice what A100's latency times bandwidth asks of one. Twice the tile at 16
warps spills.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .device import launching_on, multiprocessors
from .whole_numbers import cdiv, next_power_of_2

IGNORED = -100
"""Target of a row without loss, torch's default."""

WIDEST_TILE = 4096
ELEMENTS_A_THREAD = 16

SCALE_TILE, SCALE_PROGRAMS_PER_MULTIPROCESSOR = 4096, 8


@triton.jit
def _tanh(x):
    """By exponentials, and by its series where those would cancel: ``|x| < 0.1`` leaves out ``17 x^7 / 315 < 6e-8 x``."""
    square = x * x
    series = x * (1.0 - square * (0.33333334 - square * 0.13333334))
    return tl.where(square < 0.01, series, 2.0 * tl.sigmoid(2.0 * x) - 1.0)


@triton.jit
def _capped(logit, softcap, CAPPED: tl.constexpr):
    return softcap * _tanh(logit * (1.0 / softcap)) if CAPPED else logit


@triton.jit
def _scores(start, first, column, width, vocabulary, softcap, CAPPED: tl.constexpr):
    """Load a tile of a row in fp32; columns beyond the vocabulary are ``-inf``."""
    place = first + column
    logit = tl.load(start + place, mask=place < width, other=0.0).to(tl.float32)
    return tl.where(place < vocabulary, _capped(logit, softcap, CAPPED), float("-inf"))


@triton.jit
def _cross_entropy_kernel(
    logits, targets, factors, losses, width, vocabulary, softcap,
    IGNORED: tl.constexpr, CAPPED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    LOG2_E: tl.constexpr = 1.4426950408889634
    row = tl.program_id(0)
    start = logits + row.to(tl.int64) * width
    column = tl.arange(0, BLOCK_V)
    target = tl.load(targets + row)
    if target == IGNORED:
        tl.store(losses + row, 0.0)
        if GRADIENT:
            for first in range(0, width, BLOCK_V):
                nothing = tl.zeros((BLOCK_V,), logits.dtype.element_ty)
                tl.store(start + first + column, nothing, mask=first + column < width)
    else:
        # Before any store of this row: the reductions below are barriers between this load and the gradient of another warp.
        inside = (target >= 0) & (target < vocabulary)
        hit = tl.load(start + target, mask=inside, other=0.0).to(tl.float32)
        hit = tl.where(inside, _capped(hit, softcap, CAPPED), float("nan"))
        answer = target.to(tl.int32)  # compared with every column

        most = tl.full((BLOCK_V,), -1e30, tl.float32)  # finite: a lane of padding alone adds 0, not NaN
        total = tl.zeros((BLOCK_V,), tl.float32)
        for first in range(0, width, BLOCK_V):
            z = _scores(start, first, column, width, vocabulary, softcap, CAPPED)
            higher = tl.maximum(most, z)
            total = total * tl.exp2((most - higher) * LOG2_E) + tl.exp2((z - higher) * LOG2_E)
            most = higher
        peak = tl.max(most, 0)
        logsumexp = peak + tl.log(tl.sum(total * tl.exp2((most - peak) * LOG2_E), 0))
        tl.store(losses + row, logsumexp - hit)

        if GRADIENT:
            factor = tl.where(inside, tl.load(factors + row), float("nan"))
            for first in range(0, width, BLOCK_V):
                z = _scores(start, first, column, width, vocabulary, softcap, CAPPED)
                slope = tl.exp2((z - logsumexp) * LOG2_E) - tl.where(first + column == answer, 1.0, 0.0)
                if CAPPED:
                    tanh = z * (1.0 / softcap)
                    slope *= 1.0 - tanh * tanh
                slope = tl.where(first + column < vocabulary, slope * factor, 0.0)
                slope = slope.to(logits.dtype.element_ty)
                tl.store(start + first + column, slope, mask=first + column < width)


@triton.jit
def _scale_kernel(x, factor, tiles, elements, BLOCK: tl.constexpr):
    scale = tl.load(factor)
    if scale != 1.0:
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            place = (tl.full((BLOCK,), 0, tl.int64) + tile) * BLOCK + tl.arange(0, BLOCK)
            values = tl.load(x + place, mask=place < elements, other=0.0)
            tl.store(x + place, (values.to(tl.float32) * scale).to(values.dtype), mask=place < elements)


def cross_entropy_rows(
    logits_RW: Tensor,
    targets_R: Tensor,
    losses_R: Tensor,
    *,
    vocabulary: int,
    softcap: float | None = None,
    factors_R: Tensor | None = None,
) -> None:
    """Launch the loss of rows of logits, and turn them into their gradient if there are factors.

    Args:
        logits_RW: ``(R, W)`` contiguous; overwritten with the gradient where ``factors_R`` is given.
        targets_R: ids; see the head of this file for those outside the vocabulary.
        losses_R: fp32, written.
        vocabulary: columns that count, ``V <= W``.
        softcap: see ``ops.linear_cross_entropy``.
        factors_R: fp32 factor of each row's gradient, contiguous; None = losses only.
    """
    rows, width = logits_RW.shape
    block = min(WIDEST_TILE, next_power_of_2(width))
    with launching_on(logits_RW):
        _cross_entropy_kernel[(rows,)](
            logits_RW, targets_R, factors_R, losses_R, width, vocabulary, softcap or 1.0,
            IGNORED, softcap is not None, factors_R is not None, block,
            num_warps=max(4, block // (32 * ELEMENTS_A_THREAD)),
        )  # fmt: skip


def scale_in_place(x: Tensor, factor: Tensor) -> None:
    """Multiply a contiguous tensor by a number that only the device knows; a factor of 1 costs a launch and touches nothing.

    Args:
        x: contiguous, overwritten.
        factor: fp32, one element.
    """
    elements = x.numel()
    tiles = cdiv(elements, SCALE_TILE)
    programs = min(tiles, SCALE_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(x.device))
    if programs:
        with launching_on(x):
            _scale_kernel[(programs,)](x, factor, tiles, elements, SCALE_TILE, num_warps=4)
