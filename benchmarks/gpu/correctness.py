"""Is a kernel right: error against fp64 beside torch's own, distance from its peer, bitwise repeats, unwritten memory, and a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmmblocks.ops.triton_gate import interpreting
from lmmblocks.spec import LmmError, first_line

from .case import Check, Inputs, Outputs

FACTOR = 2.0
"""A kernel's error may be so many times torch's own in the same dtype."""

PARITY = 3.0
"""So many times torch's own error two kernels of ours may lie apart: less than the sum of what each is allowed."""

FLOOR = 1e-6
"""Of the largest value: an error that no one minds, where torch's own is zero."""

REPEATS, TOY_REPEATS = 50, 2

SPOILT = 0.02
"""Of the largest value: what no rounding explains. (torch's own operations may take another way while fresh memory is filled.)"""


@dataclass(frozen=True)
class Verdict:
    """What one check found for one dtype.

    Attributes:
        check: what was checked.
        dtype: of the floating-point inputs.
        error: largest absolute difference of the kernel from fp64.
        torch_error: the same of the plain-torch reference in this dtype.
        problem: why it failed; empty when all holds.
        apart: largest absolute difference from the peer's result; None without one.
    """

    check: Check
    dtype: torch.dtype
    error: float
    torch_error: float
    problem: str
    apart: float | None = None


def verdicts(check: Check, device: torch.device, toy: bool, dtypes: tuple[torch.dtype, ...]) -> Iterator[Verdict]:
    """Yield a verdict for each dtype; what raises is a verdict too."""
    yield from (verdict(check, device, toy, dtype) for dtype in check.dtypes if dtype in dtypes)


def verdict(check: Check, device: torch.device, toy: bool, dtype: torch.dtype) -> Verdict:
    """Return what a check finds in one dtype; what raises is a verdict too."""
    try:
        return _verdict(check, device, toy, dtype)
    except Exception as error:  # a kernel that can't be compiled or crashes must not hide the others
        return Verdict(check, dtype, float("nan"), float("nan"), f"{type(error).__name__}: {first_line(error)[:160]}")


def _verdict(check: Check, device: torch.device, toy: bool, dtype: torch.dtype) -> Verdict:
    torch.manual_seed(0)
    inputs = cast(check.inputs(device, toy), dtype)
    with torch.no_grad():
        wide = cast(inputs, torch.float64 if check.fp64 else torch.float32)
    kernel, exact = check.run(check.implementation, inputs), check.run("reference", wide)
    own = check.run("reference", inputs) if check.plain is None else check.plain(inputs)
    peer = _peer(check, inputs, dtype)
    errors, problem = [], ""
    for index, (k, t, e) in enumerate(zip(kernel, own, exact, strict=True)):
        apart = 0.0 if peer is None else distance(k, peer[index])
        found, torchs, floor = distance(k, e), distance(t, e), _floor(e)
        errors.append((found, torchs, apart))
        if not found <= FACTOR * torchs + floor:  # NaN fails
            problem = problem or f"output {index}: error {found:.3g}, torch's own {torchs:.3g}"
        elif not apart <= PARITY * torchs + floor:
            problem = problem or f"output {index}: {apart:.3g} from {check.peer}'s, torch's own error {torchs:.3g}"
    problem = problem or _repeats(check, inputs, kernel, TOY_REPEATS if toy else REPEATS) or _unwritten(check, inputs, kernel)
    problem = problem or (_captured(check, inputs, kernel) if device.type == "cuda" else "")
    most = [max(column) for column in zip(*errors)]
    return Verdict(check, dtype, most[0], most[1], problem, None if peer is None else most[2])


def _peer(check: Check, inputs: Inputs, dtype: torch.dtype) -> Outputs | None:
    """What the peer computes; None where there is none, or nothing that can be trusted."""
    interpreted = interpreting() and dtype == torch.bfloat16  # Triton's interpreter computes bf16 wrongly
    if check.peer is None or interpreted:
        return None
    try:
        return check.run(check.peer, inputs)
    except LmmError:  # it refuses the call
        return None


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Return the inputs with every floating-point tensor in ``dtype``."""
    floating = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return {**inputs, **{name: value.to(dtype) for name, value in floating.items()}}


def distance(found: Tensor, exact: Tensor) -> float:
    """Return the largest absolute difference, NaN if anything is not finite that should be."""
    if not exact.numel():
        return 0.0
    difference = (found.double() - exact.double()).abs()
    return torch.where(found.double() == exact.double(), 0.0, difference).max().item()  # equal infinities differ by nothing


def _floor(exact: Tensor) -> float:
    return FLOOR * max(_largest(exact), 1.0) if exact.is_floating_point() else 0.0  # integers are right or wrong


def _largest(exact: Tensor) -> float:
    finite = exact[exact.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def _repeats(check: Check, inputs: Inputs, first: Outputs, times: int) -> str:
    for repeat in range(times):
        again = check.run(check.implementation, inputs)
        if not all(torch.equal(a, b) for a, b in zip(first, again)):
            return f"not the same bits in repeat {repeat + 1} of {times}"
    return ""


def _unwritten(check: Check, inputs: Inputs, first: Outputs) -> str:
    """Run once with all fresh memory filled with NaN: whatever is read before it is written, or not written at all, shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # which fills what torch.empty gives
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = check.run(check.implementation, inputs)
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    same = all(distance(b, a) <= SPOILT / FLOOR * _floor(a) for a, b in zip(first, again))  # NaN fails
    return "" if same else "another result when fresh memory holds NaN: something is read, or left, unwritten"


def _captured(check: Check, inputs: Inputs, first: Outputs) -> str:
    """Capture forward and backward in a CUDA graph, replay it and compare bits: any host sync or allocation trick fails here."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        check.run(check.implementation, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = check.run(check.implementation, inputs)
    graph.replay()
    torch.cuda.synchronize()
    return "" if all(torch.equal(a, b) for a, b in zip(first, outputs)) else "a CUDA graph's replay gives other bits"
