"""The log of a run: ``losses.csv``, a progress bar, TensorBoard. Numbers leave the device only when a line is due."""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_QUIET_S = 30.0  # without a terminal: seconds between printed lines


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step of the log.

    Attributes:
        step: counted from 1: how many steps had been taken with it.
        loss: of the step; None where no sample had a target, so that there is no mean.
        lr: what the part with the highest learning rate had.
        grad_norm: before clipping; None as the loss.
        tokens_per_s: packed rows per second since the last log line.
        samples: in the step.
        supervised_tokens: in the step.
    """

    step: int
    loss: float | None
    lr: float
    grad_norm: float | None
    tokens_per_s: float
    samples: int
    supervised_tokens: int


COLUMNS = {f.name: {"int": int, "float": float}[str(f.type).partition(" ")[0]] for f in fields(StepRow)}


def rows_to_csv(rows: Sequence[StepRow], *, header: bool = True) -> str:
    """Return CSV text; numbers keep every bit, and what there is none of is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue()


def rows_from_csv(text: str) -> list[StepRow]:
    """Return the rows of :func:`rows_to_csv`, bit for bit."""
    return [_row(line) for line in csv.DictReader(io.StringIO(text))]


def _row(line: Mapping[str, str]) -> StepRow:
    values: dict[str, Any] = {name: read(line[name]) if line[name] else None for name, read in COLUMNS.items()}
    return StepRow(**values)


class TrainLog:
    """Where the rows of a run go.

    Args:
        folder: of the run; ``losses.csv`` and ``tensorboard/`` are written there.
        rows: of the steps taken before.
        total_steps: of the stage.
        name: of the stage.

    Attributes:
        rows: all rows so far.
    """

    def __init__(self, folder: Path, rows: Sequence[StepRow], total_steps: int, name: str) -> None:
        from tqdm import tqdm

        self.rows, self.total_steps, self.name = list(rows), total_steps, name
        self.path = folder / "losses.csv"
        self.path.write_text(rows_to_csv(self.rows))
        self.board = _tensorboard(folder / "tensorboard", first_step=len(self.rows) + 1)
        self.bar = tqdm(
            total=total_steps,
            initial=len(self.rows),
            desc=name,
            unit="step",
            disable=None,
            dynamic_ncols=True,
        )
        self.printed_s = -math.inf

    def add(self, rows: Sequence[StepRow], *, padding: float, data_wait: float) -> None:
        """Append rows everywhere.

        Args:
            rows: of the steps since the last call.
            padding: share of the computed rows that were padding.
            data_wait: share of the time the device waited for data.
        """
        if not rows:
            return
        self.rows += rows
        with self.path.open("a") as file:
            file.write(rows_to_csv(rows, header=False))
        if self.board is not None:
            for row in rows:
                for column in ("loss", "lr", "grad_norm", "tokens_per_s"):
                    if getattr(row, column) is not None:
                        self.board.add_scalar(column, getattr(row, column), row.step)
            self.board.add_scalar("data_wait", data_wait, rows[-1].step)
        self._show(rows[-1], len(rows), padding, data_wait)

    def message(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        self.bar.write(text)

    def close(self) -> None:
        """Finish the bar and the TensorBoard file."""
        self.bar.close()
        if self.board is not None:
            self.board.close()

    def _show(self, row: StepRow, steps: int, padding: float, data_wait: float) -> None:
        shown = {
            "loss": "none" if row.loss is None else f"{row.loss:.4f}",
            "lr": f"{row.lr:.2e}",
            "tokens/s": f"{row.tokens_per_s:,.0f}",
            "padding": f"{padding:.0%}",
            "data wait": f"{data_wait:.0%}",
        }
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(steps)
        now = time.monotonic()
        if self.bar.disable and (now - self.printed_s >= _QUIET_S or row.step == self.total_steps):
            self.printed_s = now
            print(
                f"{self.name}: step {row.step}/{self.total_steps}, " + ", ".join(f"{k} {v}" for k, v in shown.items()),
                flush=True,
            )


def _tensorboard(folder: Path, first_step: int) -> Any:
    """Return a writer that forgets what an interrupted run wrote from ``first_step`` on, or None without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("tensorboard is not installed: no TensorBoard log is written (pip install 'lmmblocks[train]')")
        return None
    return SummaryWriter(str(folder), purge_step=first_step)
