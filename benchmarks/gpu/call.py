"""One call of the command: a process for each step, watched, with what it finds in the journal at once.

A process that dies, hangs or loses the device costs the item that it was at: another one goes on after it. This process never touches the GPU.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from .case import Suite
from .child import EVENT_OF, LOST, become_child, failure, result_fields, run_items
from .journal import BEGIN, END, LEFT_OUT, Event, Journal
from .machine import Gpu
from .steps import Stage, Step, left

POLL_S = 0.1
LEAST_S = 6.0
"""Less time than this isn't worth a process."""

MOST_FAULTS = 6
"""Processes that may fail in one step; then the rest of it is left alone."""

GONE_S = 10.0
"""To be gone after a kill: the driver may still be busy with the process's last kernel."""

Screen = Callable[[str], None]


@dataclass
class Process:
    """A process at work.

    Attributes:
        step: what it does.
        pid, output: of the process, and what it prints.
        began, heard: moments of its start and of its last word.
        item: that it is at; None before the first, and between two.
        done: items that it has finished.
    """

    step: Step
    pid: int
    output: int
    began: float
    heard: float
    item: str | None = None
    done: int = 0


class Call:
    """Works through stages until a moment of the monotonic clock."""

    def __init__(
        self, suites: dict[str, Suite], machine: Gpu, journal: Journal, events: list[Event], end: float, tell: Callable[[Event], None],
        screen: Screen, ending: Callable[[], None],
    ) -> None:  # fmt: skip
        self.suites, self.machine, self.journal, self.events, self.end = suites, machine, journal, events, end
        self.tell, self.screen, self.ending = tell, screen, ending
        self._running: list[Process] = []
        self._faults: dict[str, int] = {}

    def run(self, stages: list[Stage]) -> None:
        """Do all there is time for; no process outlives this call."""
        try:
            for stage in stages:
                self._stage(stage)
        finally:
            for process in self._running:
                _kill(process)
            self._news()

    def _stage(self, stage: Stage) -> None:
        waiting = [step for step in stage.steps if left(step, self.events)]
        while waiting or self._running:
            self.ending()
            while waiting and len(self._running) < stage.lanes:
                self._start(waiting.pop(0))
            self._listen()
            self._news()
            for process in list(self._running):
                again = self._watched(process)
                waiting[:0] = [process.step] if again else []

    def _start(self, step: Step) -> None:
        there = self.end - time.monotonic()
        if there < (step.seconds if step.whole else LEAST_S):
            self.screen(f"     {step.name}: no time, {max(there, 0):.0f} s are left; the next call makes it")
            return
        reads, writes = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os._exit(self._child(step, writes))
        os.close(writes)
        os.set_blocking(reads, False)
        now = time.monotonic()
        self._running.append(Process(step, pid, reads, now, now))

    def _child(self, step: Step, output: int) -> int:
        code = 1
        try:
            become_child(output)
            code = run_items(step, left(step, self.events), self.suites, self.machine, self.journal)
        except BaseException:  # nothing may return into the parent's code
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        return code

    def _listen(self) -> None:
        """Wait a moment for what processes print."""
        ready = select.select([process.output for process in self._running], [], [], POLL_S)[0] if self._running else []
        for process in self._running:
            if process.output in ready and self._print(process) == 0:
                time.sleep(POLL_S / 10)  # it has closed its output, and ends

    def _print(self, process: Process) -> int:
        try:
            data = os.read(process.output, 65536)
        except BlockingIOError:
            return 0
        for line in data.decode(errors="replace").splitlines():
            self.screen(f"     {process.step.name}: {line}")
        return len(data)

    def _news(self) -> None:
        """Take in what the journal got."""
        by_step = {process.step.name: process for process in self._running}
        for event in self.journal.fresh():
            self.events.append(event)
            process = by_step.get(event.get("step", ""))
            if process is not None and event["event"] != END:
                process.heard = time.monotonic()
                process.item = event["item"] if event["event"] == BEGIN else None
                process.done += event["event"] not in (BEGIN, LEFT_OUT)
            self.tell(event)

    def _watched(self, process: Process) -> bool:
        """Look after a process; return whether another one shall go on with its step."""
        now = time.monotonic()
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        if pid:
            return self._ended(process, os.waitstatus_to_exitcode(status))
        if now > self.end:
            _kill(process)
            return self._closed(process, "out of time")
        if now - process.heard > process.step.silence_s:
            _kill(process)
            return self._closed(process, f"no word for {process.step.silence_s:.0f} s", blame="hung")
        return False

    def _ended(self, process: Process, code: int) -> bool:
        while self._print(process):
            pass
        self._news()
        if code == 0:
            return self._closed(process, "done")
        if code == LOST:
            return self._closed(process, "the device was lost to it", blame="lost")
        how = f"died of signal {-code}" if code < 0 else f"ended with code {code}"
        return self._closed(process, how, blame=how)

    def _closed(self, process: Process, how: str, blame: str = "") -> bool:
        """Write the end of a process, and of the item that took it along; return whether another one shall go on."""
        step = process.step
        self._running.remove(process)
        os.close(process.output)
        self._news()
        if blame and process.item is not None:
            self.journal.append(EVENT_OF[step.kind], **result_fields(step, process.item), **failure(step, f"its process {blame}"))
        self.journal.append(END, step=step.name, how=how, seconds=round(time.monotonic() - process.began, 1), made=process.done)
        self._news()
        self._faults[step.name] = self._faults.get(step.name, 0) + bool(blame)
        came_on = process.item is not None or process.done > 0
        return bool(blame) and came_on and self._faults[step.name] < MOST_FAULTS and bool(left(step, self.events))


def _kill(process: Process) -> None:
    """End a process and all it started; one that the driver doesn't let go is left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        os.kill(process.pid, signal.SIGKILL)
    end = time.monotonic() + GONE_S
    while os.waitpid(process.pid, os.WNOHANG) == (0, 0) and time.monotonic() < end:
        time.sleep(POLL_S / 10)
