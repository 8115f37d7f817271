"""Whether our CUDA kernels take part in a run: they need ``lmmblocks._C``, built from ``csrc/`` where nvcc is."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from lmmblocks.ops.cuda_gate import EMULATION, cuda_refusal, extension_report

from .case import OURS, Suite, is_cuda

ROOT = Path(__file__).parents[2]


def build() -> str:
    """Compile ``lmmblocks._C`` into the checkout, for the GPU of this machine alone; return what came of it, in one line."""
    words = [sys.executable, "setup.py", "build_ext", "--inplace"]
    major, minor = torch.cuda.get_device_capability()
    environment = {**os.environ, "LMMBLOCKS_CUDA_ARCHS": f"{major}{minor}", "LMMBLOCKS_REQUIRE_CUDA": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    importlib.invalidate_caches()
    if done.returncode == 0:
        return f"built lmmblocks._C for sm_{major}{minor}"
    said = [line for line in done.stdout.splitlines() if "error" in line.lower()] or done.stdout.splitlines() or ["no message"]
    return f"could not build lmmblocks._C: {said[-1].strip()}"


def left_out(device: torch.device) -> str | None:
    """Return, in one line, why the CUDA kernels can't take part, or None."""
    problem = cuda_refusal(torch.zeros(1, dtype=torch.float16, device=device))
    if problem is None:
        return None
    hint = f"; {EMULATION} names an extension for the CPU" if device.type == "cpu" else "; --build compiles them here, where nvcc is found"
    return f"CUDA kernels left out: {problem}{hint}"


def compilers() -> str:
    """Return what compiled the extension."""
    return extension_report().get("compilers", "unknown")


def without_cuda(suite: Suite) -> Suite:
    """Return a suite without the checks, timings and targets of CUDA kernels."""
    timings = [replace(t, providers={name: way for name, way in t.providers.items() if not is_cuda(name)}) for t in suite.timings]
    return Suite([c for c in suite.checks if not is_cuda(c.implementation)], timings, [t for t in suite.targets if not is_cuda(t.ours)])


def cuda_alone(suite: Suite) -> Suite:
    """Return a suite with the checks of CUDA kernels alone, and the timings that they take part in, peers included."""
    timings = [t for t in suite.timings if any(name.startswith(OURS) and is_cuda(name) for name in t.providers)]
    return Suite([c for c in suite.checks if is_cuda(c.implementation)], timings, [t for t in suite.targets if is_cuda(t.ours)])
