"""One run of the command: check, sanitize, record, time, report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from . import cuda_kernels
from .case import ALL, Suite, is_cuda
from .correctness import Verdict, verdicts
from .measure import rows_of
from .record import (
    COMPILERS,
    DATA,
    Row,
    environment,
    read_outcomes,
    write_csv,
    write_outcomes,
    write_verified,
)
from .report import print_outcomes, print_row, print_targets, print_verdict
from .sanitize import Outcome, find_tool, sanitize
from .timing import GIGA, TERA, ceilings
from .warm_up import warm_up

INTERPRETED = (torch.float32, torch.float16)
"""What Triton's interpreter computes right."""


def run(
    suites: list[Suite], device: torch.device, options: argparse.Namespace, start: float, checks_end: float, end: float
) -> int:
    """Do what the options say; 1 when a kernel is wrong. The last three are moments of the monotonic clock."""
    about = environment(device)
    problem = cuda_kernels.left_out(device)
    if problem is None:
        about[COMPILERS] = cuda_kernels.compilers()
    print("  ".join(f"{name} {value}" for name, value in about.items()))
    if problem is not None:
        print(problem, flush=True)
        suites = [cuda_kernels.without_cuda(suite) for suite in suites]
    if options.cuda_only:
        suites = [cuda_kernels.cuda_alone(suite) for suite in suites]
    csv = (options.out or DATA) / f"gpu_{about['device'].lower().replace(' ', '_')}.csv"
    said = csv.with_name(f"{csv.stem}_sanitizer.csv")
    outcomes = _sanitized(said, about, problem) if options.sanitize else []
    wrong = any(outcome.problem for outcome in outcomes)
    if options.sanitize and not (options.quick or options.full):
        print_outcomes(read_outcomes(said) if outcomes else [])
        return int(wrong)
    if not options.skip_checks:
        if device.type == "cuda":
            if not options.cuda_only:
                warm_up(options.only)
            print(f"kernels compiled after {time.monotonic() - start:.0f} s", flush=True)
        wrong |= _prove(suites, device, options.toy, about, outcomes, start, checks_end)
    if not options.toy:
        _measure(suites, device, options.full, about, csv, start, end)
        print_outcomes(read_outcomes(said))
    return int(wrong)


def _sanitized(path: Path, about: dict[str, str], problem: str | None) -> list[Outcome]:
    """Run the sanitizer and write what it says; nothing, and a line that says why, where it can't run."""
    tool = find_tool()
    if problem is not None or tool is None:
        print("sanitizer: not run, " + ("as there are no CUDA kernels" if problem else "compute-sanitizer was not found"), flush=True)
        return []
    outcomes = sanitize(tool)
    write_outcomes(path, outcomes, about)
    return outcomes


def _prove(
    suites: list[Suite], device: torch.device, toy: bool, about: dict[str, str], outcomes: list[Outcome], start: float, end: float
) -> bool:
    """Make all checks that there is time for and record what passed; return whether any failed."""
    found, unchecked = [], set()
    for verdict in _checked(suites, device, toy, end, unchecked):
        print_verdict(verdict)
        found.append(verdict)
    print(f"{sum(not v.problem for v in found)} of {len(found)} checks passed after {time.monotonic() - start:.0f} s")
    if unchecked:
        print(f"out of time before all checks of: {', '.join(sorted(unchecked))}; --only or --minutes gives them more")
    if not toy:
        accused = {outcome.kernel for outcome in outcomes if outcome.problem}
        passed = write_verified(found, about, torch.cuda.get_device_capability(), accused=accused, unfinished=unchecked)
        print(f"verified: {', '.join(passed) or 'nothing'}")
    return any(verdict.problem for verdict in found)


def _checked(suites: list[Suite], device: torch.device, toy: bool, end: float, unchecked: set[str]) -> Iterator[Verdict]:
    """Yield the verdicts; kernels whose checks were not all made before the end are added to ``unchecked``."""
    for suite in suites:
        for check in suite.checks:
            if time.monotonic() > end:
                unchecked.add(check.kernel)
                continue
            yield from verdicts(check, device, toy, INTERPRETED if toy and not is_cuda(check.implementation) else ALL)


def _measure(
    suites: list[Suite], device: torch.device, full: bool, about: dict[str, str], path: Path, start: float, end: float
) -> None:
    """Time everything, write the table and print what was reached."""
    limits = ceilings(device)
    print(f"\nceilings of this run: copy {limits.copy_bytes_per_s / GIGA:.0f} GB/s, bf16 GEMM {limits.gemm_flops_per_s / TERA:.0f} TFLOP/s")
    rows: list[Row] = []
    for suite in suites:
        for timing in suite.timings:
            for row in rows_of(timing, device, limits, end, full) if full or timing.quick else ():
                print_row(row)
                rows.append(row)
    write_csv(path, rows, about)
    print_targets([target for suite in suites for target in suite.targets], rows)
    print(f"\n{len(rows)} rows in {path} after {time.monotonic() - start:.0f} s")
