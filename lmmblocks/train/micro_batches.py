"""One optimiser step's input: its samples read once, then planned in groups of conversations, the micro-batches, that fit the memory.

All of a step is on the host before its first forward, so the number of supervised tokens is known in advance and each micro-batch can carry
its final weight: with sums instead of means, gradients of the micro-batches add up to those of the uncut batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ..compose.input_spec import InputSpec
from ..data.collate import ReadSamples, read_samples
from ..spec import Batch, LmmError, MachineError, Sample
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
    read, skipped = _read(samples, spec, stage)
    if read is None:
        return StepInput(step, (), (), skipped=skipped)
    expanded = read.expanded
    if not expanded.kept:
        expanded.plan()  # which says that all were dropped
    # A group is what LLaVA's loop would have in one forward; micro-batches never join two.
    groups = [place // stage.micro_batch_samples if stage.micro_batch_samples else 0 for place in expanded.kept]
    cuts = micro_batch_segments(expanded.lengths, groups, stage.micro_batch_rows)
    batches = tuple(read.batch_of(first, last) for first, last in cuts)
    plans = [batch.plan for batch in batches]
    targets = [sum(plan.target_counts) for plan in plans]
    return StepInput(
        step,
        batches,
        loss_weights(targets, [groups[first] for first, _ in cuts], mean_of_means=stage.llava15_compat),
        sample_ids=tuple(name for batch in batches for name in batch.sample_ids),
        rows=sum(expanded.lengths),
        computed_rows=sum(plan.source.shape[0] for plan in plans),
        supervised_tokens=sum(targets),
        truncated=sum(1 for plan in plans for cut in plan.truncated if cut),
        dropped=len(expanded.samples) - len(expanded.kept),
        unsupervised=sum(1 for plan in plans for count in plan.target_counts if not count),
        skipped=skipped,
    )


def _read(samples: Sequence[Sample], spec: InputSpec, stage: Stage) -> tuple[ReadSamples | None, tuple[tuple[str | int | None, str], ...]]:
    """Return all usable samples, None where there are none, and those left out with the reason."""

    def read(some: Sequence[Sample]) -> ReadSamples:
        return read_samples(some, spec, max_length=stage.max_length, truncate=stage.truncate)

    try:
        return read(samples), ()
    except MachineError:  # no sample is bad for it
        raise
    except LmmError:
        if stage.bad_samples == "error":
            raise
    usable, skipped = [], []
    for sample in samples:
        try:
            read([sample])
            usable.append(sample)
        except MachineError:
            raise
        except LmmError as error:
            skipped.append((sample.id, str(error)))
    return (read(usable) if usable else None), tuple(skipped)


def micro_batch_segments(lengths: Sequence[int], groups: Sequence[int], most_rows: int) -> list[tuple[int, int]]:
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


def loss_weights(targets: Sequence[int], groups: Sequence[int], *, mean_of_means: bool = False) -> tuple[float, ...]:
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
