"""`pytest benchmarks` finds every timing of the suites and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_timing_of_the_suites_is_a_case():
    pytest.importorskip("pytest_benchmark", reason="the cases are run by pytest-benchmark")
    from benchmarks.gpu.suites_by_name import SUITES, loaded

    expected = sum(len(timing.providers) for suite in loaded(SUITES).values() for timing in suite.timings)
    listed = [line for line in run("--collect-only").splitlines() if line.startswith("benchmarks/")]
    assert len(listed) == expected > 100 and all("test_ops.py::test_op[" in line for line in listed)
