"""Compile every kernel for A100 and H100 without a GPU and hold it to its budget.

python -m benchmarks.resources                      # all families of Triton kernels: print the table, exit 1 when a budget is exceeded
python -m benchmarks.resources rms_norm splice      # some families
python -m benchmarks.resources cuda                 # the CUDA kernels of csrc/
python -m benchmarks.resources attention --write    # make exactly what this run found the budgets of these families
python -m benchmarks.resources attention --widen    # budgets become the worse of what stood there and what this run found
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

FAMILIES = tuple(sorted(path.stem for path in (Path(__file__).parent / "launches").glob("*.py")))
CUDA = "cuda"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 when a budget is exceeded, 2 when it can't run here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "families", nargs="*", metavar="FAMILY",
        help=f"Triton kernels: {', '.join(FAMILIES)}; default: all of these.\n{CUDA}, alone: the CUDA kernels",
    )  # fmt: skip
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--write", action="store_true",
        help="write to kernels/resources.json (csrc/resources.json): budgets of what was compiled become exactly what was\n"
        "found, whatever stood there; budgets of launches that are gone are removed; other families stay as they are",
    )  # fmt: skip
    change.add_argument(
        "--widen", action="store_true",
        help="the same, but a budget that is there becomes the worse of the two, figure by figure: run it with each further\n"
        "compiler version that shall pass",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.families) - {*FAMILIES, CUDA})
    if unknown:
        parser.error(f"unknown families {unknown}: choose from {', '.join((*FAMILIES, CUDA))}")
    if CUDA in options.families:
        if len(options.families) > 1:
            parser.error(f"{CUDA} goes alone: it takes another compiler and has budgets of its own")
        from .cuda import command

        return command.run(options.write, options.widen)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set, so that kernels are not compiled: unset it")
    from . import ahead_of_time

    return ahead_of_time.run(options.families or FAMILIES, options.write, options.widen)


if __name__ == "__main__":
    sys.exit(main())
