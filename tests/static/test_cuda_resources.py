"""Every CUDA kernel compiles for A100 and H100 without a GPU and stays within its committed budget."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from benchmarks.resources.cuda.command import BUDGETS
from benchmarks.resources.cuda.kernels import Resources
from benchmarks.resources.cuda.objects import kernel_files
from benchmarks.resources.cuda.toolchain import MissingTool, toolchain

ROOT = Path(__file__).parents[2]


def test_kernels_stay_within_their_budgets():
    try:
        toolchain()
    except MissingTool as missing:
        pytest.skip(str(missing))
    done = subprocess.run([sys.executable, "-m", "benchmarks.resources", "cuda"], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


def test_every_file_of_kernels_has_budgets_for_both_gpus():
    files = {path.relative_to(ROOT / "csrc").with_suffix("").as_posix() for path in kernel_files()}
    budgeted = {tuple(key.split(" / ")[::2]) for key in BUDGETS.read()}
    assert budgeted == {(file, sm) for file in files for sm in ("sm_80", "sm_90")}


def test_exceeding_a_budget_is_an_error_that_names_the_kernel():
    budgets = BUDGETS.read()
    key = next(key for key in budgets if key.startswith("attention/forward /") and key.endswith("sm_80"))
    within = Resources(**{field.name: budgets[key][field.name] for field in fields(Resources)})
    assert list(BUDGETS.exceeded(key, budgets[key], within)) == []
    worse = replace(within, registers=within.registers + 1, spill_stores=within.spill_stores + 4, hmma=within.hmma - 1)
    found = list(BUDGETS.exceeded(key, budgets[key], worse))
    assert len(found) == 3 and all(line.startswith(key) for line in found)
    assert [line.split(": ", 1)[1].split()[0] for line in found] == ["registers", "spill_stores", "hmma"]
    assert "has no budget" in next(iter(BUDGETS.exceeded(key, None, within)))
