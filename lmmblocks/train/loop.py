"""The training loop: one stage, from its first step or its last checkpoint to the end."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..compose.dtypes import dtypes_kept, dtypes_of, name_of
from ..spec import LmmError, Sample
from .blame import cause, refuse_broken_weights, refuse_diverged_weights
from .checkpoint import Checkpoint, CheckpointStore, load_checkpoint, verify_checkpoint
from .fingerprint import fingerprint, refuse_difference
from .leftovers import WRITTEN, removing_leftovers
from .loader import StepDataset, StepLoader
from .log import StepRow, TrainLog, rows_from_csv, rows_to_csv
from .micro_batches import StepInput
from .movable import idle_parts
from .optimizer import build_optimizer, forget_sources, learning_as_before, prepare_parts
from .order import StepOrder
from .plot import plot_losses
from .result import Totals, TrainResult
from .samples import Samples
from .schedule import lr_factor
from .settings import effective_settings, run_conditions, settings_text, use_bf16
from .stage import Stage
from .stage_inputs import set_stage_inputs, unchanged_if_refused
from .step import StepOutcome, Stepper

if TYPE_CHECKING:
    from ..lmm import LMM


def train(
    model: LMM,
    stage: Stage,
    records: Any,
    out_dir: str | Path,
    *,
    resume: bool = True,
    on_step: Callable[[StepRow], None] | None = None,
) -> TrainResult:
    """Train one stage; the model is changed in place. It asks, and is saved, with the template and image fit it was trained with.

    Trained weights are fp32 while they are trained. After the run every weight has its own dtype again, so that the model generates, and is what
    a saved one is loaded as: those of a bf16 model are rounded once, at the end; the checkpoint keeps them in fp32.

    Killed at any moment and called again with the same arguments, it goes on from its last checkpoint and gives, bit for bit, the losses of
    the uninterrupted run (on the same kind of device with as many threads; on a GPU with ``deterministic=True``).

    Args:
        model: an ``LMM`` with a tokenizer, on the device to train on.
        stage: what is trained, and how.
        records: samples, such as ``load_records`` gives: a list, or anything else with a length that takes an index.
        out_dir: gets ``settings.json``, ``losses.csv``, ``loss_curve.png``, ``tensorboard/`` and ``checkpoints/``. One folder per stage.
        resume: go on from the newest checkpoint in ``out_dir``; False refuses a folder that holds one.
        on_step: called with each row of the log, when it is written (every ``log_every`` steps).

    Returns:
        Losses, counts, speeds and the last checkpoint.

    Raises:
        LmmError: settings, data or checkpoint don't fit; a sample can't be used; a loss or gradient isn't finite (no update is made then).
            Before the first checkpoint, which the first step writes, nothing is left in ``out_dir`` that wasn't there, and before the first
            update the model is as it was.
    """
    out = Path(out_dir)
    started = CheckpointStore(out / "checkpoints").latest
    begun: list[_Run] = []
    with (
        run_conditions(stage, model.device),
        removing_leftovers(out, WRITTEN, keep=lambda: started() is not None),
        learning_as_before(model),
        dtypes_kept(model),
        unchanged_if_refused(model, lambda: any(run.totals.supervised_tokens for run in begun)),
    ):
        set_stage_inputs(model, stage)
        run = _Run(model, stage, Samples(records), out, on_step)
        begun.append(run)
        run.restore(resume)
        try:
            run.steps()
        finally:
            run.log.close()
            run.optimizer.zero_grad(set_to_none=True)
            model.eval()
        return run.result()


class _Run:
    """The state of a run and what happens to it."""

    log: TrainLog

    def __init__(
        self,
        model: LMM,
        stage: Stage,
        samples: Sequence[Sample],
        out: Path,
        on_step: Callable[[StepRow], None] | None,
    ) -> None:
        self.model, self.stage, self.out, self.on_step = model, stage, out, on_step
        refuse_broken_weights(model, stage)
        self.order = StepOrder(samples, stage)
        self.idle = idle_parts(model, stage, samples)
        self.data = StepDataset(samples, self.order, model.input_spec, stage)
        self.dtypes = dtypes_of(model)
        bf16 = use_bf16(stage, model.device)
        prepare_parts(model, stage, bf16=bf16)
        self.optimizer = build_optimizer(model, stage)
        self.stepper = Stepper(model, self.optimizer, clip_norm=stage.clip_norm, bf16=bf16, threads=stage.micro_batch_threads)
        self.fingerprint = fingerprint(model, stage, samples)
        self.store = CheckpointStore(out / "checkpoints", stage.keep_checkpoints)
        self.totals, self.taken, self.moved = Totals(), 0, False
        self.checkpoint: Checkpoint | None = None
        self.pending: list[tuple[StepInput, StepOutcome | None, float]] = []

    def restore(self, resume: bool) -> None:
        """Go on from the newest checkpoint, or start; print and save the effective settings."""
        found = self.store.latest()
        if found is not None and not resume:
            raise LmmError(f"{found.path} holds a checkpoint: resume from it, remove {self.out}, or choose another folder")
        rows: list[StepRow] = []
        if found is not None:
            refuse_difference(found.fingerprint, self.fingerprint, str(found.path))
            load_checkpoint(found, self.model, self.optimizer)
            self.taken, self.totals, self.checkpoint = found.step, Totals(**found.counts), found
            self.moved = True
            rows = rows_from_csv(found.losses)
        settings = effective_settings(self.model, self.stage, self.data.spec, self.order, len(self.data.samples))
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
            removed = self.store.remove_incomplete()
            self.log = TrainLog(self.out, rows, len(self.order), self.stage.name)
        except OSError as error:
            raise LmmError(f"can't write to {self.out}: {error}: choose another folder") from error
        self.log.message(settings_text(self.model, self.stage, settings))
        if self.idle:
            self.log.message(f"warning: no sample has an image, so nothing reaches {', '.join(self.idle)}: these parts stay as they are")
        for path in removed:
            self.log.message(f"removed {path}: it was not written to its end")
        if found is not None:
            self.log.message(f"resumed from {found.path} after {found.step} of {len(self.order)} steps")

    def steps(self) -> None:
        """Take the steps that are left.

        The first one writes a checkpoint and reads it back: a disk that fails does so in the first minute.
        """
        forget_sources(self.model, self.stage)
        loader = StepLoader(self.data, self.taken, pin=self.model.device.type == "cuda")
        first, self.clock = self.taken + 1, _Clock(loader)
        for inputs in loader:
            self._step(inputs)
            last = self.taken == len(self.order)
            save = last or self.taken == first or self.taken % self.stage.checkpoint_every_steps == 0
            if save or self.taken % self.stage.log_every == 0:
                self._flush()
            if save:
                self._save(verify=self.taken == first)
                self.clock.restart()

    def _step(self, inputs: StepInput) -> None:
        stage = self.stage
        factor = lr_factor(inputs.step, len(self.order), warmup_ratio=stage.warmup_ratio, schedule=stage.schedule)
        outcome = self.stepper(inputs, factor) if inputs.supervised_tokens else None
        self.taken += 1
        self.totals.add(inputs)
        if self.taken == min(len(self.order), self.order.steps_per_epoch):
            self._refuse_an_epoch_of_nothing(inputs)
        self.pending.append((dataclasses.replace(inputs, batches=(), weights=()), outcome, factor * max(stage.train.values())))

    def _refuse_an_epoch_of_nothing(self, inputs: StepInput) -> None:
        if not self.totals.supervised_tokens:
            example = f"; such as: {inputs.skipped[0][1]}" if inputs.skipped else ""
            raise LmmError(f"stage {self.stage.name!r}: no sample of the data has anything to learn: {self.totals.report()}{example}")

    def _refuse_an_epoch_without_gradient(self) -> None:
        if self.moved or self.taken < min(len(self.order), self.order.steps_per_epoch):
            return
        nothing = f"a gradient to any trained parameter ({', '.join(self.stage.train)})"
        if self.taken < self.order.steps_per_epoch:  # the rest of the data may reach them
            self.log.message(f"warning: none of the {self.taken} steps gave {nothing}, so nothing was learned")
        else:
            raise LmmError(
                f"stage {self.stage.name!r}: no sample of an epoch gave {nothing}, so nothing was learned: "
                f"train a part that the loss depends on, or use data that reaches these"
            )

    def _flush(self) -> None:
        """Fetch the numbers of all steps since the last time, in one transfer, and log them."""
        outcomes = [outcome for _, outcome, _ in self.pending if outcome is not None]
        fetched = torch.stack([torch.stack([o.loss, o.grad_norm]) for o in outcomes]).tolist() if outcomes else []
        values = iter(fetched)
        numbers: list[Any] = [(None, None) if outcome is None else tuple(next(values)) for _, outcome, _ in self.pending]
        for (inputs, outcome, _), (loss, norm) in zip(self.pending, numbers):
            if outcome is not None and not (math.isfinite(loss) and math.isfinite(norm)):
                raise self._non_finite(inputs, loss, norm)
        self.moved = self.moved or any(norm for _, norm in numbers)
        self._refuse_an_epoch_without_gradient()
        seconds, waited_s = self.clock.lap()
        speed = sum(inputs.rows for inputs, _, _ in self.pending) / seconds
        self.totals.seconds += seconds
        self.totals.waited_s += waited_s
        rows = [
            StepRow(inputs.step + 1, loss, lr, norm, speed, len(inputs.sample_ids), inputs.supervised_tokens)
            for (inputs, _, lr), (loss, norm) in zip(self.pending, numbers)
        ]
        for inputs, _, _ in self.pending:
            for name, reason in inputs.skipped:
                self.log.message(f"skipped sample {name!r}: {reason}")
        self.pending = []
        self.log.add(rows, padding=self.totals.padding_fraction, data_wait=waited_s / seconds)
        for row in rows:
            if self.on_step is not None:
                self.on_step(row)

    def _save(self, *, verify: bool) -> None:
        refuse_diverged_weights(self.model, self.stage, self.taken)
        self.checkpoint = self.store.save(
            self.taken,
            self.model,
            self.optimizer,
            fingerprint=self.fingerprint,
            losses=rows_to_csv(self.log.rows),
            counts=self.totals.to_dict(),
        )
        if verify:
            verify_checkpoint(self.checkpoint, self.model, self.optimizer)

    def _non_finite(self, inputs: StepInput, loss: float, norm: float) -> LmmError:
        """Find whom to blame: the weights are still those before the step, so it can be tried again."""
        samples = self.data.samples_of(inputs.step)
        updated = inputs.step and self.totals.supervised_tokens > inputs.supervised_tokens
        first = self.data.samples_of(0) if updated else []
        used = [sample for sample in samples if sample.id in inputs.sample_ids]
        guilt = cause(self.stepper, self.data.spec, self.stage, used, first)
        saved = self.checkpoint.path if self.checkpoint else "none"
        return LmmError(
            f"stage {self.stage.name!r}, step {inputs.step + 1}: loss {loss}, gradient norm {norm}; no update was made. "
            f"{guilt}. "
            f"Samples of the step: {list(inputs.sample_ids)}. Last checkpoint: {saved}"
        )

    def result(self) -> TrainResult:
        """Draw the curve and sum up."""
        losses = [row.loss for row in self.log.rows]
        plot_losses(losses, self.out / "loss_curve.png", title=self.stage.name)
        totals = self.totals
        self.log.message(f"stage {self.stage.name!r}: {totals.report()}")
        assert self.checkpoint is not None  # the last step writes one
        rounded = [name_of(dtype) for dtype in self.dtypes if torch.finfo(dtype).bits < 32]
        if rounded:
            own = " and ".join(rounded)
            self.log.message(f"the model is {own} again, to which trained weights are rounded; {self.checkpoint.path} has them in float32")
        return TrainResult(
            losses=losses,
            steps=self.taken,
            tokens=totals.rows,
            tokens_per_second=totals.rows / totals.seconds if totals.seconds else 0.0,
            padding_fraction=totals.padding_fraction,
            data_wait_share=totals.data_wait_share,
            totals=totals,
            checkpoint=self.checkpoint.path,
        )


class _Clock:
    """Seconds, and seconds waited for data, since the last lap."""

    def __init__(self, loader: StepLoader) -> None:
        self.loader = loader
        self.restart()

    def restart(self) -> None:
        self.begin, self.waited_s = time.perf_counter(), self.loader.waited_s

    def lap(self) -> tuple[float, float]:
        seconds, waited_s = time.perf_counter() - self.begin, self.loader.waited_s - self.waited_s
        self.restart()
        return max(seconds, 1e-9), waited_s
