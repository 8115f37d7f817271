"""Every kernel compiles for A100 and H100 without a GPU and stays within its committed budget."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="a torch without Triton: its kernels can't be compiled")

ROOT = Path(__file__).parents[2]
FAMILIES = sorted(path.stem for path in (ROOT / "benchmarks" / "resources" / "launches").glob("*.py"))


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_stay_within_their_budgets(family):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.resources", family]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


def test_every_kernel_has_a_budget():
    kernels = {
        node.name.strip("_")
        for path in (ROOT / "kernels").glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    from benchmarks.resources.ahead_of_time import BUDGETS

    budgeted = {key.split(" / ")[2] for key in BUDGETS.read()}
    assert kernels == budgeted, {"without a budget": kernels - budgeted, "budget without a kernel": budgeted - kernels}


def test_exceeding_a_budget_is_an_error_that_names_the_kernel():
    from benchmarks.resources.ahead_of_time import BUDGETS
    from benchmarks.resources.compile import Resources

    found = Resources(40, 0, 1024, 4, 10, 4, 4, 0, 0)
    budget = BUDGETS.entry(found, "3.6.0")
    assert list(BUDGETS.exceeded("op / case", budget, found)) == []
    worse = Resources(48, 8, 1024, 4, 10, 2, 4, 0, 0)
    assert [line.split(": ")[1] for line in BUDGETS.exceeded("op / case", budget, worse)] == [
        "registers 48, budget at most 40",
        "spill_bytes 8, budget at most 0",
        "loads_128 2, budget at least 4",
    ]
    assert "has no budget" in next(iter(BUDGETS.exceeded("op / case", None, found)))


def test_random_batches_compile_nothing_after_the_first_twenty():
    """Counts of rows, tokens and images are no part of what is compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.resources.variants"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2000 batches" in done.stdout
