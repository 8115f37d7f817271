"""Times on the device, host time of a call, and the ceilings of the machine measured in the same run."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from .case import Call

QUANTILES = (0.5, 0.2, 0.8)
WARM_UP_MS, REPEAT_MS = 25, 100
GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Ceilings:
    """What the machine reaches in this run.

    Attributes:
        copy_bytes_per_s: device-to-device copy of 1 GiB, bytes read plus bytes written.
        gemm_flops_per_s: bf16 product of two random 8192 x 8192 matrices.
    """

    copy_bytes_per_s: float
    gemm_flops_per_s: float


def measured_ms(call: Call) -> tuple[float, float, float]:
    """Return median, p20 and p80 in milliseconds; the caches are cleared before every repetition."""
    from triton.testing import do_bench

    return tuple(do_bench(call, warmup=WARM_UP_MS, rep=REPEAT_MS, quantiles=list(QUANTILES)))


def host_us(call: Call, calls: int = 200) -> float:
    """Return microseconds of the host that one call takes while the device is kept waiting for nothing."""
    for _ in range(10):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    elapsed = time.perf_counter() - start
    torch.cuda.synchronize()
    return elapsed / calls * 1e6


def peak_bytes(call: Call) -> int:
    """Return the most bytes that a call allocates beyond what is there already."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def ceilings(device: torch.device) -> Ceilings:
    """Measure the copy bandwidth and the GEMM rate."""
    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    copy_ms = measured_ms(lambda: target.copy_(source))[0]
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    gemm_ms = measured_ms(lambda: a @ b)[0]
    return Ceilings(2 * source.numel() * source.element_size() / (copy_ms * 1e-3), 2 * 8192**3 / (gemm_ms * 1e-3))
