"""Compile the Triton kernels of all checks beforehand, by several processes at once: ``python -m benchmarks.gpu.warm_up 2/8 attention splice``.

Triton compiles on one core, and keeps what it compiled on disk: checks that follow find it there. Nothing depends on it but time, so whatever fails
here is left to the check to tell.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

MOST = 8
"""Processes: each takes a context of its own on the GPU."""

SECONDS = 150
ROOT = Path(__file__).parents[2]


def warm_up(suites: list[str]) -> None:
    """Run every check of these suites once, spread over processes, and wait for them."""
    count = min(MOST, max(1, (os.cpu_count() or 2) // 2))
    if count == 1:
        return  # it would take as long as the checks themselves
    deadline, quiet = time.monotonic() + SECONDS, {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [
        subprocess.Popen([sys.executable, "-m", f"{__package__}.warm_up", f"{index}/{count}", *suites], cwd=ROOT, **quiet)
        for index in range(count)
    ]
    for process in started:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(share: str, *suites: str) -> None:
    """Run one share of the checks."""
    import torch

    from .case import is_cuda
    from .correctness import cast

    index, count = (int(word) for word in share.split("/"))
    checks = [check for name in suites for check in import_module(f"{__package__}.suites.{name}").SUITE.checks]
    pairs = [(check, dtype) for check in checks if not is_cuda(check.implementation) for dtype in check.dtypes]
    for check, dtype in pairs[index::count]:
        with contextlib.suppress(Exception):
            check.run(check.implementation, cast(check.inputs(torch.device("cuda"), False), dtype))


if __name__ == "__main__":
    main(*sys.argv[1:])
