"""What goes into a model: the batch that is made of many conversations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .grids import Grid, TileGrid
from .instruction import Instruction
from .plan import SplicePlan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """What a model eats: pixels of all images, their grids, and the plan that places them.

    Attributes:
        pixels: what the encoder's preprocessing made of all images: ``(I, 3, H, W)`` for fixed-size encoders, else see ``lmmblocks.images.pixels``.
        grids: one ``Grid`` per image, after the encoder; a ``TileGrid`` where it was cut into tiles.
        plan: the packed batch.
        sample_ids: names of the segments, for messages.
        instruction: what is asked about each image, where the projector reads it.
    """

    pixels: Any
    grids: tuple[Grid | TileGrid, ...]
    plan: SplicePlan
    sample_ids: tuple[str | int | None, ...] = ()
    instruction: Instruction | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on ``device``."""
        instruction = None if self.instruction is None else self.instruction.to(device)
        return replace(self, pixels=self.pixels.to(device, non_blocking=True), plan=self.plan.to(device), instruction=instruction)

    def pin_memory(self) -> Batch:
        """Return the batch in pinned host memory (``DataLoader(pin_memory=True)`` calls this)."""
        instruction = None if self.instruction is None else self.instruction.pin_memory()
        return replace(self, pixels=self.pixels.pin_memory(), plan=self.plan.pin_memory(), instruction=instruction)
