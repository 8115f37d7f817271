"""A training loop that is given minutes, not steps: the schedule follows the clock and ends on time.

Checkpoints are written as a whole or not at all; a run that was stopped goes on from the last one with the
time that it had left. What is exported along the way is therefore usable at any moment.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lmmblocks.spec import LmmError

from .optimizer import make_optimizers

_LONGEST_STEP_S = 30.0
"""What a step counts at most: a process that is suspended does not spend its training time."""


class Task(Protocol):
    """What is trained.

    Attributes:
        modules: everything that learns, by name.
    """

    modules: nn.ModuleDict

    def losses(self, step: int) -> dict[str, Tensor]:
        """The terms of one step's loss on a fresh batch; their sum is minimised."""
        ...

    def evaluate(self) -> dict[str, Any]:
        """Scores on the validation data."""
        ...

    def export(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write what is shipped."""
        ...


@dataclass
class TimedRun:
    """How long, how fast and where.

    Args:
        minutes: training time, all resumed parts together; the learning rate reaches its end when it is over.
        out: folder for `checkpoint.pt` and `log.jsonl`.
        export_to: folder of the shipped weights.
        lr: peak learning rate.
        weight_decay: on matrices; vectors and embeddings have none.
        muon: see `make_optimizers`.
        warmup_steps: linear warm-up.
        save_minutes: time between two checkpoints.
        log_steps: steps between two log lines.

    Raises:
        LmmError: negative minutes.
    """

    minutes: float
    out: Path
    export_to: Path
    lr: float
    weight_decay: float
    muon: bool
    warmup_steps: int = 50
    save_minutes: float = 10.0
    log_steps: int = 50
    step: int = 0
    elapsed_s: float = 0.0
    _sums: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.minutes < 0:
            raise LmmError(f"--minutes {self.minutes}: give 0 (export what the checkpoint holds) or more")

    def train(self, task: Task, resume: bool = False) -> dict[str, Any]:
        """Train until the time is over, then evaluate and export.

        Args:
            task: what is trained.
            resume: go on from `checkpoint.pt`; without it, a folder that has one is refused.

        Returns:
            The last evaluation.

        Raises:
            FileNotFoundError: nothing to resume.
            FileExistsError: a checkpoint that would be overwritten.
            FloatingPointError: the loss is not finite.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        optimizers = make_optimizers(task.modules, self.lr, self.weight_decay, self.muon)
        self._open(task, optimizers, resume)
        now = last_save = time.monotonic()
        while self.elapsed_s < self.minutes * 60:
            self._step(task, optimizers)
            before, now = now, time.monotonic()
            self.elapsed_s += min(now - before, _LONGEST_STEP_S)
            if now - last_save > self.save_minutes * 60:
                self._save(task, optimizers)
                self._report(task)
                now = last_save = time.monotonic()
        self._save(task, optimizers)
        return self._report(task)

    def _step(self, task: Task, optimizers: list[torch.optim.Optimizer]) -> None:
        factor = lr_factor(self.step, self.warmup_steps, self.elapsed_s / (self.minutes * 60))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = factor * group.setdefault("peak_lr", group["lr"])
        losses = task.losses(self.step)
        total = torch.stack(list(losses.values())).sum()
        if not math.isfinite(total.item()):
            raise FloatingPointError(f"step {self.step}: the loss is {total.item()}: lower the learning rate")
        task.modules.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(task.modules.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        self.step += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.item()
        if self.step % self.log_steps == 0:
            self._log({name: round(value / self.log_steps, 4) for name, value in self._sums.items()})
            self._sums.clear()

    def _log(self, values: dict[str, Any]) -> None:
        line = json.dumps({"step": self.step, "minutes": round(self.elapsed_s / 60, 2), **values})
        print(line, flush=True)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def _report(self, task: Task) -> dict[str, Any]:
        task.modules.eval()
        with torch.no_grad():
            metrics = {"steps": self.step, "minutes": round(self.elapsed_s / 60, 1), **task.evaluate()}
        task.export(self.export_to, metrics)
        task.modules.train()
        self._log(metrics)
        return metrics

    def _open(self, task: Task, optimizers: list[torch.optim.Optimizer], resume: bool) -> None:
        path = self.out / "checkpoint.pt"
        if path.exists() and not resume:
            raise FileExistsError(f"{path} exists: pass --resume to go on from it, or another --out")
        if resume:
            if not path.exists():
                raise FileNotFoundError(f"nothing to resume: {path} does not exist; leave --resume out")
            state = torch.load(path, weights_only=True)
            task.modules.load_state_dict(state["modules"])
            for optimizer, saved in zip(optimizers, state["optimizers"]):
                optimizer.load_state_dict(saved)
            self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        task.modules.train()

    def _save(self, task: Task, optimizers: list[torch.optim.Optimizer]) -> None:
        state = {
            "modules": task.modules.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        unfinished = self.out / "checkpoint.pt.unfinished"
        torch.save(state, unfinished)
        os.replace(unfinished, self.out / "checkpoint.pt")


def lr_factor(step: int, warmup_steps: int, progress: float) -> float:
    """Share of the peak learning rate: linear warm-up over steps, cosine over `progress` (0..1) to 1%."""
    warm = min(1.0, (step + 1) / max(warmup_steps, 1))
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
