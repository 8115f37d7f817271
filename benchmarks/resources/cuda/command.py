"""Compile every CUDA kernel for A100 and H100 without a GPU and hold it to its budget.

python -m benchmarks.resources cuda            # print the table, exit 1 when a budget is exceeded
python -m benchmarks.resources cuda --write    # make exactly what this run found the budgets
python -m benchmarks.resources cuda --widen    # budgets become the worse of what stood there and what this run found: for one more nvcc
"""

from __future__ import annotations

import sys

from ..budgets import Budgets
from ..table import print_row, print_title
from .kernels import Figures, Resources, figures, resources
from .launches import Launch, launches
from .names import enums_of, readable
from .objects import CompileError, compiled, headers, kernel_files
from .toolchain import CSRC, MissingTool, Toolchain, toolchain

BUDGETS = Budgets(
    CSRC / "resources.json",
    at_most=(
        "registers", "spill_stores", "spill_loads", "stack", "shared_bytes", "ldsm", "local_in_loops", "int_per_hmma",
        "loop_int_per_hmma", "loop_issue_per_hmma", "loop_mufu_per_hmma", "loop_local",
    ),
    at_least=("ctas_per_sm", "hmma", "ldgsts", "loads_128", "stores_128", "loop_hmma"),
    compiler="nvcc",
    command="python -m benchmarks.resources cuda",
)  # fmt: skip
TITLES = {
    "registers": "regs", "spill_stores": "spillst", "spill_loads": "spillld", "shared_bytes": "smem B", "ctas_per_sm": "CTA/SM",
    "loads_128": "ld128", "stores_128": "st128", "local_in_loops": "lcl@all", "int_per_hmma": "int/mma", "loop_hmma": "@hmma",
    "loop_int_per_hmma": "@int/mma", "loop_issue_per_hmma": "@iss/mma", "loop_mufu_per_hmma": "@ex2/mma", "loop_local": "@local",
}  # fmt: skip
"""Columns with @ are of the hottest loop: the one with the most tensor-core instructions and no such loop inside."""


def run(write: bool, widen: bool) -> int:
    """Measure, print the table, and write or check the budgets; 1 when one is exceeded, 2 when a tool is missing."""
    try:
        tools = toolchain()
        found, unlaunched = measured(tools)
    except (MissingTool, CompileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_title(Resources, TITLES)
    for key, used in found.items():
        print_row(key, used)
    stale = BUDGETS.read().keys() - found.keys()
    if write or widen:
        BUDGETS.write(found, tools.version, stale, widen=widen)
    problems = unlaunched if write or widen else unlaunched + BUDGETS.problems(found, stale)
    outcome = "written" if write or widen else "within their budgets"
    print("\n".join(problems) or f"\n{len(found)} kernels of csrc/ {outcome} (nvcc {tools.version})", file=sys.stderr)
    return int(bool(problems))


def measured(tools: Toolchain) -> tuple[dict[str, Resources], list[str]]:
    """Return the resources of every kernel by ``"file / kernel / sm_80"``, and a complaint about each kernel that no case launches."""
    files = compiled()
    asked = launches(files, tools)
    each = {file.name: figures(file, tools) for file in files}
    names = readable((one.kernel for found in each.values() for one in found), enums_of([*headers(), *kernel_files()]))
    measured_: dict[str, Resources] = {}
    unlaunched: dict[str, None] = {}
    for file, found in each.items():
        for one in sorted(found, key=lambda figure: (names[figure.kernel], figure.arch)):
            key = f"{file} / {names[one.kernel]} / sm_{one.arch}"
            if one.kernel in asked:
                _add(measured_, key, one, asked[one.kernel])
            else:
                unlaunched[f"{file} / {names[one.kernel]}"] = None
    advice = "is compiled, but no case in benchmarks/resources/cuda/launches launches it: add one, or delete it"
    return measured_, [f"{key}: {advice}" for key in unlaunched]


def _add(found: dict[str, Resources], key: str, one: Figures, asked: list[Launch]) -> None:
    if key in found:
        raise CompileError(f"two kernels are called {key}: name them apart")
    found[key] = resources(one, asked)
