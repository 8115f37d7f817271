"""`pytest benchmarks` finds every timing of the suites and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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

    suites = loaded(SUITES).values()
    assert all(suite.cpu for suite in suites)
    timings = [timing for suite in suites for timing in (suite.timings if torch.cuda.is_available() else suite.cpu)]
    expected = sum(len(timing.providers) for timing in timings)
    listed = [line for line in run("--collect-only").splitlines() if line.startswith("benchmarks/")]
    assert len(listed) == expected > 80 and all("test_ops.py::test_op[" in line for line in listed)


def timed(provider, seconds, group="op 4x4 fwd"):
    found = {"op": "op", "shape": "4x4", "mode": "fwd", "provider": provider, "bytes": 8, "flops": 0, "machine": "here", "torch": "2"}
    return {"group": group, "extra_info": found, "stats": {"median": seconds, "min": seconds}}


def test_ratios_are_beside_the_fastest_peer_of_the_same_case():
    from benchmarks.plot import table

    timings = [timed("lmmblocks a", 2.0), timed("slow", 8.0), timed("fast", 1.0), timed("lmmblocks a", 4.0, "alone")]
    rows = table({"datetime": "2026-12-01T00:00:00", "benchmarks": timings})
    assert [(row["peer"], row["peer_over_own"]) for row in rows] == [("fast", "0.5"), ("fast", "0.125"), ("fast", "1"), ("", "")]


def test_plot_writes_a_table_and_a_picture(tmp_path):
    run_file = tmp_path / "run.json"
    run_file.write_text(json.dumps({"datetime": "2026-12-01T00:00:00", "benchmarks": [timed("lmmblocks a", 2.0), timed("b", 1.0)]}))
    command = [sys.executable, "-m", "benchmarks.plot", str(run_file), "--out", str(tmp_path / "ops.csv")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ops.csv").read_text().count("\n") == 3 and (tmp_path / "ops.png").read_bytes().startswith(b"\x89PNG")
