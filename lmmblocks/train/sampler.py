"""The order in which samples are trained on.

``packed_batches`` is the default: a seeded permutation cut into steps, a pure function of ``(seed, epoch)``, so a
resumed run knows its place without replaying anything. Packing leaves no padding, hence nothing to gain from sorting by length.

``modality_length_grouped_indices`` is LLaVA-1.5's own order, for parity. It spreads long and short samples evenly over
ranks and keeps text-only samples apart from image samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..spec import LmmError

if TYPE_CHECKING:
    import torch


def packed_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, *, drop_last: bool = False) -> list[list[int]]:
    """Return one epoch as a list of steps, each a list of sample indices.

    Args:
        lengths: one entry per sample; only their number matters here.
        batch_size: samples per step, over all ranks and micro-batches.
        seed: of the run.
        epoch: counted from 0; every epoch has its own order.
        drop_last: leave out a last step of fewer than ``batch_size`` samples; it is kept by default.

    Returns:
        Steps in order. Without ``drop_last`` every index appears exactly once.

    >>> [len(step) for step in packed_batches([10] * 5, batch_size=2, seed=0, epoch=0)]
    [2, 2, 1]
    """
    import numpy as np
    import torch

    if batch_size < 1:
        raise LmmError(f"batch_size must be at least 1, found {batch_size}")
    if seed < 0 or epoch < 0:
        raise LmmError(f"seed and epoch must not be negative, found seed={seed}, epoch={epoch}")
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]) >> 1
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(mixed)).tolist()
    steps = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return steps[:-1] if drop_last and steps and len(steps[-1]) < batch_size else steps


def modality_length_grouped_indices(
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    *,
    generator: torch.Generator | None = None,
    inner_generator: torch.Generator | None = None,
) -> list[int]:
    """Return one epoch of LLaVA-1.5's order, index for index.

    Each modality: random permutation, cut into megabatches of ``batch_size * world_size``, each sorted from long to
    short and dealt to ``world_size`` chunks of equal count and nearly equal total. Full megabatches of both are then shuffled
    together; what is left of either comes last, mixed and in ascending order.

    Args:
        lengths: words per sample, positive with image and negative for text only, never 0.
        batch_size: samples per rank and micro-batch.
        world_size: ranks times accumulation steps.
        generator: shuffles the megabatches; None is torch's global one.
        inner_generator: permutes the samples of each modality; None is torch's global one, which is all LLaVA ever uses.

    Returns:
        A permutation of ``range(len(lengths))``; consecutive runs of ``batch_size`` belong to ranks 0, 1, ...

    Raises:
        LmmError: a length is 0, or a size is not positive.

    Source: haotian-liu/LLaVA ``train/llava_trainer.py:38-130``. With a single modality LLaVA takes its other path, which
    permutes with ``generator`` and sorts signed lengths, so text-only data is dealt from short to long; so does this.
    """
    import torch

    if batch_size < 1 or world_size < 1:
        raise LmmError(f"batch_size and world_size must be at least 1, found {batch_size} and {world_size}")
    if empty := [index for index, length in enumerate(lengths) if length == 0]:
        raise LmmError(f"sample {empty[0]} has length 0 ({len(empty)} such samples): expected at least one word each")
    image = [index for index, length in enumerate(lengths) if length > 0]
    text = [index for index, length in enumerate(lengths) if length < 0]
    if not image or not text:
        return [i for mega in _megabatches(lengths, batch_size, world_size, generator) for i in mega]

    full: list[list[int]] = []
    rest: list[int] = []
    for members in (image, text):
        sizes = [abs(lengths[index]) for index in members]
        *complete, last = _megabatches(sizes, batch_size, world_size, inner_generator)
        full += [[members[i] for i in mega] for mega in complete]
        rest += [members[i] for i in last]
    order = torch.randperm(len(full), generator=generator).tolist()
    return [index for position in order for index in full[position]] + sorted(rest)


def _megabatches(lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None) -> list[list[int]]:
    """Permute, cut, sort each megabatch from long to short, and deal it to ``world_size`` balanced chunks."""
    import torch

    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = batch_size * world_size
    megabatches = [order[start : start + size] for start in range(0, len(order), size)]
    return [[index for chunk in _deal(sorted(mega, key=lambda i: -lengths[i]), lengths, world_size) for index in chunk] for mega in megabatches]


def _deal(indices: list[int], lengths: Sequence[int], chunks: int) -> list[list[int]]:
    """Give each index in turn to the chunk with the smallest total that still has room (the first of equals).

    An uneven number of indices is dealt round-robin, as LLaVA does.
    """
    if len(indices) % chunks:
        return [indices[first::chunks] for first in range(chunks)]
    room = len(indices) // chunks
    dealt: list[list[int]] = [[] for _ in range(chunks)]
    totals = [0.0] * chunks
    for index in indices:
        lightest = min(range(chunks), key=totals.__getitem__)
        dealt[lightest].append(index)
        totals[lightest] += lengths[index]
        if len(dealt[lightest]) == room:
            totals[lightest] = float("inf")
    return dealt
