"""Everything needed to turn samples into a batch, without the model's weights: what a data loader's worker holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .spec import Grid, LmmError, image_count


@dataclass(frozen=True)
class InputSpec:
    """How a model wants its inputs.

    Attributes:
        tokenizer: a transformers tokenizer.
        template: object with ``render(messages, add_generation_prompt=...)``.
        preprocess: object with ``batch(images) -> (pixels, grids)``.
        out_grid: from the encoder's grid to what the decoder sees of an image (the projector's and the reducers' arithmetic).
        max_length: most rows a segment may have; None = no limit.
        tokenize_mode: ``pieces`` or ``llava15``.
    """

    tokenizer: Any
    template: Any
    preprocess: Any
    out_grid: Callable[[Grid], Grid | int]
    max_length: int | None = None
    tokenize_mode: str = "pieces"

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            raise LmmError("the model has no tokenizer: pass tokenizer=... to build(), or load a folder that holds one")

    def image_rows(self, grid: Grid) -> int:
        """Return how many rows of the decoder one image of ``grid`` becomes."""
        return image_count(self.out_grid(grid))
