"""What is asked about each image, for projectors that read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .segments import Segments

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Instruction:
    """Packed token ids, one segment per image.

    Attributes:
        ids: int64 ``(T,)``.
        positions: int64 ``(T,)``; restart per segment.
        segments: boundaries; a segment may be empty.
    """

    ids: Tensor
    positions: Tensor
    segments: Segments

    @staticmethod
    def of(ids: Sequence[Sequence[int]], *, device: torch.device | str = "cpu") -> Instruction:
        """Pack host ids of each image.

        >>> Instruction.of([[5, 6], [], [7]]).positions.tolist()
        [0, 1, 0]
        """
        import torch

        lengths = [len(entry) for entry in ids]
        packed = torch.tensor([token for entry in ids for token in entry], dtype=torch.int64)
        places = torch.tensor([place for n in lengths for place in range(n)], dtype=torch.int64)
        packed, places = (tensor.to(device, non_blocking=True) for tensor in (packed, places))
        return Instruction(packed, places, Segments.of(lengths, device=device))

    def select(self, images: Sequence[int]) -> Instruction:
        """Return the instructions of some images, on the host."""
        each = self.ids.split(list(self.segments.lengths_q))
        return Instruction.of([each[image].tolist() for image in images])

    def to(self, device: torch.device | str) -> Instruction:
        """Return it with every tensor on ``device``."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Instruction:
        """Return it in pinned host memory."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def _moved(self, move: Any) -> Instruction:
        segments = replace(self.segments, cu_q=move(self.segments.cu_q), cu_k=move(self.segments.cu_k))
        return Instruction(move(self.ids), move(self.positions), segments)
