"""One optimiser step: forward and backward of each micro-batch, then AdamW. Nothing here waits for the device.

Losses are summed and each micro-batch is multiplied with a weight known in advance, so accumulating gradients changes nothing.
To train with several processes, ``loss_weights`` needs the number of targets over all of them, and gradients are added up (not
averaged) between the backwards and the update: both belong here.

On a CPU, micro-batches may be computed side by side, each in a thread whose operations use that thread alone. Cores that share one small operation
wait for each other at its end, and for the loader whenever it runs; these wait once a step. Gradients are added in the order of the
micro-batches, so who is first changes no bit.

A loss or gradient norm that isn't finite sets ``halted`` on the device. AdamW reads it there and leaves the step out, this one
and all later ones, so the weights stay those before the bad step whenever the host gets to look.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..spec import Batch
from .micro_batches import StepInput

if TYPE_CHECKING:
    from ..lmm import LMM


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step gave, still on the device.

    Attributes:
        loss: fp32 scalar.
        grad_norm: fp32 scalar, before clipping.
    """

    loss: Tensor
    grad_norm: Tensor


class Stepper:
    """Takes optimiser steps.

    Args:
        model: an ``LMM`` whose parts are prepared for the stage.
        optimizer: fused AdamW of :func:`build_optimizer`.
        clip_norm: largest gradient norm; None = no clipping.
        bf16: compute in bf16 autocast.
        threads: micro-batches that a CPU computes side by side, which ``torch.set_num_threads(1)`` makes worth it; other devices take one
            after the other.

    Attributes:
        halted: fp32 scalar on the device, 1 from the first non-finite step on.
    """

    def __init__(self, model: LMM, optimizer: torch.optim.AdamW, *, clip_norm: float | None = None, bf16: bool = False, threads: int = 1) -> None:
        self.model, self.optimizer, self.bf16 = model, optimizer, bf16
        self.most_norm = float("inf") if clip_norm is None else clip_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        several = threads > 1 and self.device.type == "cpu"
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="lmmblocks-step") if several else None
        self.halted = torch.zeros((), device=self.device)
        optimizer.found_inf = self.halted  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]

    def __call__(self, inputs: StepInput, factor: float) -> StepOutcome:
        """Take one step.

        Args:
            inputs: micro-batches on the host, at least one.
            factor: what the peak learning rates are multiplied with.
        """
        loss = self.backward(inputs)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.most_norm)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        self.halted.copy_(torch.maximum(self.halted, (~finite).float()))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepOutcome(loss, norm)

    def backward(self, inputs: StepInput) -> Tensor:
        """Add the gradients of all micro-batches to the parameters and return the loss of the step."""
        total = torch.zeros((), device=self.device)
        for loss in self._one_by_one(inputs) if self.pool is None else self._side_by_side(inputs, self.pool):
            total += loss
        self._zero_where_unreached()
        return total

    def _one_by_one(self, inputs: StepInput) -> Iterator[Tensor]:
        for batch, weight in zip(inputs.batches, inputs.weights):
            loss = self._loss(batch, weight)
            if loss.requires_grad:  # a text-only micro-batch doesn't reach the projector
                loss.backward()
            yield loss.detach()

    def _side_by_side(self, inputs: StepInput, pool: ThreadPoolExecutor) -> Iterator[Tensor]:
        for loss, gradients in pool.map(self._gradients, inputs.batches, inputs.weights):
            for parameter, gradient in zip(self.parameters, gradients):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            yield loss

    def _gradients(self, batch: Batch, weight: float) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Return the loss of a micro-batch and its gradients, apart from those of the others."""
        loss = self._loss(batch, weight)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True) if loss.requires_grad else ()
        return loss.detach(), gradients

    def _loss(self, batch: Batch, weight: float) -> Tensor:
        with self.autocast():
            return self.model.loss(batch.to(self.device), reduction="sum") * weight

    def autocast(self) -> AbstractContextManager:
        """bf16 where the run asks for it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def _zero_where_unreached(self) -> None:
        """Give a parameter that has moved before and that no sample reaches now a gradient of zero.

        Its moments decay then, as they do in LLaVA, however the samples are cut into micro-batches.
        """
        for parameter in self.parameters:
            if parameter.grad is None and parameter in self.optimizer.state:
                parameter.grad = torch.zeros_like(parameter)
