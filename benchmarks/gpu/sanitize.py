"""Our CUDA kernels under compute-sanitizer, NVIDIA's checker of memory accesses, where it is found.

``memcheck`` sees accesses outside of allocations, ``racecheck`` threads of a CTA that disagree about shared memory, ``initcheck`` global memory that
is read before anyone wrote it. The tools run side by side, each a process of its own that makes the calls of ``sanitized_calls``. Every tensor is
an allocation of the driver there: in torch's pool an access after one of them would hit another.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .sanitized_calls import BEGIN, CALLS, DONE, WRONG

TOOLS: dict[str, tuple[str, ...]] = {
    "memcheck": ("--report-api-errors", "no"),  # torch asks the driver for things that it may not have
    "racecheck": (),
    "initcheck": (),
}
SECONDS = 240
"""Of a tool, to start and to end; not measured."""

ROOT = Path(__file__).parents[2]
_SUMMARY = re.compile(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+)")
_COMPLAINT = re.compile(r"^=+ (?!COMPUTE-SANITIZER|ERROR SUMMARY|RACECHECK SUMMARY|Target application)(\S.*)")


@dataclass(frozen=True)
class Outcome:
    """What a tool says about a kernel.

    Attributes:
        tool: a name in :data:`TOOLS`.
        kernel: as in ``kernels/verified.json``.
        problem: what is wrong with the kernel; empty when nothing is.
        not_run: why nothing is known; empty when it ran.
    """

    tool: str
    kernel: str
    problem: str = ""
    not_run: str = ""

    @property
    def text(self) -> str:
        """In a few words."""
        return self.problem or (f"not run: {self.not_run}" if self.not_run else "ok")


def find_tool(name: str = "compute-sanitizer", folder: str = "compute-sanitizer") -> str | None:
    """Return the path of one of NVIDIA's tools, or None; ``folder`` = where it may lie below the toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [os.environ.get("PATH", ""), *(f"{home}/bin:{home}/{folder}" for home in homes if home)]
    return shutil.which(name, path=":".join(places))


def sanitize(tool_path: str, seconds: float = SECONDS, arguments: Sequence[str] = ()) -> list[Outcome]:
    """Run all tools side by side and return what each says about each kernel; ``arguments`` are those of ``sanitized_calls``."""
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}
    started = {}
    for tool, options in TOOLS.items():
        words = [tool_path, "--tool", tool, *options, sys.executable, "-m", f"{__package__}.sanitized_calls", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started[tool] = subprocess.Popen(words, cwd=ROOT, env=environment, text=True, errors="replace", **pipes)
    found = []
    for tool, process in started.items():
        try:
            said, late = process.communicate(timeout=seconds)[0], ""
        except subprocess.TimeoutExpired:
            process.kill()
            said, late = process.communicate()[0], f"it took longer than {seconds:.0f} s"
        found += outcomes_of(tool, said.splitlines(), late)
    return found


def outcomes_as_fields(outcomes: Iterable[Outcome]) -> list[dict[str, str]]:
    """Return outcomes as a journal holds them."""
    return [{**asdict(each), "text": each.text} for each in outcomes]


def outcomes_of(tool: str, lines: Iterable[str], late: str = "") -> list[Outcome]:
    """Return what the output of a tool says about each kernel; ``late`` says that it was ended before its time."""
    complaints: dict[str | None, list[str]] = {}
    done, now, last, counted = set(), None, "it said nothing", None
    for line in lines:
        summary, complaint = _SUMMARY.match(line), _COMPLAINT.match(line)
        last = line.strip("= ") or last
        if line.startswith(BEGIN):
            now = line.removeprefix(BEGIN)
        elif line.startswith(DONE):
            done.add(line.removeprefix(DONE))
        elif line.startswith(WRONG):
            complaints.setdefault(now, []).append(line.removeprefix(WRONG))
        elif summary:
            counted = int(summary.group(1))
        elif complaint:
            complaints.setdefault(now, []).append(complaint.group(1))
    reason = late or next(iter(complaints.get(None, [])), last)
    unplaced = counted if counted and not complaints else 0
    done = done if counted is not None else set()
    return [_outcome(tool, kernel, complaints.get(kernel, []), unplaced, "" if kernel in done else reason) for kernel in CALLS]


def _outcome(tool: str, kernel: str, complaints: list[str], unplaced: int, not_run: str) -> Outcome:
    if complaints:
        return Outcome(tool, kernel, problem=f"{len(complaints)} complaints, the first: {complaints[0][:160]}")
    if unplaced:
        return Outcome(tool, kernel, problem=f"{unplaced} complaints about some kernel")
    return Outcome(tool, kernel, not_run=not_run[:160])
