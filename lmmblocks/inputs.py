"""Everything needed to turn samples into a batch, without the model's weights: what a data loader's worker holds."""

from __future__ import annotations

import copy
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

    def __getstate__(self) -> dict[str, Any]:
        """Leave the projector's weights behind: a worker counts rows, it computes none."""
        return {**self.__dict__, "out_grid": _without_weights(self.out_grid)}

    def image_rows(self, grid: Grid) -> int:
        """Return how many rows of the decoder one image of ``grid`` becomes."""
        return image_count(self.out_grid(grid))


def _without_weights(out_grid: Callable[[Grid], Grid | int]) -> Callable[[Grid], Grid | int]:
    """Return the same method of a copy of its module that holds no memory."""
    import torch

    module = getattr(out_grid, "__self__", None)
    if not isinstance(module, torch.nn.Module):
        return out_grid
    empty: dict[int, Any] = {id(p): torch.nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    empty |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return getattr(copy.deepcopy(module, empty), out_grid.__name__)
