"""What a call of the command does, in which order, and how long each step should take: stages of steps, each step a process of its own.

The figures are estimates, made without a GPU: from the seconds that compilers take on a CPU, and from counts of checks and timings.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from . import ptx
from .case import COMPILED, Suite, Timing, is_cuda
from .journal import Event, results
from .predicted import decides
from .sanitize import SECONDS as SANITIZER_S

A100 = "80"
LANES = 4
"""Processes that check side by side: they wait for the host more than for the GPU. Times are taken alone."""

START_S = 4.0
"""Of a process: its context on the GPU, the first call of a library."""

CHECK_S, ROW_S, PEER_COMPILE_S = 0.45, 0.6, 12.0
BUILD_S, PTX_S, CEILINGS_S, PROFILE_S = 30.0, 8.0, 4.0, 12.0
FROM_PTX_S = 20.0
"""The driver compiles a build for another GPU than this one when it is first loaded."""

TRITON_COMPILE_S = 2.5
"""Of a check whose kernels are in no carried cache."""

SILENCE_S = 25.0
"""What may pass without a word before an item counts as hung."""

COMPILING_S, BUILD_SILENCE_S = 75.0, 150.0
"""The same where a compiler takes part: Triton, the driver, torch; nvcc."""


@dataclass(frozen=True)
class Step:
    """What one process does.

    Attributes:
        name: unlike any other's.
        kind: what is done with its items; a name of :data:`~benchmarks.gpu.child.WORK`.
        items: name of each -> what its result says beside what was found.
        seconds: that it should take.
        silence_s: that may pass between two lines of the journal before it is ended.
        whole: whether half of it is worth nothing: it isn't begun when there is less time left than it should take.
        suite: whose checks or timings it makes.
        arch: of the build that it uses, or makes; empty = of no build.
    """

    name: str
    kind: str
    items: dict[str, Event]
    seconds: float
    silence_s: float = COMPILING_S
    whole: bool = False
    suite: str = ""
    arch: str = ""


@dataclass(frozen=True)
class Stage:
    """Steps that may run side by side, so many at a time."""

    title: str
    steps: list[Step] = field(default_factory=list)
    lanes: int = 1

    @property
    def seconds(self) -> float:
        """That it should take."""
        spent = [step.seconds for step in self.steps]
        return max(sum(spent) / self.lanes, max(spent, default=0.0))


PROFILED = {
    "attention forward d128": ("attention", "fwd", "8x2048 h32 d128 causal", "attention_forward"),
    "attention forward d64": ("attention", "fwd", "CLIP 64x577 h16 d64 full", "attention_forward"),
    "attention backward d128": ("attention", "bwd", "8x2048 h32 d128 causal", "attention_backward"),
    "splice forward": ("splice", "fwd", "16x2048, 576 image rows, D=4096 bf16", "splice_forward_kernel"),
}
"""What ncu looks at: suite, mode and shape of a timing, and the beginning of the kernel's name."""


def stages(suites: dict[str, Suite], arch: str, options: argparse.Namespace, cached: bool) -> list[Stage]:
    """Return everything there is to do on a device of this architecture (``"90"``); ``cached`` = Triton's kernels were compiled beforehand."""
    named = suites.items()
    other = [] if arch == A100 else [_build(A100)]
    found = [
        Stage("instructions, build", [Step("ptx", "ptx", {name: {} for name in ptx.checks()}, PTX_S), _build(arch)], 2),
        Stage("CUDA kernels", [*other, *(_checks(name, suite, arch, "cuda") for name, suite in named)], LANES + len(other)),
        Stage("CUDA kernels as an A100 has them", [_checks(name, suite, A100, "sm_80") for name, suite in named] if other else [], LANES),
    ]
    compile_s = 0.0 if cached else TRITON_COMPILE_S
    if options.sanitize:
        found.append(Stage("sanitizer", [Step("sanitizer", "sanitizer", {"all tools": {}}, 90.0, SANITIZER_S + 20, whole=True, arch=arch)]))
    if not options.cuda_only:
        found.append(Stage("Triton kernels", [_checks(name, suite, "", "triton", compile_s) for name, suite in named], LANES))
    found += [
        Stage("ceilings", [Step("ceilings", "ceilings", {"copy, GEMM": {}}, START_S + CEILINGS_S, whole=True)]),
        Stage("times that decide", [_times(name, suite, "times", arch, decides) for name, suite in named]),
        Stage("ncu", [_profile(name, arch) for name, (suite, *_) in PROFILED.items() if suite in suites]),
        Stage("other times", [_times(name, suite, "more", arch, lambda t: t.quick and not decides(t)) for name, suite in named]),
    ]
    if options.full:
        found.append(Stage("every size", [_times(name, suite, "full", arch, lambda t: not t.quick and not decides(t)) for name, suite in named]))
        found.append(Stage("compiled peers", [_times(name, suite, "compiled", arch, lambda t: True, compiled=True) for name, suite in named]))
    most = options.silence_s or float("inf")
    return [
        Stage(stage.title, [replace(step, silence_s=min(step.silence_s, most)) for step in stage.steps if step.items], stage.lanes) for stage in found
    ]


def left(step: Step, events: list[Event]) -> list[str]:
    """Return the items of a step that have no result yet."""
    done = results(events)
    return [item for item in step.items if (step.name, item) not in done]


def check_item(kernel: str, case: str, dtype: torch.dtype) -> str:
    """Return the name of a check in one dtype."""
    return f"{kernel} {case} {str(dtype).removeprefix('torch.')}"


def row_item(timing: Timing, provider: str) -> str:
    """Return the name of a timing of one provider."""
    return f"{timing.op} {timing.mode} {timing.shape} | {provider}"


def check_items(suite: Suite, cuda: bool) -> dict[str, Event]:
    """Return the checks of one family in every dtype."""
    checks = [check for check in suite.checks if is_cuda(check.implementation) == cuda]
    return {
        check_item(check.kernel, check.case, dtype): {"kernel": check.kernel, "case": check.case, "dtype": str(dtype), "peer": check.peer}
        for check in checks
        for dtype in check.dtypes
    }


def _checks(name: str, suite: Suite, arch: str, family: str, compile_s: float = 0.0) -> Step:
    items = check_items(suite, cuda=bool(arch))
    seconds = START_S + (CHECK_S + compile_s) * len(items) + (FROM_PTX_S if family == "sm_80" else 0.0)
    return Step(f"{family}: {name}", "checks", items, seconds, SILENCE_S if family == "cuda" else COMPILING_S, suite=name, arch=arch)


def _build(arch: str) -> Step:
    return Step(f"build sm_{arch}", "build", {f"sm_{arch}": {"arch": arch}}, BUILD_S, BUILD_SILENCE_S, whole=True, arch=arch)


def _profile(name: str, arch: str) -> Step:
    return Step(f"ncu: {name}", "profile", {name: {}}, PROFILE_S, COMPILING_S, whole=True, suite=PROFILED[name][0], arch=arch)


def _times(name: str, suite: Suite, tier: str, arch: str, wanted: Any, compiled: bool = False) -> Step:
    items = dict(_rows((timing for timing in suite.timings if wanted(timing)), compiled))
    each = ROW_S + (PEER_COMPILE_S if compiled else 0.0)
    return Step(f"{tier}: {name}", "times", items, START_S + each * len(items), COMPILING_S, suite=name, arch=arch)


def _rows(timings: Iterable[Timing], compiled: bool) -> Iterator[tuple[str, Event]]:
    for timing in timings:
        for provider in timing.providers:
            if provider.startswith(COMPILED) == compiled:
                about = {"op": timing.op, "shape": timing.shape, "mode": timing.mode, "provider": provider}
                yield row_item(timing, provider), {**about, "bytes": timing.bytes, "flops": timing.flops}
