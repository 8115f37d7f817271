"""Prove and time every kernel on a GPU: correctness first, then times beside every peer that is installed.

    python -m benchmarks.gpu --quick                 # under 8 minutes
    python -m benchmarks.gpu --full --only attention # every size of some ops
    python -m benchmarks.gpu --build --sanitize      # compile our CUDA kernels here; run them under compute-sanitizer
    python -m benchmarks.gpu --toy                   # no GPU: small checks in Triton's interpreter, no times, nothing recorded

Writes ``benchmarks/data/gpu_<device>.csv``, and ``kernels/verified.json`` for every kernel all of whose checks passed; the sanitizer's
outcomes go to ``benchmarks/data/gpu_<device>_sanitizer.csv``. CUDA kernels that can't run here are left out, with the reason in one line.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib import import_module
from pathlib import Path

FIRST = ("splice", "attention", "attention_decode", "paged_attention")
"""What matters most, should the time run out."""

SUITES = (*FIRST, *sorted(path.stem for path in (Path(__file__).parent / "suites").glob("*.py") if path.stem not in FIRST))
QUICK_MINUTES = 7.5
CHECKS_SHARE = 0.55
"""Of the time of ``--quick``: what the checks may take, so that something is left for times."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 when a kernel is wrong, 2 when it can't run here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="the sizes of the targets (default)")
    size.add_argument("--full", action="store_true", help="every size")
    size.add_argument("--toy", action="store_true", help="small checks on the CPU in Triton's interpreter, no times")
    parser.add_argument("--only", nargs="+", metavar="SUITE", default=list(SUITES), help=f"of {', '.join(SUITES)}")
    parser.add_argument("--build", action="store_true", help="compile lmmblocks._C into this checkout first, for this GPU")
    parser.add_argument("--sanitize", action="store_true", help="run our CUDA kernels under compute-sanitizer; without a size, only that")
    parser.add_argument("--cuda-only", action="store_true", help="checks and targets of our CUDA kernels alone, beside their peers")
    parser.add_argument("--skip-checks", action="store_true", help="times only: nothing is recorded as verified")
    parser.add_argument("--minutes", type=float, default=None, help=f"stop after this long (default: {QUICK_MINUTES} with --quick)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the CSV files (default: benchmarks/data)")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.only) - set(SUITES))
    if unknown:
        parser.error(f"unknown suites {unknown}: choose from {', '.join(SUITES)}")
    if options.toy and (options.build or options.sanitize):
        parser.error("--build and --sanitize need a GPU: leave --toy out")
    if options.toy:
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported
    import torch

    if not options.toy and not torch.cuda.is_available():
        parser.error("no CUDA device here: use --toy for small checks in Triton's interpreter, or run on a machine with a GPU")
    from .cuda_kernels import build
    from .run import run

    if options.build:
        print(build(), flush=True)
    if options.full or options.toy:
        minutes = options.minutes or float("inf")
    else:
        minutes = options.minutes or QUICK_MINUTES
    start = time.monotonic()  # a build takes as long as it takes
    checks_share = CHECKS_SHARE if minutes < float("inf") else 1.0
    return run(
        [import_module(f"{__package__}.suites.{name}").SUITE for name in options.only],
        torch.device("cpu" if options.toy else "cuda"),
        options,
        start,
        start + 60 * minutes * checks_share,
        start + 60 * minutes,
    )


if __name__ == "__main__":
    sys.exit(main())
