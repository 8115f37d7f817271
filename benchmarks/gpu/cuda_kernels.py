"""Whether our CUDA kernels take part in a run: they need ``lmmblocks._C``, built from ``csrc/`` where nvcc is."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import torch

import lmmblocks
from lmmblocks.ops.cuda_gate import cuda_refusal, extension_report

from .case import OURS, Suite, is_cuda

ROOT = Path(__file__).parents[2]


def build(arch: str, folder: Path) -> str:
    """Compile ``lmmblocks._C`` for one architecture (``"90"``) into a folder; return what went wrong in one line, or nothing."""
    words = [sys.executable, "setup.py", "build_ext", "--build-lib", str(folder.resolve())]
    environment = {**os.environ, "LMMBLOCKS_CUDA_ARCHS": arch, "LMMBLOCKS_REQUIRE_CUDA": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode == 0:
        return ""
    said = [line for line in done.stdout.splitlines() if "error" in line.lower()] or done.stdout.splitlines() or ["no message"]
    return f"could not build lmmblocks._C for sm_{arch}: {said[-1].strip()}"


def use(folder: Path) -> None:
    """Let ``lmmblocks._C`` be the one that was built into a folder, where it was."""
    lmmblocks.__path__.insert(0, str(folder.resolve() / "lmmblocks"))
    importlib.invalidate_caches()


def left_out(device: torch.device, arch: str = "") -> str | None:
    """Return, in one line, why the CUDA kernels can't take part, or None; ``arch`` = they must have been compiled for that one alone."""
    problem = cuda_refusal(torch.zeros(1, dtype=torch.float16, device=device))
    archs = "" if problem else extension_report()["archs"]
    if problem is None and arch and archs != f"sm_{arch};compute_{arch}":
        problem = f"lmmblocks._C is there, for {archs} and not for sm_{arch} alone"
    return None if problem is None else f"CUDA kernels left out: {problem}"


def compilers() -> str:
    """Return what compiled the extension."""
    return extension_report().get("compilers", "unknown")


def cuda_alone(suite: Suite) -> Suite:
    """Return a suite with the checks of CUDA kernels alone, and the timings that they take part in, peers included."""
    timings = [t for t in suite.timings if any(name.startswith(OURS) and is_cuda(name) for name in t.providers)]
    return Suite([c for c in suite.checks if is_cuda(c.implementation)], timings, [t for t in suite.targets if is_cuda(t.ours)])
