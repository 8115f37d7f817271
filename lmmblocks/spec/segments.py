"""Boundaries of packed sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from .errors import LmmError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """Boundaries of packed sequences for attention; ``len_q != len_k`` is aligned bottom-right.

    Attributes:
        cu_q: int32 ``(S+1,)`` boundaries of the queries, on the device.
        cu_k: int32 ``(S+1,)`` boundaries of the keys, on the device.
        max_q: longest query segment.
        max_k: longest key segment.
        lengths_q: the same lengths on the host, so that no implementation has to ask the device.
        lengths_k: host lengths of the key segments.
        even: all query segments are ``max_q`` long and all key segments ``max_k``; False = look at the lengths.
    """

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    even: bool = False

    @staticmethod
    def of(
        lengths_q: Sequence[int],
        lengths_k: Sequence[int] | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> Segments:
        """Build segments from host lengths (keys default to the queries). Where they are all alike nothing is copied from the host.

        Raises:
            LmmError: lengths that are no whole numbers or negative, or not as many of keys as of queries.

        >>> Segments.of([3, 0, 2]).cu_q.tolist()
        [0, 3, 3, 5]
        """
        q = _whole(lengths_q)
        k = q if lengths_k is None else _whole(lengths_k)
        if len(q) != len(k) or min((*q, *k), default=0) < 0:
            raise LmmError(f"segments need one non-negative key length per query length: found {q} and {k}")
        if len(set(q)) == 1 == len(set(k)):
            return Segments.uniform(len(q), q[0], k[0], device=device)
        cu_q = boundaries(q, device)
        cu_k = cu_q if k == q else boundaries(k, device)
        return Segments(cu_q, cu_k, max(q, default=0), max(k, default=0), q, k)

    @staticmethod
    def uniform(count: int, length: int, length_k: int | None = None, *, device: torch.device | str = "cpu") -> Segments:
        """Build ``count`` segments of one length; the boundaries are computed where they are needed, nothing is copied from the host.

        >>> Segments.uniform(2, 3).cu_q.tolist(), Segments.uniform(2, 1, 4).cu_k.tolist()
        ([0, 3, 6], [0, 4, 8])
        """
        import torch

        steps = torch.arange(count + 1, dtype=torch.int32, device=device)
        of_k = length if length_k is None else length_k
        cu_q = steps * length
        cu_k = cu_q if of_k == length else steps * of_k
        most_q, most_k = (length, of_k) if count else (0, 0)
        return Segments(cu_q, cu_k, most_q, most_k, (length,) * count, (of_k,) * count, count > 0)


def _whole(lengths: Sequence[int]) -> tuple[int, ...]:
    """Return lengths as a tuple of Python's own ints; a fraction is refused, not cut off."""
    try:
        whole = tuple(int(n) for n in lengths)
        fits = all(n == length for n, length in zip(whole, lengths))
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise LmmError(f"segments need a list of whole numbers, the rows of each, such as [3, 2]: found {lengths!r}")
    return whole


def boundaries(lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Return the int32 ``(S+1,)`` running sum of host ``lengths``, starting at 0; the copy to a CUDA device waits for nothing."""
    return on_device([0, *accumulate(lengths)], device)


def on_device(numbers: Sequence[int], device: torch.device | str) -> Tensor:
    """Return host numbers as int32 ``(len(numbers),)``; the copy to a CUDA device waits for nothing."""
    import torch

    host = torch.tensor(numbers, dtype=torch.int32)
    if torch.device(device).type == "cuda":  # from memory that isn't pinned it would wait for the device
        host = host.pin_memory()
    return host.to(device, non_blocking=True)
