"""Why a step wasn't finite, told only of what was found guilty: the weights, the samples, the precision or the rates.

A sample that fails under weights that fail on anything says nothing about the sample. So before data is blamed, the weights are looked at, and
the step is tried on controls: a grey picture with a word, and the samples of the first step, which were finite once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..compose.finite import broken_weights
from ..compose.input_spec import InputSpec
from ..images.pixels import pixel_tensors
from ..spec import LmmError, Sample
from .micro_batches import StepInput, step_input
from .stage import Stage
from .step import Stepper

if TYPE_CHECKING:
    from ..lmm import LMM


def refuse_broken_weights(model: LMM, stage: Stage) -> None:
    """Raise an LmmError, before anything is computed, when weights hold NaN or inf."""
    broken = broken_weights(model)
    if broken is not None:
        raise LmmError(
            f"stage {stage.name!r}: before any step the model's weights hold NaN or inf: {broken}: their file is damaged, was saved by a run "
            f"that diverged, or overflowed in its dtype: load other weights"
        )


def refuse_diverged_weights(model: LMM, stage: Stage, step: int) -> None:
    """Raise an LmmError when the updates so far made weights NaN or inf: a checkpoint of them would be of no use."""
    broken = broken_weights(model)
    if broken is not None:
        raise LmmError(f"stage {stage.name!r}, step {step}: {_diverged(broken, stage)}. No checkpoint was written of them")


def cause(stepper: Stepper, spec: InputSpec, stage: Stage, samples: Sequence[Sample], first: Sequence[Sample]) -> str:
    """Return whom to blame for a step that wasn't finite, and what to change.

    Args:
        stepper: whose weights are those before the step.
        spec: of the model.
        stage: of the run.
        samples: of the step.
        first: samples of the first step, which an update was made with; none if this is the first.
    """
    broken = broken_weights(stepper.model)
    if broken is not None:
        return _diverged(broken, stage)
    singles = [(sample.id, step_input(0, [sample], spec, stage)) for sample in samples]
    blind = [name for name, single in singles if not _pixels_finite(single)]
    if not blind and (failed := _failed_control(stepper, spec, stage, first)):
        return f"No sample is to blame: {failed}"
    guilty = blind or [name for name, single in singles if not _finite(stepper, single)]
    if guilty:
        pixels = " (their pixels are not)" if blind else ""
        return f"Samples that are not finite on their own: {', '.join(map(repr, guilty))}{pixels}: mend or remove them"
    return f"No sample is to blame: each of the step is finite on its own: {_slower(stage)}"


def _failed_control(stepper: Stepper, spec: InputSpec, stage: Stage, first: Sequence[Sample]) -> str | None:
    """Try what is known to be sound; return what fails on it, as words, and what to change."""
    for what, sample in [
        ("a grey picture with one word", _control()),
        *(("a sample of the first step, finite then,", s) for s in first),
    ]:
        try:
            single = step_input(0, [sample], spec, stage)
        except LmmError:  # such as a template that takes no such conversation: no control, and no fault
            continue
        if _finite(stepper, single):
            continue
        found = f"{what} isn't finite either"
        if stepper.bf16 and _finite_in_fp32(stepper, single):
            return f"{found}, and is in fp32: set precision='fp32'"
        if not first:
            return f"{found}, and no update was made yet: the weights the model came with overflow: load or initialise others"
        largest = max(float(parameter.detach().abs().max()) for parameter in stepper.parameters)
        return f"{found}; the largest trained weight is {largest:.3g}: the run diverged: {_slower(stage)}"
    return None


def _diverged(broken: str, stage: Stage) -> str:
    return f"No sample is to blame: the updates before made weights NaN or inf: {broken}: {_slower(stage)}"


def _slower(stage: Stage) -> str:
    rates = ", ".join(f"train.{part}={rate:g}" for part, rate in stage.train.items())
    clip = "" if stage.clip_norm is not None else ", or set clip_norm"
    return f"lower the learning rate ({rates}), raise warmup_ratio ({stage.warmup_ratio:g}){clip}"


def _control() -> Sample:
    from PIL import Image

    turns = [{"role": "user", "content": "<image>\nHello"}, {"role": "assistant", "content": "Hello"}]
    return Sample(turns, [Image.new("RGB", (64, 64), (128, 128, 128))], "control")


def _pixels_finite(single: StepInput) -> bool:
    pixels: Any = (tensor for batch in single.batches for tensor in pixel_tensors(batch.pixels))
    return all(bool(torch.isfinite(tensor).all()) for tensor in pixels)


def _finite(stepper: Stepper, single: StepInput) -> bool:
    """Whether loss and gradients of a step are finite; no update is made."""
    loss = stepper.backward(single)
    gradients = [p.grad for p in stepper.parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
    stepper.optimizer.zero_grad(set_to_none=True)
    return bool(torch.isfinite(loss)) and bool(torch.isfinite(norm))


def _finite_in_fp32(stepper: Stepper, single: StepInput) -> bool:
    stepper.bf16 = False
    try:
        return _finite(stepper, single)
    finally:
        stepper.bf16 = True
