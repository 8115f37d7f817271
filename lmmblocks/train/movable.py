"""Can the data move what a stage trains? Asked before the first step: training that changes nothing costs as much as training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..decoders.hooks import VISION
from ..spec import LmmError, Sample
from .stage import Stage

if TYPE_CHECKING:
    from ..lmm import LMM


def idle_parts(model: LMM, stage: Stage, samples: Iterable[Sample]) -> list[str]:
    """Return the trained parts that no sample can reach, because only pictures lead to them and there are none.

    Raises:
        LmmError: that is all of them.
    """
    of_images = [part for part in stage.train if _needs_images(model, part)]
    if not of_images or any(len(sample.images) for sample in samples):
        return []
    if len(of_images) == len(stage.train):
        raise LmmError(
            f"stage {stage.name!r} trains {', '.join(of_images)}, which only pictures reach, and no sample has one: nothing would be learned: "
            f"give samples with images, or train the decoder"
        )
    return of_images


def _needs_images(model: LMM, part: str) -> bool:
    if part == "hooks":
        return all(VISION in hook.requires for hook in model.hooks)
    return part in ("encoder", "projector", "reducers")
