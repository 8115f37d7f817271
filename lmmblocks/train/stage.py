"""A training stage: which parts learn, how fast, from batches of what size; one typed, frozen set of values.

Every value is checked when the stage is made and all mistakes are reported together. What is printed and saved with a run is this object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from ..spec import ByKeywords, LmmError, closest, refuse_unknown
from ..spec.fields import AtLeast, Filled, Within, field_problems, problem
from ..spec.words import Exif, Fit, Transparent, Truncate

PARTS = ("encoder", "projector", "decoder", "reducers", "hooks")
"""Names of ``LMM.parts``; parts a stage doesn't name are frozen and hold no optimiser state."""


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
        schedule: ``cosine`` to 0, or ``constant``, after the warm-up.
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

    name: Annotated[str, Filled]
    train: Mapping[str, float]
    batch_size: int
    template: Annotated[str, Filled] | None = None
    epochs: int = 1
    max_steps: int | None = None
    micro_batch_rows: int = 8192
    micro_batch_samples: int | None = None
    micro_batch_threads: int = 1
    warmup_ratio: Annotated[float, Within(0, 1)] = 0.03
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: Annotated[float, AtLeast(0)] = 0.0
    betas: Annotated[tuple[float, float], Within(0, 1, below=True)] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = None
    seed: Annotated[int, AtLeast(0)] = 42
    sampler: Literal["packed", "modality_length_grouped"] = "packed"
    truncate: Truncate = "error"
    max_length: int | None = None
    bad_samples: Literal["error", "skip"] = "error"
    image_fit: Fit | None = None
    exif: Exif | None = None
    transparent: Transparent | None = None
    llava15_compat: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    deterministic: bool = False
    log_every: int = 1
    checkpoint_every_steps: int = 500
    keep_checkpoints: int = 2
    workers: Annotated[int, AtLeast(0)] = 0
    prefetch_steps: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.betas, list):
            object.__setattr__(self, "betas", tuple(self.betas))
        problems = [*field_problems(self, none="null"), *_part_problems(self.train), *_joint_problems(self)]
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
        refuse_unknown("stage: unknown keys", values, [f.name for f in fields(cls)])
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
            raise LmmError(f"stage is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
        if not isinstance(values, dict):
            raise LmmError(f"stage must be a JSON object, found {type(values).__name__}")
        return cls.from_dict(values)


def _part_problems(train: Any) -> Iterator[str]:
    if not isinstance(train, Mapping) or not train:
        yield f"train must map parts to learning rates, such as {{'projector': 1e-3}}, found {train!r}"
        return
    for part, rate in train.items():
        if part not in PARTS:
            yield f"train names the part {part!r}{closest(str(part), PARTS)} parts: {', '.join(PARTS)}"
        if wrong := problem(f"the learning rate of {part!r}", rate, float):
            yield wrong


def _joint_problems(stage: Any) -> Iterator[str]:
    group = stage.micro_batch_samples
    if stage.llava15_compat is True and group is None:
        yield "llava15_compat takes means over micro_batch_samples samples: set it (LLaVA: 32 in stage 1, 16 in stage 2)"
    whole = not problem("", group, int) and not problem("", stage.batch_size, int)
    if stage.sampler == "modality_length_grouped" and whole and stage.batch_size % group:
        yield (
            f"sampler 'modality_length_grouped' deals batch_size {stage.batch_size} to groups of micro_batch_samples {group}: "
            f"make the one a multiple of the other"
        )


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
