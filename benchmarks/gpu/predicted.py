"""What was predicted before anything was measured: for each timing that decides, a range of its time and of its ratio to a peer.

    python -m benchmarks.gpu.predicted H200     # the table of benchmarks/H200.md
    python -m benchmarks.gpu.predicted A100     # the table of benchmarks/A100.md

A time is bytes (or operations) over the machine's public peak, over the share of that peak which is expected. Where the shares come from is written
in benchmarks/H200.md and benchmarks/A100.md. A timing that is in the list here is timed before all others.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from .case import OURS, Timing

Range = tuple[float, float]


@dataclass(frozen=True)
class Machine:
    """Public peaks: bytes/s of memory, bf16 FLOP/s of the tensor cores."""

    bytes_per_s: float
    flops_per_s: float


MACHINES = {"A100": Machine(2.039e12, 312e12), "H200": Machine(4.8e12, 989e12)}
"""By a word of the name that the driver gives: A100-SXM4-80GB, H200-SXM."""


@dataclass(frozen=True)
class Expected:
    """What is expected of our faster kernel, or of one of them.

    Attributes:
        op, mode, shape: of the timing.
        shares: machine -> least and most share of the peak.
        peer: provider that it is compared with; empty = none.
        ratio: least and most of the peer's time over ours.
        ours: provider, by default whichever of ours is faster.
    """

    op: str
    mode: str
    shape: str
    shares: dict[str, Range]
    peer: str = ""
    ratio: Range = (0.0, 0.0)
    ours: str = OURS


def _both(a100: Range, h200: Range) -> dict[str, Range]:
    return {"A100": a100, "H200": h200}


SDPA, LIGER, VARLEN, CUDA = "SDPA flash", "Liger-Kernel", "flash varlen (torch)", f"{OURS}cuda"
TEXT, GROUPED, CLIP = "8x2048 h32 d128 causal", "16x1024 h32/8 d128 causal", "CLIP 64x577 h16 d64 full"
SPLICE, NORM, GATED = "16x2048, 576 image rows, D=4096 bf16", "32768x4096 bf16", "16384x11008 bf16"

EXPECTED = (
    Expected("attention", "fwd", TEXT, _both((0.48, 0.60), (0.27, 0.36)), SDPA, (0.92, 1.05), CUDA),
    Expected("attention", "fwd", GROUPED, _both((0.43, 0.56), (0.24, 0.33)), SDPA, (0.92, 1.05), CUDA),
    Expected("attention", "fwd", CLIP, _both((0.53, 0.64), (0.28, 0.36)), SDPA, (1.05, 1.17), CUDA),
    Expected("attention", "bwd", TEXT, _both((0.41, 0.55), (0.20, 0.30)), SDPA, (0.80, 1.00), CUDA),
    Expected("attention", "bwd", GROUPED, _both((0.36, 0.50), (0.17, 0.27)), SDPA, (0.80, 1.00), CUDA),
    Expected("attention", "bwd", "8x2048 h32 d64 causal", _both((0.34, 0.48), (0.17, 0.27)), SDPA, (0.75, 1.00), CUDA),
    Expected("splice", "fwd", SPLICE, _both((0.82, 0.88), (0.80, 0.88)), "transformers masked_scatter", (7.0, 15.0), CUDA),
    Expected("splice", "bwd", SPLICE, _both((0.74, 0.85), (0.70, 0.84)), "transformers masked_scatter", (7.0, 15.0), CUDA),
    Expected("attention_decode", "fwd", "1x32768 h32/8 d128", _both((0.65, 0.78), (0.45, 0.70)), VARLEN, (1.0, 3.0), f"{OURS}cuda_decode"),
    Expected("attention_decode", "fwd", "8x4096 h32/8 d128", _both((0.70, 0.82), (0.55, 0.75)), VARLEN, (1.0, 3.0), f"{OURS}cuda_decode"),
    Expected("rms_norm", "fwd", NORM, _both((0.75, 0.88), (0.72, 0.88)), LIGER, (1.0, 1.6)),
    Expected("rms_norm", "bwd", NORM, _both((0.68, 0.86), (0.62, 0.84)), LIGER, (1.2, 2.0)),
    Expected("swiglu", "fwd", GATED, _both((0.78, 0.88), (0.75, 0.88)), LIGER, (1.0, 1.6)),
    Expected("swiglu", "bwd", GATED, _both((0.75, 0.88), (0.72, 0.88)), LIGER, (1.0, 1.6)),
    Expected("linear_cross_entropy", "fwd+bwd", "4096 rows 15% V=128256 bf16", _both((0.45, 0.70), (0.35, 0.65)), LIGER, (1.1, 3.0)),
)


def decides(timing: Timing) -> bool:
    """Return whether something was predicted of a timing."""
    return any((each.op, each.mode, each.shape) == (timing.op, timing.mode, timing.shape) for each in EXPECTED)


def machine_of(device: str) -> str | None:
    """Return which of the machines a device is, by the name that the driver gives.

    >>> machine_of("NVIDIA A100-SXM4-80GB"), machine_of("NVIDIA H200"), machine_of("NVIDIA H100 PCIe")
    ('A100', 'H200', None)
    """
    return next((name for name in MACHINES if name in device), None)


def floor_ms(machine: str, nbytes: int, flops: int) -> float:
    """Return milliseconds that the peak of the machine allows; memory where bytes are given, else the tensor cores."""
    peaks = MACHINES[machine]
    return (nbytes / peaks.bytes_per_s if nbytes else flops / peaks.flops_per_s) * 1e3


def range_ms(expected: Expected, machine: str, nbytes: int, flops: int) -> Range:
    """Return the least and the most milliseconds."""
    least, most = expected.shares[machine]
    floor = floor_ms(machine, nbytes, flops)
    return floor / most, floor / least


def table(machine: str) -> str:
    """Return the predictions as a table in Markdown."""
    from .suites_by_name import SUITES, loaded

    timings = {(t.op, t.mode, t.shape): t for suite in loaded(SUITES).values() for t in suite.timings}
    lines = ["| timing | moves, or computes | floor | share of the peak | predicted | against | measured |", "|---|---|---|---|---|---|---|"]
    for each in EXPECTED:
        timing = timings[each.op, each.mode, each.shape]
        size = f"{timing.bytes / 1e6:.1f} MB" if timing.bytes else f"{timing.flops / 1e9:.1f} GFLOP"
        low, high = range_ms(each, machine, timing.bytes, timing.flops)
        least, most = each.shares[machine]
        against = f"{each.ratio[0]:g} to {each.ratio[1]:g} x {each.peer}" if each.peer else ""
        floor = floor_ms(machine, timing.bytes, timing.flops)
        place = f"{each.op} {each.mode}, {each.shape}"
        lines.append(f"| {place} | {size} | {floor:.4f} ms | {least:.2f} to {most:.2f} | {low:.3f} to {high:.3f} ms | {against} | not measured |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1]))
