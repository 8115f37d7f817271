"""Everything needed to turn samples into a batch, without the model's weights: what a data loader's worker holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..spec import Arrangement, Grid, LmmError, TileGrid, image_count
from ..spec.fields import is_whole, plain
from ..spec.words import Attention, Mode
from .image_rows import RowCount


@dataclass(frozen=True)
class InputSpec:
    """How a model wants its inputs.

    Attributes:
        tokenizer: a transformers tokenizer.
        template: object with ``render(messages, add_generation_prompt=...)``.
        preprocess: object with ``batch(images) -> (pixels, grids)``.
        out_grid: from the encoder's grid to what the decoder sees of an image (the projector's and the reducers' arithmetic).
        max_length: most rows a segment may have; None = ``max_positions``.
        max_positions: most rows the decoder has positions for; None = it knows no limit.
        tokenize_mode: ``pieces`` or ``llava15``.
        attention: ``causal``, or ``images``: each image row sees its whole image.
        instruct: text of an instruction to ids, for a projector that reads what is asked about an image; else None.
        arrangement: how the rows of an image's tiles become its rows, for an encoder that cuts images into tiles; else None.
    """

    tokenizer: Any
    template: Any
    preprocess: Any
    out_grid: Callable[[Grid], Grid | int]
    max_length: int | None = None
    max_positions: int | None = None
    tokenize_mode: Mode = "pieces"
    attention: Attention = "causal"
    instruct: Callable[[str], list[int]] | None = None
    arrangement: Arrangement | None = None

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            raise LmmError("the model has no tokenizer: pass tokenizer=... to build(), or load a folder that holds one")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the projector's weights after: a worker counts rows, it computes none."""
        return {**self.__dict__, "out_grid": _without_weights(self.out_grid)}

    def instructions(self, messages: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Return the ids of what is asked about each image of a conversation; nothing where the projector doesn't read it."""
        if self.instruct is None:
            return []
        from ..projectors.instruction_tokens import image_instructions

        return [self.instruct(text) for text in image_instructions(messages)]

    def most_rows(self, max_length: int | None = None) -> int | None:
        """Return the most rows of a segment; None = no limit.

        Args:
            max_length: instead of the model's own; None = the model's.

        Raises:
            LmmError: more than the decoder has positions for.
        """
        most = plain(self.max_length if max_length is None else max_length)
        if most is None or self.max_positions is None:
            return self.max_positions if most is None else most
        if is_whole(most) and most > self.max_positions:
            whose = "the model's max_length" if max_length is None else "max_length"
            raise LmmError(
                f"{whose} is {most}, above the {self.max_positions} positions of the decoder (its config's max_positions), after which it was never "
                f"trained: lower it to {self.max_positions} or less"
            )
        return most

    def image_rows(self, grid: Grid | TileGrid) -> int:
        """Return how many rows of the decoder one image of ``grid`` becomes."""
        if isinstance(grid, TileGrid):
            assert self.arrangement is not None
            return self.arrangement.rows_of(grid, self.out_grid)
        return image_count(self.out_grid(grid))


def _without_weights(out_grid: Callable[[Grid], Grid | int]) -> Callable[[Grid], Grid | int]:
    """Return the same count, of copies of its modules that hold no memory."""
    import torch

    if isinstance(out_grid, RowCount):
        before, behind = (tuple(map(_without_weights, steps)) for steps in (out_grid.before, out_grid.behind))
        return RowCount(before, _without_weights(out_grid.project), behind)
    module = getattr(out_grid, "__self__", None)
    if not isinstance(module, torch.nn.Module):
        return out_grid
    empty: dict[int, Any] = {id(p): torch.nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    empty |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return getattr(copy.deepcopy(module, empty), out_grid.__name__)
