"""What a stage chooses about texts and pictures is set on the model, which alone says how they are read; a refused run puts it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..images.fit import CHOICES
from ..spec import LmmError
from .stage import Stage

if TYPE_CHECKING:
    from ..lmm import LMM


def set_stage_inputs(model: LMM, stage: Stage) -> None:
    """Make the model read conversations and pictures as the stage says; what the stage leaves open stays the model's.

    Raises:
        LmmError: an unknown template, one whose tokens the tokenizer lacks, an encoder whose preprocessing has no such choice, or a
            ``max_length`` above the decoder's positions.
    """
    for name in ("template", *CHOICES):
        value = getattr(stage, name)
        if value is None:
            continue
        try:
            model.set_inputs(**{name: value})
        except LmmError as error:
            raise LmmError(f"stage {stage.name!r}: {name}={value!r}, but {error}") from error
    try:
        model.input_spec.most_rows(stage.max_length)
    except LmmError as error:
        raise LmmError(f"stage {stage.name!r}: {error}") from error


@contextmanager
def unchanged_if_refused(model: LMM, begun: Callable[[], bool]) -> Iterator[None]:
    """Put a model back as it was when the body fails before it has begun to train: its inputs and modes.

    Args:
        model: an ``LMM``.
        begun: whether an update may have been made.
    """
    inputs = model.template, model.encoder.preprocess, model.config
    modules = [(module, module.training) for module in model.modules()]
    try:
        yield
    except BaseException:
        if not begun():
            model.template, model.encoder.preprocess, model.config = inputs
            for module, training in modules:
                module.training = training
        raise
