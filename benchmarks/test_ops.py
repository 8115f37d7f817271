"""Every timing of the suites, in the form of pytest-benchmark: ``pytest benchmarks --benchmark-only -k "splice and fwd"``.

The cases are those of ``python -m benchmarks.gpu`` (``benchmarks/gpu/suites``): an op at a size in a mode, by each of its implementations and of the
packages that people use instead; without a GPU the sizes are those that a suite names for a CPU, and all of them take a minute or two. Results are
grouped by case; bytes, operations, and the share of the machine's own copy or matrix product stand in ``extra_info``, so ``--benchmark-json``,
``--benchmark-compare`` and ``python -m benchmarks.plot`` serve between commits.

What the device refuses, or what isn't installed, is skipped with its reason.
What ``torch.compile`` makes is timed with ``LMMBLOCKS_BENCH_COMPILED=1``.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.case import COMPILED, Inputs, Timing
from benchmarks.gpu.suites_by_name import SUITES, loaded
from lmmblocks.spec import LmmError, first_line

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WITH_COMPILED = os.environ.get("LMMBLOCKS_BENCH_COMPILED") == "1"
COPIED_BYTES, PRODUCT = 2**28, 2048
"""Bytes of the copy, and rows of the square product, whose rates are the limits."""

CASES = [
    (timing, name)
    for suite in loaded(SUITES).values()
    for timing in (suite.timings if DEVICE.type == "cuda" else suite.cpu)
    for name in timing.providers
]


def name_of(timing: Timing, provider: str) -> str:
    """Return what ``-k`` looks in."""
    return f"{timing.op}-{timing.shape}-{timing.mode}-{provider}"


@pytest.fixture(scope="module")
def limits() -> dict[str, float]:
    """Bytes/s of a copy, its reads and writes, and FLOP/s of a bf16 product, the best of five."""
    source, square = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=DEVICE), torch.randn(PRODUCT, PRODUCT, device=DEVICE).bfloat16()
    target = torch.empty_like(source)
    return {
        "copy": 2 * COPIED_BYTES / min(seconds(lambda: target.copy_(source)) for _ in range(5)),
        "gemm": 2 * PRODUCT**3 / min(seconds(lambda: square @ square) for _ in range(5)),
    }


def seconds(call: Any) -> float:
    """Return how long a call took, the device's work included."""
    import time

    settle()
    start = time.perf_counter()
    call()
    settle()
    return time.perf_counter() - start


def machine() -> str:
    """Return what computes, as a table names it."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name(DEVICE)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def settle() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, Inputs]]:
    """The inputs of the last case, which its providers share."""
    yield {}


def refusal(timing: Timing, provider: str) -> str | None:
    """Return why a case isn't timed here, None if it is."""
    if provider.startswith(COMPILED) and not WITH_COMPILED:
        return "torch.compile takes long: LMMBLOCKS_BENCH_COMPILED=1 times it"
    return None


@pytest.mark.parametrize(("timing", "provider"), CASES, ids=[name_of(*case) for case in CASES])
def test_op(benchmark: Any, timing: Timing, provider: str, made: dict[str, Inputs], limits: dict[str, float]) -> None:
    """Time one provider of one case."""
    reason = refusal(timing, provider)
    if reason is not None:
        pytest.skip(reason)
    case = f"{timing.op} {timing.shape} {timing.mode}"
    if case not in made:
        made.clear()
        torch.manual_seed(0)
        made[case] = timing.inputs(DEVICE)
    try:
        call = timing.providers[provider](made[case])
        call()
    except (LmmError, ImportError, RuntimeError, AssertionError, NotImplementedError) as error:
        pytest.skip(f"{type(error).__name__}: {first_line(error)}")

    def whole() -> Tensor:
        result = call()
        settle()
        return result

    benchmark.group = case
    benchmark.extra_info |= {"op": timing.op, "shape": timing.shape, "mode": timing.mode, "provider": provider}
    benchmark.extra_info |= {"bytes": timing.bytes, "flops": timing.flops, "device": str(DEVICE), "machine": machine(), "torch": torch.__version__}
    benchmark.pedantic(whole, rounds=3 if DEVICE.type == "cpu" else 30, warmup_rounds=1)
    best = benchmark.stats.stats.median
    for size, limit in ((timing.bytes, "copy"), (timing.flops, "gemm")):
        if size:
            benchmark.extra_info[f"share_of_{limit}"] = round(size / best / limits[limit], 3)
