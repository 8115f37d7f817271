"""What a suite declares: checks of a kernel against fp64, and timings of it beside its peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
Outputs = tuple[Tensor, ...]
Call = Callable[[], Any]

OURS = "lmmblocks "
"""Begins the name of every provider that is a kernel of ours."""

COMPILED = ("torch.compile", "FlexAttention")
"""Begin the names of providers that torch.compile makes, which takes tens of seconds each: timed with ``--full`` alone."""

HALF = (torch.bfloat16, torch.float16)
ALL = (*HALF, torch.float32)


@dataclass(frozen=True)
class Check:
    """A case that one op must compute right, compute the same every time, and compute inside a CUDA graph.

    Attributes:
        op: name of the op, as in ``ops.backend``.
        case: what is special about it.
        inputs: ``(device, toy) -> inputs``: fp32 tensors under names; integer tensors stay what they are. ``toy`` = for the interpreter.
        run: ``(backend, inputs) -> outputs``, gradients included.
        dtypes: what the floating-point inputs are cast to.
        implementation: the kernel's name on the ladder.
        peer: another kernel of ours whose result it must match, if that takes the call; None = none.
        fp64: whether the reference is run on fp64 inputs for the truth (else in fp32).
        plain: torch's own way in the dtype of the inputs, whose error is the measure; None = the reference. Needed where the reference computes in
            fp32 throughout and rounds once at the end, which no kernel on tensor cores can do.
    """

    op: str
    case: str
    inputs: Callable[[torch.device, bool], Inputs]
    run: Callable[[str, Inputs], Outputs]
    dtypes: tuple[torch.dtype, ...] = ALL
    implementation: str = "triton"
    fp64: bool = True
    plain: Callable[[Inputs], Outputs] | None = None
    peer: str | None = None

    @property
    def kernel(self) -> str:
        """Its name in ``kernels/verified.json``."""
        return f"{self.op}.{self.implementation}"


def in_cuda_too(checks: Iterable[Check], implementation: str = "cuda") -> list[Check]:
    """Return the checks, and after each one the same check of the CUDA kernel, whose peer is the first one's kernel."""
    return [each for one in checks for each in (one, replace(one, implementation=implementation, peer=one.implementation))]


def is_cuda(name: str) -> bool:
    """Return whether an implementation, or a provider, is one of our CUDA kernels.

    >>> is_cuda("cuda_decode"), is_cuda("lmmblocks cuda"), is_cuda("triton"), is_cuda("SDPA cuDNN")
    (True, True, False, False)
    """
    return name.removeprefix(OURS).startswith("cuda")


@dataclass(frozen=True)
class Timing:
    """One op at one size and mode, by several providers in turn.

    Attributes:
        op: name of the op.
        shape: size, as a label.
        mode: "fwd", "bwd" or "fwd+bwd".
        inputs: ``(device) -> inputs``, random.
        providers: name -> ``(inputs) -> call``; ours begin with :data:`OURS`. A provider that cannot run raises, and its row says why.
        bytes: the fewest bytes it must move; 0 = not the measure.
        flops: the operations it must do; 0 = not the measure.
        quick: timed without ``--full``.
        memory: also measure the peak of allocated memory.
    """

    op: str
    shape: str
    mode: str
    inputs: Callable[[torch.device], Inputs]
    providers: dict[str, Callable[[Inputs], Call]]
    bytes: int = 0
    flops: int = 0
    quick: bool = True
    memory: bool = False


@dataclass(frozen=True)
class Target:
    """What a row of ours must reach against another row of the same timing, or against a ceiling.

    Attributes:
        op: of the timing.
        mode: of the timing.
        shape: prefix of the timing's shape.
        against: provider whose measure is divided by ours, ``"copy"`` / ``"gemm"`` for the share of that ceiling, or ``"limit"`` for a plain number.
        at_least: the ratio or share; with ``"limit"`` the most that ours may be.
        measure: column that is compared: "ms_median", "peak_mb" or "host_us".
        ours: provider that must reach it; by default whichever of our kernels is fastest.
    """

    op: str
    mode: str
    shape: str
    against: str
    at_least: float
    measure: str = "ms_median"
    ours: str = OURS


@dataclass
class Suite:
    """Checks, timings and targets of one file; ``cpu`` are timings of sizes that two cores do in a second or less."""

    checks: list[Check] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    cpu: list[Timing] = field(default_factory=list)


def backward_of(outputs: Call, wanted: tuple[Tensor, ...], grad: Tensor) -> Call:
    """Return a call that repeats the backward of a graph built once."""
    y = outputs()
    return lambda: torch.autograd.grad(y, wanted, grad, retain_graph=True)


def both_of(outputs: Call, wanted: tuple[Tensor, ...], grad: Tensor) -> Call:
    """Return a call of forward and backward."""
    return lambda: torch.autograd.grad(outputs(), wanted, grad)


def in_mode(mode: str, outputs: Call, wanted: tuple[Tensor, ...], grad: Tensor) -> Call:
    """Return the call of a mode."""
    return {"fwd": lambda: outputs, "bwd": lambda: backward_of(outputs, wanted, grad), "fwd+bwd": lambda: both_of(outputs, wanted, grad)}[mode]()
