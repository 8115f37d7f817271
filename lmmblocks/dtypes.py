"""One floating-point dtype for all parts of a model: which, and who has another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn as nn

from .spec import LmmError

COMPUTED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What the blocks compute in; 8-bit floats are storage only."""


def check_dtype(dtype: Any) -> None:
    """Refuse what no block computes in; None is left to the caller.

    Raises:
        LmmError: no dtype, not a floating-point one, or one of 8 bits.
    """
    if dtype is not None and dtype not in COMPUTED:
        names = ", ".join(map(str, COMPUTED))
        raise LmmError(f"dtype={dtype!r}: expected a floating-point torch dtype that the blocks compute in ({names}), or None")


def dtypes_of(part: Any) -> tuple[torch.dtype, ...]:
    """Return the floating-point dtypes of a part's parameters, the one of most elements first."""
    parameters = part.parameters() if isinstance(part, nn.Module) else ()
    return by_elements((p.dtype, p.numel()) for p in parameters if p.is_floating_point())


def by_elements(counted: Iterable[tuple[torch.dtype, int]]) -> tuple[torch.dtype, ...]:
    """Return dtypes by how many elements they have, the most first.

    >>> by_elements([(torch.float32, 2), (torch.float16, 3), (torch.float32, 2)])
    (torch.float32, torch.float16)
    """
    sums: dict[torch.dtype, int] = {}
    for dtype, count in counted:
        sums[dtype] = sums.get(dtype, 0) + count
    return tuple(sorted(sums, key=lambda dtype: -sums[dtype]))


def devices_of(part: Any) -> tuple[torch.device, ...]:
    """Return where a part's parameters are, each place once."""
    return tuple(dict.fromkeys(p.device for p in part.parameters())) if isinstance(part, nn.Module) else ()


def disagreement(parts: Mapping[str, Any]) -> str | None:
    """Say which parts have other dtypes or other devices than the rest; None if all agree.

    Args:
        parts: name -> module; one without parameters agrees with everybody.
    """
    dtypes = {name: found for name, part in parts.items() if (found := dtypes_of(part))}
    if len({dtype for found in dtypes.values() for dtype in found}) > 1:
        return f"the weights are of several dtypes, {_listed(dtypes)}: convert all of them with model.to(dtype), or pass dtype= to build or load"
    devices = {name: places for name, part in parts.items() if (places := devices_of(part))}
    if len({device for places in devices.values() for device in places}) > 1:
        return f"the weights are on several devices, {_listed(devices)}: move all of them with model.to(device), or pass device= to build or load"
    return None


def name_of(dtype: torch.dtype) -> str:
    """Return what files call a dtype.

    >>> name_of(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def _listed(found: Mapping[str, tuple[Any, ...]]) -> str:
    return ", ".join(f"{part} {' and '.join(str(entry).removeprefix('torch.') for entry in entries)}" for part, entries in found.items())
