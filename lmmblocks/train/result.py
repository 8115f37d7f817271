"""What a run adds up to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .micro_batches import StepInput


@dataclass(slots=True)
class Totals:
    """Running totals of a stage, over all the processes it took.

    Attributes:
        samples: trained on, counting repeats.
        rows: packed rows of text and image.
        computed_rows: rows the decoder was given.
        supervised_tokens: rows with a target.
        truncated: samples that lost rows.
        dropped: samples left out as too long.
        unsupervised: samples without any target.
        skipped: samples left out because they couldn't be used.
        empty_steps: steps without any target, in which nothing was updated.
        seconds: spent in steps, waiting for data included, checkpoints not.
        waited_s: of these, waiting for data.
    """

    samples: int = 0
    rows: int = 0
    computed_rows: int = 0
    supervised_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    unsupervised: int = 0
    skipped: int = 0
    empty_steps: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0

    def add(self, inputs: StepInput) -> None:
        """Count one step's input."""
        self.samples += len(inputs.sample_ids)
        self.rows += inputs.rows
        self.computed_rows += inputs.computed_rows
        self.supervised_tokens += inputs.supervised_tokens
        self.truncated += inputs.truncated
        self.dropped += inputs.dropped
        self.unsupervised += inputs.unsupervised
        self.skipped += len(inputs.skipped)
        self.empty_steps += not inputs.supervised_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @property
    def padding_fraction(self) -> float:
        """Share of the computed rows that no plan asked for."""
        return 1 - self.rows / self.computed_rows if self.computed_rows else 0.0

    @property
    def data_wait_share(self) -> float:
        """Share of the time spent waiting for data."""
        return self.waited_s / self.seconds if self.seconds else 0.0

    def report(self) -> str:
        """Return one line about everything that was not trained on as it stands in the data."""
        counts = {
            "truncated": self.truncated,
            "dropped as too long": self.dropped,
            "without targets": self.unsupervised,
            "skipped as unusable": self.skipped,
        }
        empty = f"; {self.empty_steps} steps had no target and changed nothing" if self.empty_steps else ""
        return f"{self.samples} samples; " + ", ".join(f"{count} {what}" for what, count in counts.items()) + empty


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What :func:`lmmblocks.train.train` gives back.

    Attributes:
        losses: one per step from the first on, also when this call resumed; None for a step without targets, which has none.
        steps: steps taken in all.
        tokens: packed rows trained on.
        tokens_per_second: of the whole stage, without checkpoints.
        padding_fraction: measured share of padding among the computed rows.
        data_wait_share: share of the time spent waiting for data.
        totals: counts of samples, also of those truncated, dropped, skipped.
        checkpoint: folder of the last checkpoint.
    """

    losses: list[float | None]
    steps: int
    tokens: int
    tokens_per_second: float
    padding_fraction: float
    data_wait_share: float
    totals: Totals
    checkpoint: Path

    @property
    def last_loss(self) -> float:
        """Loss of the last step that had a target; a run has at least one."""
        return next(loss for loss in reversed(self.losses) if loss is not None)

    @property
    def skipped(self) -> int:
        """Samples left out because they couldn't be used."""
        return self.totals.skipped
