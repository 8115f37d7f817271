"""What autocast asks of an op: the dtype that products are taken in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return autocast's dtype on a kind of device, or None outside of it.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     inside = autocast_dtype(torch.device("cpu"))
    >>> inside, autocast_dtype(torch.device("cpu"))
    (torch.bfloat16, None)
    """
    kind = device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if casts else None


def as_autocast_has_them(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in autocast's dtype, but for fp64 and integers; outside of it themselves: what it does with torch's own matrix products."""
    dtype = autocast_dtype(tensors[0].device)
    if dtype is None:
        return tensors
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context in which products are taken in the dtype of their factors: for a formula that says its own."""
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device.type, enabled=False)
