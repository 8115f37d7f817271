"""What each setting of a stage may be, as a table, and which settings must agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..spec import closest
from ..spec.fields import is_number, is_whole

if TYPE_CHECKING:
    from .stage import Stage

PARTS = ("encoder", "projector", "decoder", "reducers", "hooks")
"""Names of ``LMM.parts``; parts a stage doesn't name are frozen and hold no optimiser state."""


def stage_problems(stage: Stage) -> Iterator[str]:
    """Yield everything that is wrong with a stage, as what was expected and what was found."""
    for name, (holds, expected) in {**_CHECKS, **_checks_of_others()}.items():
        value = getattr(stage, name)
        if not holds(value):
            yield f"{name} must be {expected}, found {value!r}"
    yield from _part_problems(stage.train)
    yield from _joint_problems(stage)


def _checks_of_others() -> dict[str, Check]:
    """Checks of settings whose values belong to modules that need torch or PIL, which listing the settings in --help must not load."""
    from ..images.constants import EXIF, FITS, TRANSPARENT
    from ..plans.host import TRUNCATE

    return {
        "truncate": _one_of(*TRUNCATE),
        "image_fit": _or_none(_one_of(*FITS)),
        "exif": _or_none(_one_of(*EXIF)),
        "transparent": _or_none(_one_of(*TRANSPARENT)),
    }


def _part_problems(train: Any) -> Iterator[str]:
    if not isinstance(train, Mapping) or not train:
        yield f"train must map parts to learning rates, such as {{'projector': 1e-3}}, found {train!r}"
        return
    for part, rate in train.items():
        if part not in PARTS:
            yield f"train names the part {part!r}{closest(str(part), PARTS)} parts: {', '.join(PARTS)}"
        if not _ABOVE_ZERO[0](rate):
            yield f"the learning rate of {part!r} must be a number above 0, found {rate!r}"


def _joint_problems(stage: Stage) -> Iterator[str]:
    group = stage.micro_batch_samples
    if stage.llava15_compat is True and group is None:
        yield "llava15_compat takes means over micro_batch_samples samples: set it (LLaVA: 32 in stage 1, 16 in stage 2)"
    whole = _whole(group, 1) and _whole(stage.batch_size, 1)
    if stage.sampler == "modality_length_grouped" and whole and stage.batch_size % group:
        yield (
            f"sampler 'modality_length_grouped' deals batch_size {stage.batch_size} to groups of micro_batch_samples {group}: "
            f"make the one a multiple of the other"
        )


def _whole(value: Any, least: int) -> bool:
    return is_whole(value) and value >= least


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(is_number(v) and 0 <= v < 1 for v in value)


Check = tuple[Callable[[Any], bool], str]


def _at_least(least: int) -> Check:
    return (lambda value: _whole(value, least)), f"a whole number of at least {least}"


def _or_none(check: Check) -> Check:
    return (lambda value: value is None or check[0](value)), f"{check[1]}, or null"


def _one_of(*choices: str) -> Check:
    return (lambda value: value in choices), "one of " + ", ".join(choices)


_TRUTH: Check = (lambda value: isinstance(value, bool)), "true or false"
_TEXT: Check = (lambda value: isinstance(value, str) and bool(value)), "a non-empty string"
_ABOVE_ZERO: Check = (lambda value: is_number(value) and value > 0), "a number above 0"
_NOT_NEGATIVE: Check = (lambda value: is_number(value) and value >= 0), "a number of at least 0"
_SHARE: Check = (lambda value: is_number(value) and 0 <= value <= 1), "a number from 0 to 1"

_CHECKS: dict[str, Check] = {
    "name": _TEXT,
    "batch_size": _at_least(1),
    "template": _or_none(_TEXT),
    "epochs": _at_least(1),
    "max_steps": _or_none(_at_least(1)),
    "micro_batch_rows": _at_least(1),
    "micro_batch_samples": _or_none(_at_least(1)),
    "micro_batch_threads": _at_least(1),
    "warmup_ratio": _SHARE,
    "schedule": _one_of("cosine", "constant"),
    "weight_decay": _NOT_NEGATIVE,
    "betas": (_is_pair, "two numbers from 0 to below 1"),
    "eps": _ABOVE_ZERO,
    "clip_norm": _or_none(_ABOVE_ZERO),
    "seed": _at_least(0),
    "sampler": _one_of("packed", "modality_length_grouped"),
    "max_length": _or_none(_at_least(1)),
    "bad_samples": _one_of("error", "skip"),
    "llava15_compat": _TRUTH,
    "precision": _one_of("auto", "fp32", "bf16"),
    "deterministic": _TRUTH,
    "log_every": _at_least(1),
    "checkpoint_every_steps": _at_least(1),
    "keep_checkpoints": _at_least(1),
    "workers": _at_least(0),
    "prefetch_steps": _at_least(1),
}
