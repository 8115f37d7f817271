"""The benchmark of host time runs: its stubs have the signatures of the launchers, its driver what Triton asks for."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("g++") is None, reason="the stubs are compiled with g++")
def test_every_call_is_timed_beside_the_peer(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "LMMBLOCKS_CUDA_EMULATION")}
    command = [sys.executable, "-m", "benchmarks.host_cpu", "--repeats", "2", "--calls", "2", "--out", str(tmp_path / "host.csv")]
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "host.csv").open()))
    assert rows[0]["times the peer's call"] == "1.00" and len(rows) == 10
    assert all(float(row["us"]) > 0 for row in rows) and {"attention", "rms_norm", "rope"} <= {row["op"] for row in rows}
