"""A kernel that is launched again is the one that Triton would launch, whatever has changed since."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[0, 1])
def compared(request):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.kernels.relaunched_calls", str(request.param)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_launched_again_is_what_triton_would_launch(compared):
    assert compared["differ"] == [] and compared["launches"] == 2 * compared["calls"]


def test_only_what_may_be_compiled_anew_goes_by_triton(compared):
    """24 keys, once each; always: 4 calls with a pointer off 16 bytes and 4 with a count that is negative or beyond 32 bits, 3 times each."""
    assert compared["by triton"] == 24 + 3 * (4 + 4)
