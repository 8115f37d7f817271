"""Checks and timings from as little as a suite has to say: names and shapes of the tensors, and one formula per provider."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .case import ALL, Call, Check, Inputs, Outputs, Timing, in_mode

Formula = Callable[[Inputs], Any]
"""Inputs to output; a tuple of outputs is differentiated through its first."""

Shapes = dict[str, tuple[int, ...]]


def random_inputs(shapes: Shapes, device: torch.device) -> Inputs:
    """Return fp32 normal tensors of these shapes."""
    return {name: torch.randn(shape, device=device) for name, shape in shapes.items()}


def with_gradients(formula: Callable[[str, Inputs], Any], wanted: Sequence[str]) -> Callable[[str, Inputs], Outputs]:
    """Return a check's ``run``: outputs of ``formula(backend, inputs)`` and the gradients of the wanted inputs.

    The gradient that comes from behind is ``inputs["grad"]``; further outputs get it too where their shape is the same.
    """

    def run(backend: str, inputs: Inputs) -> Outputs:
        leaves = {name: inputs[name].detach().requires_grad_() for name in wanted}
        outputs = formula(backend, {**inputs, **leaves})
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        grads = [inputs["grad"].expand_as(y) if inputs["grad"].shape == y.shape else torch.ones_like(y) for y in outputs]
        return (*(y.detach() for y in outputs), *torch.autograd.grad(outputs, tuple(leaves.values()), grads))

    return run


def check(op: str, case: str, shapes: Shapes, toy: Shapes, formula: Callable[[str, Inputs], Any], wanted: Sequence[str], **options: Any) -> Check:
    """Return a check on random inputs."""

    def inputs(device: torch.device, small: bool) -> Inputs:
        return random_inputs(toy if small else shapes, device)

    return Check(op, case, inputs, with_gradients(formula, wanted), **options)


def timing(op: str, shape: str, mode: str, shapes: Shapes, formulas: dict[str, Formula], wanted: Sequence[str], **options: Any) -> Timing:
    """Return a timing in bf16; ``grad`` among the shapes is the gradient from after, of the shape of the output."""

    def inputs(device: torch.device) -> Inputs:
        found = {name: value.bfloat16() for name, value in random_inputs(shapes, device).items()}
        return found | {name: found[name].requires_grad_() for name in wanted}

    return Timing(op, shape, mode, inputs, {name: _prepared(formula, mode, wanted) for name, formula in formulas.items()}, **options)


def _prepared(formula: Formula, mode: str, wanted: Sequence[str]) -> Callable[[Inputs], Call]:
    def prepare(inputs: Inputs) -> Call:
        def call() -> Tensor:
            y = formula(inputs)
            return y[0] if isinstance(y, tuple) else y

        return in_mode(mode, call, tuple(inputs[name] for name in wanted), inputs["grad"])

    return prepare


def lazily(make: Callable[[], Formula]) -> Formula:
    """Return a formula that is made at its first call: a peer is imported, or compiled, only where it is timed."""
    made: list[Formula] = []

    def formula(inputs: Inputs) -> Any:
        if not made:
            made.append(make())
        return made[0](inputs)

    return formula


__all__ = ["ALL", "check", "lazily", "random_inputs", "timing", "with_gradients"]
