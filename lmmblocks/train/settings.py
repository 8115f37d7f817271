"""The effective settings of a run: printed once, saved as ``settings.json``, and applied."""

from __future__ import annotations

import json
import math
import os
import platform
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import __version__
from ..compose.current_config import current_config
from ..compose.input_spec import InputSpec
from ..images.fit import reading_of
from ..spec import LmmError
from .optimizer import trainable_table
from .order import StepOrder
from .stage import Stage

if TYPE_CHECKING:
    from ..lmm import LMM


def use_bf16(stage: Stage, device: torch.device) -> bool:
    """Whether the stage computes in bf16 autocast on this device.

    Raises:
        LmmError: bf16 is asked for and the device lacks it.
    """
    if stage.precision == "fp32":
        return False
    if device.type != "cuda":
        return stage.precision == "bf16"
    able = torch.cuda.is_bf16_supported(including_emulation=False)
    if stage.precision == "bf16" and not able:
        name = torch.cuda.get_device_name(device)
        raise LmmError(f"stage {stage.name!r}: precision='bf16', but {name} has no bf16: set precision='fp32'")
    return able


def effective_settings(model: LMM, stage: Stage, spec: InputSpec, order: StepOrder, samples: int) -> dict[str, Any]:
    """Return everything that decides about the run, defaults resolved, as plain values.

    Args:
        model: with its parts prepared for the stage.
        stage: of the run.
        spec: the model's.
        order: of the samples.
        samples: how many there are.
    """
    config = current_config(model)
    return {
        "stage": stage.to_dict(),
        "resolved": {
            "samples": samples,
            "steps": len(order),
            "steps_per_epoch": order.steps_per_epoch,
            "warmup_steps": math.ceil(len(order) * stage.warmup_ratio),
            "template": spec.template.name,
            "image_fit": getattr(spec.preprocess, "fit", None),
            **reading_of(spec.preprocess),
            "max_length": spec.most_rows(stage.max_length),
            "attention": spec.attention,
            "precision": "bf16 autocast" if use_bf16(stage, model.device) else "fp32",
            "device": _device_name(model.device),
            "threads": torch.get_num_threads(),
        },
        "model": None if config is None else config.to_dict(),
        "versions": {
            "lmmblocks": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(),
        },
    }


def settings_text(model: LMM, stage: Stage, settings: dict[str, Any]) -> str:
    """Return the settings as lines to print: the stage, what was resolved, the table of parts."""
    chosen = {
        **{key: value for key, value in settings["stage"].items() if key != "name"},
        **settings["resolved"],
    }
    width = max(map(len, chosen))
    lines = [f"  {key:<{width}}  {json.dumps(value)}" for key, value in chosen.items()]
    return "\n".join([f"stage {stage.name!r}", *lines, trainable_table(model, stage)])


@contextmanager
def run_conditions(stage: Stage, device: torch.device) -> Iterator[None]:
    """Seed every generator; for the length of the run, refuse operations that aren't deterministic if the stage says so, and give
    micro-batches that a CPU computes side by side a thread each.
    """
    random.seed(stage.seed)
    np.random.seed(stage.seed % 2**32)
    torch.manual_seed(stage.seed)
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if stage.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    if stage.micro_batch_threads > 1 and device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
