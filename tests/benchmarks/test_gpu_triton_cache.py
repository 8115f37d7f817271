"""Kernels compiled without a GPU are found by the JIT where they are carried to: the same hashes, and files where its notes say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="a torch without Triton: nothing is compiled")

import triton

from benchmarks.gpu.triton_cache import ABOUT, unpacked

ROOT = Path(__file__).parents[2]
AGAIN = """
import sys
from benchmarks.gpu.triton_cache import compile_all
assert compile_all(90, sys.argv[1:]) == []
"""


def _environment(cache):
    known = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "LMMBLOCKS_CUDA_EMULATION")}
    return {**known, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(cache)}


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "cache"
    words = [sys.executable, "-m", "benchmarks.gpu.triton_cache", str(folder), "--only", "splice_plan"]
    done = subprocess.run(words, cwd=ROOT, env=_environment(folder), capture_output=True, text=True)
    assert done.returncode == 0 and " 0 checks didn't come" in done.stdout, done.stdout + done.stderr
    return folder


def test_only_what_runs_is_carried(carried):
    kinds = {path.suffix for path in carried.rglob("*") if path.is_file()}
    assert kinds == {".json", ".cubin"} and json.loads((carried / ABOUT).read_text())["triton"] == triton.__version__


def test_it_is_found_in_another_folder_and_nothing_is_compiled_again(carried, tmp_path):
    there = tmp_path / "elsewhere"
    count, problem = unpacked(carried, there)
    assert count >= 2 and problem == ""
    carried.rename(carried.with_name("gone"))
    try:
        before = {path for path in there.rglob("*")}
        done = subprocess.run([sys.executable, "-c", AGAIN, "splice_plan"], cwd=ROOT, env=_environment(there), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {path for path in there.rglob("*")} == before
    finally:
        carried.with_name("gone").rename(carried)


def test_another_tritons_kernels_are_of_no_use_and_that_is_said(carried, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / ABOUT).write_text(json.dumps({"triton": "1.0"}))
    count, problem = unpacked(other, tmp_path / "there")
    assert count == 0 and "compiled by Triton 1.0" in problem and not (tmp_path / "there").exists()
