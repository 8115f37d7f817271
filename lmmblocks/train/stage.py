"""A training stage: which parts learn, how fast, from batches of what size; one typed, frozen set of values.

Every value is checked when the stage is made and all mistakes are reported together. What is printed and saved with a run is this object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..config import refuse_unknown
from ..spec import ByKeywords, LmmError
from ..spec.fields import make_plain
from .stage_checks import stage_problems


@dataclass(frozen=True, kw_only=True)
class Stage(metaclass=ByKeywords):
    """One run of the optimiser.

    Attributes:
        name: for logs and files.
        train: part (``encoder``, ``projector``, ``decoder``) -> peak learning rate. Other parts are frozen. Of a part in which some parameters
            require a gradient and some don't (adapters), those that do are trained.
        batch_size: samples per optimiser step.
        template: chat template, set on the model, which asks and is saved with it from then on; None = the model's.
        epochs: passes over the data.
        max_steps: end after this many steps, over as many epochs as that takes; None = ``epochs``.
        micro_batch_rows: most packed rows (text and image) of one forward and backward; a longer sample is a micro-batch of its own.
        micro_batch_samples: most samples of one forward and backward; None = no limit.
        micro_batch_threads: micro-batches that a CPU computes side by side, each in one thread; 1 = one after the other,
            each with all threads, as on other devices.
        warmup_ratio: share of all steps with rising learning rate, rounded up to whole steps.
        schedule: ``cosine`` to 0, or ``constant``, behind the warm-up.
        weight_decay: AdamW's, on weights that are neither biases nor scales of norms.
        betas: AdamW's.
        eps: AdamW's.
        clip_norm: largest gradient norm; None = no clipping, as the released LLaVA-1.5.
        seed: of the order of the samples and of every random generator.
        sampler: ``packed`` (seeded permutation) or ``modality_length_grouped`` (LLaVA's order).
        truncate: what happens to samples longer than ``max_length``: see ``plan_splice``.
        max_length: most rows of a sample, not above the decoder's positions; None = the model's.
        bad_samples: ``error``, or ``skip`` samples that can't be read, and count them.
        image_fit: ``pad``, ``crop`` or ``squash``, set on the model as the template is; None = the model's.
        exif: ``ignore`` or ``rotate``, set on the model too: whether pictures are turned as EXIF says; None = the model's.
        transparent: ``drop``, ``black`` or ``white``, set on the model too: what shows through; None = the model's.
        llava15_compat: the loss is the mean of the means over ``micro_batch_samples`` samples, as in LLaVA, not the mean over all tokens.
        precision: ``auto`` (bf16 autocast on CUDA devices that have it, else fp32), ``bf16`` or ``fp32``.
        deterministic: refuse operations whose result differs from run to run on the same device.
        log_every: steps between log lines; the device is asked for numbers only then.
        checkpoint_every_steps: steps between checkpoints; the first and the last step always write one.
        keep_checkpoints: how many of the newest checkpoints stay.
        workers: processes that prepare batches; 0 = one thread of this process.
        prefetch_steps: how many steps each worker, or the thread, works ahead.

    Numbers may be numpy's or torch's scalars; they are kept as Python's own.

    Raises:
        LmmError: values that make no sense, all of them in one message.

    >>> Stage(name="connector", train={"projecter": 1e-3}, batch_size=8)
    Traceback (most recent call last):
    lmmblocks.spec.errors.LmmError: stage 'connector': train names the part 'projecter'; did you mean 'projector'? ...
    """

    name: str
    train: Mapping[str, float]
    batch_size: int
    template: str | None = None
    epochs: int = 1
    max_steps: int | None = None
    micro_batch_rows: int = 8192
    micro_batch_samples: int | None = None
    micro_batch_threads: int = 1
    warmup_ratio: float = 0.03
    schedule: str = "cosine"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = None
    seed: int = 42
    sampler: str = "packed"
    truncate: str = "error"
    max_length: int | None = None
    bad_samples: str = "error"
    image_fit: str | None = None
    exif: str | None = None
    transparent: str | None = None
    llava15_compat: bool = False
    precision: str = "auto"
    deterministic: bool = False
    log_every: int = 1
    checkpoint_every_steps: int = 500
    keep_checkpoints: int = 2
    workers: int = 0
    prefetch_steps: int = 2

    def __post_init__(self) -> None:
        make_plain(self)
        if isinstance(self.betas, list):
            object.__setattr__(self, "betas", tuple(self.betas))
        problems = list(stage_problems(self))
        if problems:
            raise LmmError(f"stage {self.name!r}: " + "; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that survive a round trip through JSON."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "train": dict(self.train),
            "betas": list(self.betas),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Stage:
        """Rebuild from ``to_dict``.

        Raises:
            LmmError: unknown or missing keys, or values that make no sense.
        """
        refuse_unknown("stage", values, [f.name for f in fields(cls)])
        missing = [name for name in ("name", "train", "batch_size") if name not in values]
        if missing:
            raise LmmError(f"stage: missing keys {', '.join(missing)}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Stage:
        """Rebuild from JSON text.

        Raises:
            LmmError: broken JSON, with line and column, or a stage that ``from_dict`` refuses.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise LmmError(
                f"stage is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
            ) from error
        if not isinstance(values, dict):
            raise LmmError(f"stage must be a JSON object, found {type(values).__name__}")
        return cls.from_dict(values)


def stage1(**changes: Any) -> Stage:
    """LLaVA-1.5's first stage, 558k captions: the projector learns at 1e-3, batches of 256, pictures cropped.

    Source: ``scripts/v1_5/pretrain.sh``.

    >>> stage1(batch_size=32).train
    {'projector': 0.001}
    """
    values = {
        "name": "stage1",
        "train": {"projector": 1e-3},
        "batch_size": 256,
        "template": "plain",
        "image_fit": "crop",
    }
    return Stage.from_dict({**values, **changes})


def stage2(**changes: Any) -> Stage:
    """LLaVA-1.5's second stage, 665k instructions: projector and decoder learn at 2e-5, batches of 128, pictures padded.

    Too long samples keep the turns that fit. The original's sampler, its cut at the right and its mean of means are
    ``sampler="modality_length_grouped", truncate="right", llava15_compat=True, micro_batch_samples=16``.
    Source: ``scripts/v1_5/finetune.sh``.
    """
    values = {
        "name": "stage2",
        "train": {"projector": 2e-5, "decoder": 2e-5},
        "batch_size": 128,
        "template": "vicuna_v1",
        "image_fit": "pad",
        "truncate": "turn",
    }
    return Stage.from_dict({**values, **changes})


STAGES: dict[str, Callable[..., Stage]] = {"stage1": stage1, "stage2": stage2}
"""Stages by name."""
