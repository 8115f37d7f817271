"""What the process of a step does: item after item, each announced in the journal before it is tried, its result written when it is known.

It ends itself where the device is lost to it, so that the next process begins with a sound one; see :mod:`call` for who starts it again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import cast

from .case import Suite
from .journal import BEGIN, BUILT, LEFT_OUT, Event, Journal
from .machine import Gpu, LeftOut, fields_of, problem_of
from .record import COMPILERS
from .sanitize import SECONDS as SANITIZER_S
from .steps import Step, check_item, row_item

LOST = 3
"""Exit code: the device is lost to this process."""

DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG

Work = Callable[[str], Event]
"""Item to what was found."""


def become_child(output: int) -> None:
    """Make the forked process one of its own group, that dies with its parent and writes to ``output``."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, int(signal.SIGKILL), 0, 0, 0)
    for stream in (1, 2):
        os.dup2(output, stream)


def run_items(step: Step, items: list[str], suites: dict[str, Suite], machine: Gpu, journal: Journal) -> int:
    """Do what is left of a step; return the exit code."""
    try:
        work = WORK[step.kind](step, suites.get(step.suite), machine)
        for item in items:
            journal.append(BEGIN, step=step.name, item=item)
            found = _tried(step, work, item, machine)
            journal.append(EVENT_OF[step.kind], **result_fields(step, item), **found)
            if (found.get("problem") or found.get("note")) and machine.lost():
                return LOST
    except LeftOut as reason:
        journal.append(LEFT_OUT, step=step.name, why=str(reason))
    return 0


def result_fields(step: Step, item: str) -> Event:
    """Return what every result of an item says."""
    return {"step": step.name, "item": item, "arch": step.arch, **step.items[item]}


def failure(step: Step, how: str) -> Event:
    """Return what a result says of an item that failed, or whose process did."""
    return {"note": f"not measured: {how}"} if step.kind == "times" else {"problem": how}


def _tried(step: Step, work: Work, item: str, machine: Gpu) -> Event:
    try:
        machine.begin(item)
        return work(item)
    except LeftOut:
        raise
    except Exception as error:  # what fails must not hide the others
        return failure(step, problem_of(error))


EVENT_OF = {
    "ptx": "instruction",
    "build": BUILT,
    "checks": "verdict",
    "sanitizer": "sanitized",
    "ceilings": "ceilings",
    "times": "row",
    "profile": "profile",
}
"""Kind of a step to the name of its results."""


def _ptx(step: Step, suite: Suite | None, machine: Gpu) -> Work:
    right = machine.instructions()
    return lambda item: {"problem": right(item)}


def _build(step: Step, suite: Suite | None, machine: Gpu) -> Work:
    return lambda item: {"problem": machine.build(step.arch)}


def _checks(step: Step, suite: Suite | None, machine: Gpu) -> Work:
    if step.arch:
        machine.use_build(step.arch)
    about = {COMPILERS: machine.compilers()} if step.arch else {}
    pairs = {check_item(check.kernel, check.case, dtype): (check, dtype) for check in cast(Suite, suite).checks for dtype in check.dtypes}
    return lambda item: {**fields_of(machine.verdict(*pairs[item])), **about}


def _sanitizer(step: Step, suite: Suite | None, machine: Gpu) -> Work:
    return lambda item: {"outcomes": machine.sanitizer(step.arch, SANITIZER_S)}


def _ceilings(step: Step, suite: Suite | None, machine: Gpu) -> Work:
    return lambda item: machine.ceilings()


def _times(step: Step, suite: Suite | None, machine: Gpu) -> Work:
    with contextlib.suppress(LeftOut):  # the rows of CUDA kernels say why there is no build
        machine.use_build(step.arch)
    pairs = {row_item(timing, provider): (timing, provider) for timing in cast(Suite, suite).timings for provider in timing.providers}
    return lambda item: machine.row(*pairs[item])


def _profile(step: Step, suite: Suite | None, machine: Gpu) -> Work:
    return lambda item: machine.profile(item, step.arch)


WORK: dict[str, Callable[[Step, Suite | None, Gpu], Work]] = {
    "ptx": _ptx,
    "build": _build,
    "checks": _checks,
    "sanitizer": _sanitizer,
    "ceilings": _ceilings,
    "times": _times,
    "profile": _profile,
}
"""By the kind of a step."""
