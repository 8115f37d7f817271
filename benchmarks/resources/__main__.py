"""Compile every kernel for A100 and H100 without a GPU and hold it to its budget.

    python -m benchmarks.resources                      # all families, print the table, exit 1 when a budget is exceeded
    python -m benchmarks.resources rms_norm splice      # some families
    python -m benchmarks.resources attention --write    # write what was found as the budgets of these families
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

FAMILIES = tuple(sorted(path.stem for path in (Path(__file__).parent / "launches").glob("*.py")))
ARCHITECTURES = {80: ((8, 0), 108), 90: ((9, 0), 132)}
"""sm -> compute capability and multiprocessors: A100-SXM4 and H100-SXM5."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 when a budget is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description=__doc__.split("\n", 1)[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; default: all")
    parser.add_argument("--write", action="store_true", help="write what was found to kernels/resources.json")
    parser.add_argument("--fresh", action="store_true", help="with --write: forget what other Triton versions gave")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.families) - set(FAMILIES))
    if unknown:
        parser.error(f"unknown families {unknown}: choose from {', '.join(FAMILIES)}")
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set, so that kernels are not compiled: unset it")
    return run(options.families or FAMILIES, options.write, options.fresh)


def run(families: tuple[str, ...] | list[str], write: bool, fresh: bool) -> int:
    """Compile, print the table, and write or check the budgets."""
    import triton

    from . import budgets as kept
    from .table import print_row, print_title

    found = {}
    print_title()
    for family in families:
        for key, resources in measured(family):
            found[key] = resources
            print_row(key, resources)
    budgets = kept.read()
    stale = {key for key in budgets if key.split(" / ")[0] in families} - found.keys()
    if write:
        new = {key: kept.widened(None if fresh else budgets.get(key), used, triton.__version__) for key, used in found.items()}
        kept.write({key: budget for key, budget in {**budgets, **new}.items() if key not in stale})
        return 0
    problems = [line for key, used in found.items() for line in kept.exceeded(key, budgets.get(key), used)]
    problems += [f"{key}: has a budget but is not launched any more: `--write` removes it" for key in sorted(stale)]
    print("\n".join(problems) or f"\n{len(found)} kernels within their budgets (Triton {triton.__version__})", file=sys.stderr)
    return int(bool(problems))


def measured(family: str) -> Iterator[tuple[str, object]]:
    """Yield the key and resources of every kernel of a family, each kernel of a case once per architecture."""
    from lmmblocks.kernels.device import assumed

    from .capture import launches_of
    from .compile import resources_of

    cases = import_module(f"{__package__}.launches.{family}").CASES
    for arch, (capability, multiprocessors) in ARCHITECTURES.items():
        for case, call in cases.items():
            with assumed(capability, multiprocessors):
                launches = launches_of(call)
            for launch in launches:
                yield f"{family} / {case} / {launch.name.strip('_')} / sm_{arch}", resources_of(launch, arch)


if __name__ == "__main__":
    sys.exit(main())
