"""The calls that ``host_cpu`` times, and how: in many short rounds, each call after the other."""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

import lmmblocks as lb
from lmmblocks import ops
from lmmblocks.ops import triton_gate
from lmmblocks.spec import Segments

PEER = "F.scaled_dot_product_attention"
TARGETS = {"attention": 3.0, "rms_norm": 2.0, "add_rms_norm": 2.0, "rope": 2.0}
"""Most times the peer's call."""


class NoDriver(DriverBase):
    """A driver of an A100 that loads and starts nothing."""

    class utils:
        """What a compiled kernel asks of its driver."""

        @staticmethod
        def load_binary(*_: Any) -> tuple[object, int, int, int, int]:
            """Return a module and a function that nobody calls, no registers, no spills and a large enough CTA."""
            return object(), 0, 0, 0, 1024

        @staticmethod
        def get_device_properties(_: int) -> dict[str, int]:
            """Return an A100's shared memory."""
            return {"max_shared_mem": 166912, "multiprocessor_count": 108}

    @classmethod
    def is_active(cls) -> bool:
        """Return whether it may be chosen: only by hand."""
        return False

    def launcher_cls(self, *_: Any) -> Callable[..., None]:
        """Return a launch that does nothing."""
        return lambda *_args: None

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, _: int) -> int:
        """Return the default stream."""
        return 0

    def set_current_device(self, _: int) -> None:
        """Do nothing."""

    def get_current_target(self) -> GPUTarget:
        """Return an A100."""
        return GPUTarget("cuda", 80, 32)

    def get_active_torch_device(self) -> torch.device:
        """Return where the tensors lie."""
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Return any type: no launcher is compiled."""
        return ty

    def get_benchmarker(self) -> Any:
        """Raise: nothing is autotuned."""
        raise NotImplementedError


def calls() -> dict[tuple[str, str], Callable[[], Any]]:
    """Return what is timed, by op and implementation; the peer first."""
    bf16 = torch.bfloat16
    q, k = torch.randn(16, 4, 64, dtype=bf16), torch.randn(16, 2, 64, dtype=bf16)
    one, cache = torch.randn(1, 4, 64, dtype=bf16), torch.randn(1024, 2, 64, dtype=bf16)
    learned = q.clone().requires_grad_()
    packed, decoding = Segments.of([10, 6]), Segments.of([1], [1024])
    x, weight = torch.randn(16, 256, dtype=bf16), torch.ones(256, dtype=bf16)
    cos, sin = ops.rope_table(torch.arange(16), 64)
    row = torch.randn(1, 4, 1, 64, dtype=bf16)
    gate = torch.randn(16, 512, dtype=bf16)
    return {
        (PEER, "torch"): lambda: F.scaled_dot_product_attention(row, row, row, is_causal=True),
        ("attention", "cuda"): lambda: ops.attention(q, k, k, packed, backend="cuda"),
        ("attention", "cuda, gradient wanted"): lambda: ops.attention(learned, k, k, packed, backend="cuda"),
        ("attention", "cuda_decode"): lambda: ops.attention(one, cache, cache, decoding, backend="cuda_decode"),
        ("attention", "triton"): lambda: ops.attention(q, k, k, packed, backend="triton"),
        ("attention", "triton_decode"): lambda: ops.attention(one, cache, cache, decoding, backend="triton_decode"),
        ("rms_norm", "triton"): lambda: ops.rms_norm(x, weight, backend="triton"),
        ("add_rms_norm", "triton"): lambda: ops.add_rms_norm(x, x, weight, backend="triton"),
        ("rope", "triton"): lambda: ops.rope(q, k, cos, sin, backend="triton"),
        ("swiglu", "triton"): lambda: ops.swiglu(gate, gate, backend="triton"),
    }


def measure(arguments: list[str], description: str) -> None:
    """Time all calls in rounds, print a table, write the CSV."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_cpu", description=description)
    parser.add_argument("--repeats", type=int, default=200, help="rounds (default %(default)s)")
    parser.add_argument("--calls", type=int, default=30, help="calls of each in a round (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "host_cpu.csv")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    triton.runtime.driver.set_active(NoDriver())
    # Triton's gate asks where tensors lie: here the CPU stands for the device.
    triton_gate._device_refusal = lambda device: None  # type: ignore[assignment]
    timed = calls()
    for call in timed.values():
        call()
    rounds = [{name: _microseconds(call, options.calls) for name, call in timed.items()} for _ in range(options.repeats)]
    _report(rounds, options)


def _microseconds(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count * 1e6


def _undisturbed(rounds: list[dict[tuple[str, str], float]], name: tuple[str, str]) -> float:
    """The 10th percentile: rounds are so short that most of them run through without another process, and none is below the true time."""
    return sorted(each[name] for each in rounds)[len(rounds) // 10]


def _report(rounds: list[dict[tuple[str, str], float]], options: argparse.Namespace) -> None:
    rows = []
    for name in rounds[0]:
        microseconds, target = _undisturbed(rounds, name), TARGETS.get(name[0])
        times_peer = microseconds / _undisturbed(rounds, (PEER, "torch"))
        rows.append([*name, f"{microseconds:.1f}", f"{times_peer:.2f}", "" if target is None else f"{target:g}"])
    header = ["op", "implementation", "us", "times the peer's call", "target"]
    for row in [header, *rows]:
        print(f"{row[0]:32}{row[1]:24}{row[2]:>8}{row[3]:>24}{row[4]:>8}")
    facts = [datetime.date.today().isoformat(), platform.processor() or platform.machine(), torch.__version__, triton.__version__, lb.__version__]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*header, "date", "processor", "torch", "triton", "lmmblocks"])
        writer.writerows([*row, *facts] for row in rows)
    print(f"wrote {options.out}")
