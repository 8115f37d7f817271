"""``lmmblocks explain``: what each op would run here. What did run is known in the process that ran it: ``lmmblocks.backend.explain()``."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import TYPE_CHECKING

from ..spec import LmmError

if TYPE_CHECKING:
    from .machine import Report

HEADER = ("example call", "set to", "auto takes", "ladder, and why not what stands before")
NARROWEST, WIDEST = 80, 120


def add_cli(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: none."""


def run(args: argparse.Namespace) -> None:
    """Print a table.

    Raises:
        LmmError: ``LMMBLOCKS_BACKEND`` or the record of proven kernels can't be read.
    """
    from .machine import examine

    report = examine()
    if report.problems:
        raise LmmError("; ".join(report.problems))
    print(text(report, min(max(shutil.get_terminal_size((100, 24)).columns, NARROWEST), WIDEST)))


def text(report: Report, width: int) -> str:
    """Return a report's choices as a table of about ``width`` columns, under a line that says what they are."""
    from ..ops.explain import table

    rows = []
    for choice in report.choices:
        before = choice.ladder[: choice.ladder.index(choice.taken)] if choice.taken else choice.ladder
        refused = [(name, choice.refused[name]) for name in before if name in choice.refused]
        refused += [("unknown", choice.problem)] if choice.problem else []
        rows.append((choice.call, choice.set_to, choice.ladder, choice.taken or "-", refused))
    says = f"What auto would take on {report.device} in bfloat16 for an example call of each op; nothing has run. 'lmmblocks doctor' tells more."
    head = textwrap.fill(says, width)
    return f"{head}\n\n{table(rows, width, HEADER)}"
