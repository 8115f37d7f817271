"""What fits a multiprocessor of an A100, from what a kernel uses."""

from __future__ import annotations

WARP = 32
REGISTERS, THREADS, SHARED_BYTES, CTAS = 65536, 2048, 167936, 32
"""Of one multiprocessor; a CTA's shared memory is rounded up by 1 KiB for the system."""


def ctas_per_multiprocessor(registers: int, warps: int, shared_bytes: int) -> int:
    """Return how many CTAs an A100's multiprocessor holds at once.

    >>> ctas_per_multiprocessor(registers=255, warps=4, shared_bytes=48 * 1024)
    2
    """
    threads = warps * WARP
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    by_shared = SHARED_BYTES // (shared_bytes + 1024)
    return min(by_registers, THREADS // threads, by_shared, CTAS)
