"""One timing of a CUDA kernel, called a few times, to be run under ncu.

python -m benchmarks.gpu.profiled_call SUITE MODE SHAPE [folder of a build]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from .case import OURS
from .cuda_kernels import use
from .suites_by_name import loaded

CALLS = 3


def main(suite: str, mode: str, shape: str, *built: str) -> None:
    """Make the inputs of the timing and call our CUDA kernel."""
    for folder in built:
        use(Path(folder))
    timings = loaded([suite])[suite].timings
    timing = next(each for each in timings if (each.mode, each.shape) == (mode, shape))
    call = timing.providers[f"{OURS}cuda"](timing.inputs(torch.device("cuda")))
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
