"""One optimiser step's input: its samples collated once, then cut between conversations into micro-batches that fit the memory.

All of a step is on the host before its first forward, so the number of supervised tokens is known in advance and each micro-batch can carry
its final weight: with sums instead of means, gradients of the micro-batches add up to those of the uncut batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from ..compose.input_spec import InputSpec
from ..data.collate import collate
from ..plans.host import int32
from ..spec import Batch, ImageSpan, LmmError, MachineError, Sample, boundaries
from .stage import Stage


@dataclass(frozen=True, slots=True)
class StepInput:
    """What one optimiser step computes with.

    Attributes:
        step: counted from 0.
        batches: micro-batches; empty when no sample of the step is left.
        weights: what the summed loss of each micro-batch is multiplied with.
        sample_ids: of all samples in the batches.
        rows: packed rows the plans hold.
        computed_rows: rows the decoder is given; anything above ``rows`` would be padding.
        supervised_tokens: rows with a target.
        truncated: samples that lost rows.
        dropped: samples left out as too long.
        unsupervised: samples in the batches without any target.
        skipped: (sample, reason) of samples that couldn't be used.
    """

    step: int
    batches: tuple[Batch, ...]
    weights: tuple[float, ...]
    sample_ids: tuple[str | int | None, ...] = ()
    rows: int = 0
    computed_rows: int = 0
    supervised_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    unsupervised: int = 0
    skipped: tuple[tuple[str | int | None, str], ...] = ()

    def pin_memory(self) -> StepInput:
        """Return the step in pinned host memory, from where it is copied without blocking."""
        return dataclasses.replace(self, batches=tuple(batch.pin_memory() for batch in self.batches))


def step_input(step: int, samples: Sequence[Sample], spec: InputSpec, stage: Stage) -> StepInput:
    """Collate the samples of a step and cut them into micro-batches.

    Args:
        step: counted from 0.
        samples: of this step, each with an id.
        spec: of the model, which has the stage's template and image fit.
        stage: limits of a micro-batch, truncation, policy for bad samples.

    Raises:
        LmmError: a sample can't be used, and ``bad_samples`` is ``error``.
        MachineError: the machine can't read a sample's image, whatever ``bad_samples`` says.
    """
    batch, usable, skipped = _collate(samples, spec, stage)
    if batch is None:
        return StepInput(step, (), (), skipped=skipped)
    plan = batch.plan
    order = [place // stage.micro_batch_samples if stage.micro_batch_samples else 0 for place in plan.kept]
    cuts = micro_batch_segments(plan.lengths, order, stage.micro_batch_rows)
    batches = [select_segments(batch, first, last, spec) for first, last in cuts]
    groups = [order[first] for first, _ in cuts]
    return StepInput(
        step,
        tuple(batches),
        loss_weights(
            [sum(b.plan.target_counts) for b in batches], groups, mean_of_means=stage.llava15_compat
        ),
        sample_ids=batch.sample_ids,
        rows=sum(plan.lengths),
        computed_rows=sum(b.plan.source.shape[0] for b in batches),
        supervised_tokens=sum(plan.target_counts),
        truncated=sum(1 for n in plan.truncated if n),
        dropped=usable - len(plan.kept),
        unsupervised=sum(1 for n in plan.target_counts if not n),
        skipped=skipped,
    )


def _collate(
    samples: Sequence[Sample], spec: InputSpec, stage: Stage
) -> tuple[Batch | None, int, tuple[tuple[str | int | None, str], ...]]:
    """Return the batch of all usable samples, their number, and those left out with the reason."""
    options = {"max_length": stage.max_length, "truncate": stage.truncate}
    try:
        return collate(samples, spec, **options), len(samples), ()  # type: ignore[arg-type]
    except MachineError:  # no sample is bad for it
        raise
    except LmmError:
        if stage.bad_samples == "error":
            raise
    usable, skipped = [], []
    for sample in samples:
        try:
            collate([sample], spec, **options)  # type: ignore[arg-type]
            usable.append(sample)
        except MachineError:
            raise
        except LmmError as error:
            skipped.append((sample.id, str(error)))
    batch = collate(usable, spec, **options) if usable else None  # type: ignore[arg-type]
    return batch, len(usable), tuple(skipped)


def micro_batch_segments(
    lengths: Sequence[int], groups: Sequence[int], most_rows: int
) -> list[tuple[int, int]]:
    """Cut segments, in order, into runs ``[first, last)`` of one group and at most ``most_rows`` rows (one segment may be longer).

    >>> micro_batch_segments([3, 3, 3, 9, 1], [0, 0, 0, 0, 1], most_rows=6)
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    cuts = []
    for _, members in groupby(range(len(lengths)), key=lambda i: groups[i]):
        first, rows = None, 0
        for index in members:
            if first is not None and rows + lengths[index] > most_rows:
                cuts.append((first, index))
                first, rows = None, 0
            first, rows = index if first is None else first, rows + lengths[index]
            last = index + 1
        if first is not None:
            cuts.append((first, last))
    return cuts


def loss_weights(
    targets: Sequence[int], groups: Sequence[int], *, mean_of_means: bool = False
) -> tuple[float, ...]:
    """Return what to multiply the summed loss of each micro-batch with.

    ``1 / all targets``: the mean over all supervised tokens of the step. ``mean_of_means``: ``1 / (groups * targets of the group)``, the
    mean of the groups' means, as LLaVA-1.5 has it; a group without any target has no mean and is left out.

    >>> loss_weights([1, 3], [0, 1]), loss_weights([1, 4], [0, 1], mean_of_means=True)
    ((0.25, 0.25), (0.5, 0.125))
    """
    if not mean_of_means:
        return (1.0 / max(1, sum(targets)),) * len(targets)
    totals: dict[int, int] = {}
    for group, count in zip(groups, targets):
        totals[group] = totals.get(group, 0) + count
    taught = sum(1 for total in totals.values() if total)
    return tuple(1.0 / max(1, taught * totals[group]) for group in groups)


def select_segments(batch: Batch, first: int, last: int, spec: InputSpec) -> Batch:
    """Return segments ``first`` to ``last - 1`` of a batch as a batch of their own, with the images they show.

    Args:
        batch: on the CPU.
        first: first segment.
        last: one past the last segment.
        spec: counts the rows of each image.
    """
    plan = batch.plan
    starts = plan.cu_seqlens.tolist()
    begin, end = starts[first], starts[last]
    placed = plan.image_rows.numpy()
    image_starts = np.cumsum([0, *(spec.image_rows(grid) for grid in batch.grids)])
    inside = np.concatenate([[0], np.cumsum((placed >= begin) & (placed < end))])
    shown = np.flatnonzero(inside[image_starts[1:]] > inside[image_starts[:-1]])
    rows = _ranges(image_starts[shown], image_starts[shown + 1])
    new_row = np.zeros(len(placed) + 1, dtype=np.int64)
    new_row[rows] = np.arange(len(rows))
    source = plan.source[begin:end].numpy()
    targets = slice(*np.searchsorted(plan.target_rows.numpy(), [begin, end]))
    order = plan.token_order
    part = dataclasses.replace(
        plan,
        source=int32(np.where(source < 0, -1 - new_row[np.maximum(-1 - source, 0)], source)),
        positions=plan.positions[begin:end],
        cu_seqlens=boundaries(plan.lengths[first:last]),
        max_seqlen=max(plan.lengths[first:last]),
        total_rows=end - begin,
        target_rows=plan.target_rows[targets] - begin,
        targets=plan.targets[targets],
        kv_end=None if plan.kv_end is None else plan.kv_end[begin:end] - begin,
        image_rows=int32(np.where(placed[rows] < 0, -1, placed[rows] - begin)),
        token_order=order[(order >= begin) & (order < end)] - begin,
        image_spans=_spans_of(plan.image_spans, first, last, shown),
        **{
            name: getattr(plan, name)[first:last]
            for name in ("lengths", "target_counts", "truncated", "kept")
        },
    )
    return Batch(
        _selected(batch.pixels, shown),
        tuple(batch.grids[i] for i in shown),
        part,
        batch.sample_ids[first:last],
        None if batch.instruction is None else batch.instruction.select(shown.tolist()),
    )


def _spans_of(spans: Sequence[ImageSpan], first: int, last: int, shown: np.ndarray) -> tuple[ImageSpan, ...]:
    """Return the spans of some segments; images and segments are counted anew."""
    new = {int(image): place for place, image in enumerate(shown)}
    return tuple(
        dataclasses.replace(span, image=new[span.image], segment=span.segment - first) for span in spans if first <= span.segment < last
    )


def _selected(pixels: Any, images: np.ndarray) -> Any:
    """Return the pixels of some images: a view where they are neighbours, which they are unless truncation took one away."""
    if len(images) and images[-1] - images[0] + 1 == len(images):
        return pixels[int(images[0]) : int(images[-1]) + 1]
    return pixels[torch.from_numpy(images)]


def _ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Join ``range(start, end)`` of all pairs."""
    return np.concatenate([np.empty(0, np.int64), *(np.arange(a, b) for a, b in zip(starts, ends))])
