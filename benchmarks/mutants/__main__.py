"""The mutation score of the tests: faults are planted one at a time, and the tests have to notice.

``python -m benchmarks.mutants [--suite cuda triton python] [--only NAME ...] [--jobs 2] [--list] [--out benchmarks/data/mutants.jsonl]``

A fault is a replacement in one source file (``cuda.py``, ``triton.py``, ``python.py``). Its tests run in a copy of the checkout; the first that fails
has caught it, if it passes without the fault. Faults of the CUDA kernels are run in the emulator, those in the text of PTX through nvcc.

Verdicts are lines of the file ``--out``, written as they are found: a run that was ended goes on where it stopped, and a fault is run again only when
its source, its tests or itself have changed (not for a file that its source includes: ``--again`` runs all).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from . import cuda, python, triton
from .fault import Fault
from .judge import judge_all
from .verdicts import Verdict, append, read, table, write

ROOT = Path(__file__).parents[2]
SUITES: dict[str, list[Fault]] = {"cuda": cuda.FAULTS, "triton": triton.FAULTS, "python": python.FAULTS}


def main() -> None:
    """Judge what has changed, print the scores, keep the verdicts."""
    options = _options()
    wanted = [(suite, fault) for suite in options.suite for fault in SUITES[suite] if not options.only or fault.name in options.only]
    unknown = set(options.only) - {fault.name for _, fault in wanted}
    if unknown:
        sys.exit(f"error: no such faults: {', '.join(sorted(unknown))}: --list names them")
    if options.list:
        print("\n".join(f"{suite:<7} {fault.kind:<20} {fault.name} ({fault.source})" for suite, fault in wanted))
        return
    begin = time.monotonic()
    known = read(options.out)
    fresh = [(suite, fault) for suite, fault in wanted if options.again or not _is_known(fault, known)]
    with tempfile.TemporaryDirectory(prefix="lmmblocks-mutants-") as temporary:
        judge_all(
            fresh, ROOT, options.folder or Path(temporary), jobs=options.jobs, limit_s=options.limit, told=lambda verdict: _tell(verdict, options.out)
        )
    latest = read(options.out)
    verdicts = [latest[fault.name] for suite in SUITES for fault in SUITES[suite] if fault.name in latest]
    write(options.out, verdicts)
    names = {fault.name for _, fault in wanted}
    print(table(verdict for verdict in verdicts if verdict.name in names))
    waiting = [fault.name for _, fault in wanted if fault.name not in latest]
    print(f"not run yet: {len(waiting)}" + (f", such as {waiting[0]!r}" if waiting else ""))
    print(f"{len(fresh)} of {len(wanted)} faults run in {time.monotonic() - begin:.0f} s; verdicts in {options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__.split("\n")[0])
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=list(SUITES), help="default: all")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="these faults")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time (default %(default)s)")
    parser.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="a run of tests that takes longer hangs (default %(default)s)")
    parser.add_argument("--list", action="store_true", help="name the faults and run none")
    parser.add_argument("--again", action="store_true", help="run also what hasn't changed")
    parser.add_argument("--folder", type=Path, help="keep the copies here, and what the emulator compiled; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "data" / "mutants.jsonl", help="the verdicts (default %(default)s)")
    return parser.parse_args()


def _is_known(fault: Fault, known: dict[str, Verdict]) -> bool:
    return fault.name in known and known[fault.name].key == fault.key(ROOT, known[fault.name].by)


def _tell(verdict: Verdict, out: Path) -> None:
    append(out, verdict)
    print(f"{verdict.verdict:<10} {verdict.seconds:>6.1f} s  {verdict.name}: {verdict.by or verdict.reason}", flush=True)


if __name__ == "__main__":
    main()
