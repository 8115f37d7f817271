"""Prove and time every kernel on a GPU, in calls of a few minutes each: a call goes on where the last one stopped.

    python -m benchmarks.gpu --out FOLDER                     # as much as 300 s allow; typed again, the rest
    python -m benchmarks.gpu --out FOLDER --record            # what the folder holds goes to kernels/verified.json and benchmarks/data
    python -m benchmarks.gpu --rehearse --out FOLDER          # no GPU: the same sequence on the CPU, with stubs for what only a GPU does

Order: the micro tests of csrc/common/ptx.cuh; CUDA kernels, also in a build for sm_80 alone; Triton kernels; the times that decide, beside their
peers; ncu on four kernels; other times. A process of its own does each step; results are in FOLDER at once: journal.jsonl, verified.json, log.txt.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .suites_by_name import SUITES

BUDGET_S = 300.0


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options, or end with what is wrong with them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where results go, and are looked for")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the results of another folder, which are copied to --out first")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help=f"seconds that the call may take, report included (default {BUDGET_S:.0f})")
    parser.add_argument("--only", nargs="+", metavar="SUITE", default=list(SUITES), help=f"of {', '.join(SUITES)}")
    parser.add_argument("--cuda-only", action="store_true", help="our CUDA kernels alone, beside their peers")
    parser.add_argument("--full", action="store_true", help="every size, and the peers that torch.compile makes")
    parser.add_argument("--sanitize", action="store_true", help="our CUDA kernels under compute-sanitizer too")
    parser.add_argument("--triton-cache", type=Path, metavar="FOLDER", help="of benchmarks.gpu.triton_cache, made on a machine without a GPU")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels of peers, pure Python: they are unpacked, not installed")
    parser.add_argument("--silence-s", type=float, help="seconds without a word after which a process counts as hung (default: by what it does)")
    parser.add_argument("--plan", action="store_true", help="print what the call would do, and do nothing")
    parser.add_argument("--record", action="store_true", help="print the report of --out and record what it holds; needs no GPU")
    parser.add_argument("--rehearse", action="store_true", help="go through everything on the CPU")
    parser.add_argument("--plant", nargs=2, metavar=("FAULT", "ITEM"), help="in a rehearsal: sticky, hang or crash at the item that begins so")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.only) - set(SUITES))
    if unknown:
        parser.error(f"unknown suites {unknown}: choose from {', '.join(SUITES)}")
    if options.plant and (not options.rehearse or options.plant[0] not in ("sticky", "hang", "crash")):
        parser.error("--plant takes sticky, hang or crash, and --rehearse beside it")
    for name in ("resume", "triton_cache", "wheels"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name.replace('_', '-')} {folder}: there is no such folder")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 when a kernel is wrong, 2 when it can't run here."""
    began = time.monotonic()
    options = parsed(arguments)
    from . import session

    return session.recorded(options) if options.record else session.run(options, began)


if __name__ == "__main__":
    sys.exit(main())
