"""Which samples make up which step: a pure function of the stage and the data, so a position is one number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ..spec import LmmError, Sample
from .sampler import modality_length_grouped_indices, packed_batches
from .stage import Stage

if TYPE_CHECKING:
    import torch


class StepOrder(Sequence[tuple[int, ...]]):
    """Sample indices of every optimiser step of a stage, over all its epochs.

    With several processes each would take its share of a step here, and nothing else would change.

    Args:
        samples: the training data.
        stage: sampler, batch size, seed, epochs.

    Raises:
        LmmError: no data.
    """

    def __init__(self, samples: Sequence[Sample], stage: Stage) -> None:
        if not len(samples):
            raise LmmError(f"stage {stage.name!r}: the data is empty: expected at least one sample")
        self.stage = stage
        self.lengths = modality_lengths(samples) if stage.sampler == "modality_length_grouped" else [1] * len(samples)
        self.steps_per_epoch = -(-len(samples) // stage.batch_size)
        self.total = stage.max_steps or stage.epochs * self.steps_per_epoch
        self._epoch = lru_cache(maxsize=2)(self._steps_of_epoch)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, step: int) -> tuple[int, ...]:  # type: ignore[override]
        if not 0 <= step < self.total:
            raise IndexError(step)
        epoch, place = divmod(step, self.steps_per_epoch)
        return tuple(self._epoch(epoch)[place])

    def _steps_of_epoch(self, epoch: int) -> list[list[int]]:
        stage = self.stage
        if stage.sampler == "packed":
            return packed_batches(self.lengths, stage.batch_size, stage.seed, epoch)
        group = stage.micro_batch_samples or stage.batch_size
        outer, inner = (_generator(stage.seed, epoch) for _ in range(2))
        indices = modality_length_grouped_indices(self.lengths, group, stage.batch_size // group, generator=outer, inner_generator=inner)
        return [indices[start : start + stage.batch_size] for start in range(0, len(indices), stage.batch_size)]


def modality_lengths(samples: Sequence[Sample]) -> list[int]:
    """Return LLaVA's length of each sample: words of all turns, negative when there is no image (``train/train.py:683-690``).

    The image marker counts as a word where spaces surround it, as there.

    >>> modality_lengths([Sample([{"role": "user", "content": "two words"}])])
    [-2]
    """
    words = [sum(len(message["content"].split()) for message in sample.messages) for sample in samples]
    return [count if sample.images else -count for count, sample in zip(words, samples)]


def _generator(seed: int, epoch: int) -> torch.Generator:
    """A stream of its own for every epoch; that of epoch 0 is the seed's own."""
    import numpy as np
    import torch

    own = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]) if epoch else seed
    return torch.Generator().manual_seed(own)
