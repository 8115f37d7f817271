"""Is a kernel right: error against fp64 beside torch's own, bitwise repeats, and the same result from a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .case import Check, Inputs, Outputs

FACTOR = 2.0
"""A kernel's error may be so many times torch's own in the same dtype."""

FLOOR = 1e-6
"""Of the largest value: an error that no one minds, where torch's own is zero."""

REPEATS = 50


@dataclass(frozen=True)
class Verdict:
    """What one check found for one dtype.

    Attributes:
        check: what was checked.
        dtype: of the floating-point inputs.
        error: largest absolute difference of the kernel from fp64.
        torch_error: the same of the plain-torch reference in this dtype.
        problem: why it failed; empty when all holds.
    """

    check: Check
    dtype: torch.dtype
    error: float
    torch_error: float
    problem: str


def verdicts(check: Check, device: torch.device, toy: bool, dtypes: tuple[torch.dtype, ...]) -> Iterator[Verdict]:
    """Yield a verdict for each dtype; what raises is a verdict too."""
    for dtype in check.dtypes:
        if dtype not in dtypes:
            continue
        try:
            yield _verdict(check, device, toy, dtype)
        except Exception as error:  # a kernel that can't be compiled or crashes must not hide the others
            yield Verdict(check, dtype, float("nan"), float("nan"), f"{type(error).__name__}: {str(error).splitlines()[0][:160]}")


def _verdict(check: Check, device: torch.device, toy: bool, dtype: torch.dtype) -> Verdict:
    torch.manual_seed(0)
    inputs = cast(check.inputs(device, toy), dtype)
    with torch.no_grad():
        wide = cast(inputs, torch.float64 if check.fp64 else torch.float32)
    kernel, exact = check.run(check.implementation, inputs), check.run("reference", wide)
    own = check.run("reference", inputs) if check.plain is None else check.plain(inputs)
    errors, problem = [], ""
    for index, (k, t, e) in enumerate(zip(kernel, own, exact, strict=True)):
        found, torchs, scale = distance(k, e), distance(t, e), _largest(e)
        errors.append((found, torchs))
        if not found <= FACTOR * torchs + FLOOR * max(scale, 1.0):  # NaN fails
            problem = problem or f"output {index}: error {found:.3g}, torch's own {torchs:.3g}"
    problem = problem or _repeats(check, inputs, kernel, 3 if toy else REPEATS) or (_captured(check, inputs, kernel) if device.type == "cuda" else "")
    return Verdict(check, dtype, max(e for e, _ in errors), max(t for _, t in errors), problem)


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


def _largest(exact: Tensor) -> float:
    finite = exact[exact.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def _repeats(check: Check, inputs: Inputs, first: Outputs, times: int) -> str:
    for repeat in range(times):
        again = check.run(check.implementation, inputs)
        if not all(torch.equal(a, b) for a, b in zip(first, again)):
            return f"not the same bits in repeat {repeat + 1} of {times}"
    return ""


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
