"""Triton kernels: record what launchers would launch, compile it, and hold it to ``kernels/resources.json``.

Everything is compiled for an A100. For an H100 it is compiled where its code differs in kind: it uses the tensor cores (other instructions there),
or its launcher asks an H100 for something else. The rest would be the same PTX through the same compiler a second time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .budgets import Budgets
from .table import print_row, print_title

BUDGETS = Budgets(
    Path(__file__).parents[2] / "kernels" / "resources.json",
    at_most=("registers", "spill_bytes", "shared_bytes", "fp64_ops"),
    at_least=("ctas_per_sm", "loads_128", "stores_128", "matrix_ops"),
    compiler="triton",
    command="python -m benchmarks.resources",
)
A100, H100 = (80, (8, 0), 108), (90, (9, 0), 132)
"""sm, compute capability and multiprocessors: A100-SXM4 and H100-SXM5."""
TITLES = {
    "registers": "regs", "spill_bytes": "spill B", "shared_bytes": "smem B", "ctas_per_sm": "CTA/SM", "loads_128": "ld128",
    "stores_128": "st128", "matrix_ops": "mma", "fp64_ops": "fp64",
}  # fmt: skip


def run(families: Sequence[str], write: bool, widen: bool) -> int:
    """Compile, print the table, and write or check the budgets; 1 when one is exceeded."""
    import triton

    from .compile import Resources

    found = {}
    print_title(Resources, TITLES)
    for family in families:
        for key, used in measured(family):
            found[key] = used
            print_row(key, used)
    stale = {key for key in BUDGETS.read() if key.split(" / ")[0] in families} - found.keys()
    if write or widen:
        BUDGETS.write(found, triton.__version__, stale, widen=widen)
        return 0
    problems = BUDGETS.problems(found, stale)
    print("\n".join(problems) or f"\n{len(found)} kernels within their budgets (Triton {triton.__version__})", file=sys.stderr)
    return int(bool(problems))


def measured(family: str) -> Iterator[tuple[str, Any]]:
    """Yield the key and resources of every kernel of a family; what several cases launch alike is compiled once."""
    from .compile import resources_of

    done: dict[Any, Any] = {}
    for case, call in import_module(f"{__package__}.launches.{family}").CASES.items():
        for arch, launch in _launches(call):
            identity = (launch.identity(), arch)
            on_a100 = done.get((launch.identity(), A100[0]))
            if arch == H100[0] and on_a100 is not None and not on_a100.matrix_ops:
                continue
            if identity not in done:
                done[identity] = resources_of(launch, arch)
            yield f"{family} / {case} / {launch.name.strip('_')} / sm_{arch}", done[identity]


def _launches(call: Callable[[], Any]) -> Iterator[tuple[int, Any]]:
    from lmmblocks.kernels.device import assumed

    from .capture import launches_of

    for arch, capability, multiprocessors in (A100, H100):
        with assumed(capability, multiprocessors):
            launches = launches_of(call)
        yield from ((arch, launch) for launch in launches)
