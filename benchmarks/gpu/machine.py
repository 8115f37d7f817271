"""What is done on the GPU, each piece by a call of its own; :mod:`rehearsal` puts a CPU and stubs in its place."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from lmmblocks.spec import first_line

from . import cuda_kernels, ptx
from .case import Call, Check, Inputs, Suite, Timing
from .correctness import Verdict, verdict
from .journal import Event
from .record import environment, source_of
from .sanitize import find_tool, outcomes_as_fields, sanitize
from .steps import PROFILED
from .timing import ceilings, host_us, measured_ms, peak_bytes

ROOT = Path(__file__).parents[2]
MEGA = 1e6


class LeftOut(Exception):
    """Why a step can't be done here; nothing is wrong."""


class Gpu:
    """The CUDA device that is current, and the folder of a call."""

    toy = False

    def __init__(self, out: Path) -> None:
        self.out = out
        self._inputs: tuple[Timing | None, Inputs] = (None, {})

    @property
    def device(self) -> torch.device:
        """Of all tensors."""
        return torch.device("cuda")

    def suites(self, suites: dict[str, Suite]) -> dict[str, Suite]:
        """Return the suites as they are made here."""
        return suites

    def about(self) -> Event:
        """Return what results are about: device, architecture, versions, and a hash of the sources."""
        if not torch.cuda.is_available():
            raise LeftOut("no CUDA device here: --rehearse goes through everything without one")
        major, minor = torch.cuda.get_device_capability()
        return {**environment(self.device), "capability": [major, minor], "arch": f"{major}{minor}", "source": source_of(ROOT)}

    def begin(self, item: str) -> None:
        """Is told of every item before it is tried."""

    def lost(self) -> bool:
        """Return whether this process has lost the device: after some errors of a kernel every later call fails."""
        try:
            return torch.zeros(4, device=self.device).add_(1).sum().item() != 4.0
        except RuntimeError:
            return True

    # Builds

    def folder(self, arch: str) -> Path:
        """Return where the build for an architecture lies."""
        return self.out / f"build_sm_{arch}"

    def build(self, arch: str) -> str:
        """Compile ``lmmblocks._C`` for one architecture; return what went wrong."""
        return cuda_kernels.build(arch, self.folder(arch))

    def use_build(self, arch: str) -> None:
        """Let ``lmmblocks._C`` be the build for this architecture."""
        cuda_kernels.use(self.folder(arch))
        problem = cuda_kernels.left_out(self.device, arch)
        if problem is not None:
            raise LeftOut(problem)

    def compilers(self) -> str:
        """Return what compiled the extension in use."""
        return cuda_kernels.compilers()

    # Correctness

    def instructions(self) -> Callable[[str], str]:
        """Compile the micro tests; return ``name -> what is wrong``."""
        major, minor = torch.cuda.get_device_capability()
        with tempfile.TemporaryDirectory() as folder:
            try:
                library = ctypes.CDLL(str(ptx.compiled(f"{major}{minor}", Path(folder))))
            except (OSError, subprocess.CalledProcessError) as error:
                raise LeftOut(f"the micro tests can't be compiled: {error}") from error
        kernels, checks = ptx.Kernels(library, self.device), ptx.checks()
        return lambda name: checks[name](kernels) or ""

    def verdict(self, check: Check, dtype: torch.dtype) -> Verdict:
        """Return what one check finds in one dtype; what raises is a verdict too."""
        return verdict(check, self.device, self.toy, dtype)

    def sanitizer(self, arch: str, seconds: float) -> list[Event]:
        """Return what compute-sanitizer's tools say about each kernel."""
        tool = find_tool()
        if tool is None:
            raise LeftOut("compute-sanitizer was not found")
        return outcomes_as_fields(sanitize(tool, seconds, [str(self.folder(arch))]))

    # Times

    def ceilings(self) -> Event:
        """Return the rates of a copy and a GEMM."""
        limits = ceilings(self.device)
        return {"copy_bytes_per_s": limits.copy_bytes_per_s, "gemm_flops_per_s": limits.gemm_flops_per_s}

    def row(self, timing: Timing, provider: str) -> Event:
        """Return the times of one provider."""
        if self._inputs[0] is not timing:
            self._inputs = (None, {})
            torch.cuda.empty_cache()
            torch.manual_seed(0)
            self._inputs = (timing, timing.inputs(self.device))
        return self.timed(timing.providers[provider](self._inputs[1]), timing.memory)

    def timed(self, call: Call, memory: bool) -> Event:
        """Return the times of a call."""
        median, p20, p80 = measured_ms(call)
        peak = peak_bytes(call) / MEGA if memory else None
        return {"ms_median": median, "ms_p20": p20, "ms_p80": p80, "host_us": host_us(call, 50), "peak_mb": peak}

    def profiler(self, name: str, arch: str) -> list[str]:
        """Return the command that runs one kernel under ncu and prints what its counters say."""
        ncu = find_tool("ncu", "nsight-compute")
        if ncu is None:
            raise LeftOut("ncu was not found")
        suite, mode, shape, kernel = PROFILED[name]
        program = [sys.executable, "-m", f"{__package__}.profiled_call", suite, mode, shape, str(self.folder(arch))]
        return [ncu, "--clock-control", "none", "--set", "full", "-k", f"regex:{kernel}", "-c", "1", *program]

    def profile(self, name: str, arch: str) -> Event:
        """Write what ncu says about a kernel to a file beside the journal."""
        path = self.out / f"ncu_{name.replace(' ', '_')}.txt"
        with path.open("w") as file:
            done = subprocess.run(self.profiler(name, arch), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=dict(os.environ))
        lines = path.read_text(errors="replace").splitlines()
        failed = done.returncode != 0 or not any("Throughput" in line for line in lines)
        return {"file": path.name, "problem": f"exit code {done.returncode}: {(lines or ['no output'])[-1][:120]}" if failed else ""}


def fields_of(found: Verdict) -> Event:
    """Return what a verdict found, for the journal."""
    return {"error": found.error, "torch_error": found.torch_error, "apart": found.apart, "problem": found.problem}


def problem_of(error: BaseException) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {first_line(error)[:160]}"
