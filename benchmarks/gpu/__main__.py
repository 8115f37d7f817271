"""Prove and time every kernel on a GPU: correctness first, then times beside every peer that is installed.

    python -m benchmarks.gpu --quick                 # under 8 minutes
    python -m benchmarks.gpu --full --only attention # every size of some ops
    python -m benchmarks.gpu --toy                   # no GPU: small checks in Triton's interpreter, no times, nothing recorded

Writes ``benchmarks/data/gpu_<device>.csv``, and ``kernels/verified.json`` for every kernel all of whose checks passed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

SUITES = tuple(sorted(path.stem for path in (Path(__file__).parent / "suites").glob("*.py")))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 when a kernel is wrong, 2 when it can't run here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="the sizes of the targets (default)")
    size.add_argument("--full", action="store_true", help="every size")
    size.add_argument("--toy", action="store_true", help="small checks on the CPU in Triton's interpreter, no times")
    parser.add_argument("--only", nargs="+", metavar="SUITE", default=list(SUITES), help=f"of {', '.join(SUITES)}")
    parser.add_argument("--skip-checks", action="store_true", help="times only: nothing is recorded as verified")
    parser.add_argument("--minutes", type=float, default=None, help="stop timing after this long (default: 7.5 with --quick)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the CSV (default: benchmarks/data)")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.only) - set(SUITES))
    if unknown:
        parser.error(f"unknown suites {unknown}: choose from {', '.join(SUITES)}")
    if options.toy:
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported
    import torch

    if not options.toy and not torch.cuda.is_available():
        parser.error("no CUDA device here: use --toy for small checks in Triton's interpreter, or run on a machine with a GPU")
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    import torch

    from .case import Suite
    from .record import DATA, environment, write_csv, write_verified
    from .report import print_targets, print_verdict

    start = time.monotonic()
    deadline = start + 60 * (options.minutes if options.minutes is not None else 1e9 if options.full else 7.5)
    device = torch.device("cpu" if options.toy else "cuda")
    suites: list[Suite] = [import_module(f"{__package__}.suites.{name}").SUITE for name in options.only]
    about = environment(device)
    print("  ".join(f"{name} {value}" for name, value in about.items()))
    found = []
    if not options.skip_checks:
        for verdict in _checked(suites, device, options.toy):
            print_verdict(verdict)
            found.append(verdict)
        print(f"{sum(not v.problem for v in found)} of {len(found)} checks passed after {time.monotonic() - start:.0f} s")
    if options.toy:
        return int(any(verdict.problem for verdict in found))
    if found:
        passed = write_verified(found, about, torch.cuda.get_device_capability())
        print(f"verified: {', '.join(passed) or 'nothing'}")
    rows = list(_timed(suites, device, options.full, deadline))
    name = about["device"].lower().replace(" ", "_")
    path = (options.out or DATA) / f"gpu_{name}.csv"
    write_csv(path, rows, about)
    print_targets([target for suite in suites for target in suite.targets], rows)
    print(f"\n{len(rows)} rows in {path} after {time.monotonic() - start:.0f} s")
    return int(any(verdict.problem for verdict in found))


def _checked(suites: list, device: object, toy: bool) -> Iterator:
    import torch

    from .case import ALL
    from .correctness import verdicts

    dtypes = (torch.float32, torch.float16) if toy else ALL
    for suite in suites:
        for check in suite.checks:
            yield from verdicts(check, device, toy, dtypes)


def _timed(suites: list, device: object, full: bool, deadline: float) -> Iterator:
    from .measure import rows_of
    from .report import print_row
    from .timing import GIGA, TERA, ceilings

    limits = ceilings(device)
    print(f"\nceilings of this run: copy {limits.copy_bytes_per_s / GIGA:.0f} GB/s, bf16 GEMM {limits.gemm_flops_per_s / TERA:.0f} TFLOP/s")
    for suite in suites:
        for timing in suite.timings:
            if full or timing.quick:
                for row in rows_of(timing, device, limits, deadline):
                    print_row(row)
                    yield row


if __name__ == "__main__":
    sys.exit(main())
