"""The whole sequence on a CPU: the same parent, processes and files; what a GPU would do is done by Triton's interpreter, the emulator, or a stub.

The interpreter runs Triton's small checks. The emulator runs those of CUDA kernels where ``LMMBLOCKS_CUDA_EMULATION`` names an extension; elsewhere
the reference stands for them. Builds, instructions, times and ncu are stubs: their figures mean nothing, and nothing of a rehearsal can be recorded.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lmmblocks.ops.cuda_gate import EMULATION

from .case import Call, Check, Suite, Timing, is_cuda
from .correctness import Verdict
from .journal import Event
from .machine import ROOT, Gpu
from .record import environment, source_of
from .timing import GIGA, TERA

DEVICE = "rehearsal without a GPU"
INTERPRETED = (torch.float32, torch.float16)
"""What Triton's interpreter computes right."""

FAULTS = ("sticky", "hang", "crash")
ARCH = "90"


@dataclass(frozen=True)
class Fault:
    """What goes wrong when an item begins.

    Attributes:
        kind: "sticky" = this call and every later one of the process fails; "hang" = it never returns; "crash" = the process dies.
        item: begins the item's name.
    """

    kind: str
    item: str


class Rehearsal(Gpu):
    """No device: a CPU, and stubs."""

    toy = True

    def __init__(self, out, fault: Fault | None = None) -> None:
        super().__init__(out)
        self.fault, self.broken = fault, False

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def suites(self, suites: dict[str, Suite]) -> dict[str, Suite]:
        """Return the suites with each check in one dtype: tests run them in all."""
        return {name: replace(suite, checks=[_in_one_dtype(check) for check in suite.checks]) for name, suite in suites.items()}

    def about(self) -> Event:
        """A device of no compute capability."""
        return {**environment(self.device), "device": DEVICE, "capability": [0, 0], "arch": ARCH, "source": source_of(ROOT)}

    def lost(self) -> bool:
        """Whether the planted fault has struck."""
        return self.broken

    def begin(self, item: str) -> None:
        """Do what the planted fault does, if this is its item or a later one."""
        if self.fault is not None and item.startswith(self.fault.item):
            if self.fault.kind == "hang":
                time.sleep(10**6)
            if self.fault.kind == "crash":
                os._exit(9)
            self.broken = True
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered (planted)")

    def build(self, arch: str) -> str:
        """Nothing is compiled."""
        self.folder(arch).mkdir(exist_ok=True)
        return ""

    def use_build(self, arch: str) -> None:
        """The emulated extension, or the reference, is used."""

    def compilers(self) -> str:
        """None."""
        return "none"

    def instructions(self) -> Callable[[str], str]:
        """All are right."""
        return lambda name: ""

    def verdict(self, check: Check, dtype: torch.dtype) -> Verdict:
        """Check in the interpreter or the emulator."""
        return super().verdict(check if os.environ.get(EMULATION) else _by_the_reference(check), dtype)

    def sanitizer(self, arch: str, seconds: float) -> list[Event]:
        """Says nothing."""
        return []

    def ceilings(self) -> Event:
        """Made up."""
        return {"copy_bytes_per_s": 1000 * GIGA, "gemm_flops_per_s": 100 * TERA}

    def row(self, timing: Timing, provider: str) -> Event:
        """Made up: nothing of the sizes of a GPU is made here."""
        return self.timed(lambda: None, timing.memory)

    def timed(self, call: Call, memory: bool) -> Event:
        """Made up."""
        return {"ms_median": 1.0, "ms_p20": 0.9, "ms_p80": 1.1, "host_us": 1.0, "peak_mb": 1.0 if memory else None}

    def profiler(self, name: str, arch: str) -> list[str]:
        """A program that prints what ncu might."""
        return [sys.executable, "-c", "print('Memory Throughput  %  0 (rehearsal)')"]


def _in_one_dtype(check: Check) -> Check:
    known = check.dtypes if is_cuda(check.implementation) else [dtype for dtype in INTERPRETED if dtype in check.dtypes]
    return replace(check, dtypes=tuple(known)[:1])


def _by_the_reference(check: Check) -> Check:
    """The check with the reference in the place of CUDA kernels; as it is where it has none."""
    if not is_cuda(check.implementation):
        return check
    return replace(check, run=lambda backend, inputs: check.run("reference" if is_cuda(backend) else backend, inputs))
