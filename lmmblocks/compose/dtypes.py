"""One floating-point dtype for all parts of a model: which, who has another, and how a model gets its own back after it computed in a wider one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn

from ..spec import LmmError

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


def widen(part: nn.Module) -> None:
    """Convert what has less than fp32's digits to fp32, in which small updates don't vanish; fp64 stays."""
    for holder, name in _floats(part):
        _convert(holder, name, torch.promote_types(holder[name].dtype, torch.float32))


@contextmanager
def dtypes_kept(model: nn.Module) -> Iterator[None]:
    """Give every weight and buffer, after the body, the dtype it had before, however the body ends.

    Where a weight has grown beyond what its dtype holds, none is converted: the whole model is in fp32 then, and a warning says so.
    """
    before = [(holder, name, holder[name].dtype) for holder, name in _floats(model)]
    try:
        yield
    finally:
        too_large = next((dtype for holder, name, dtype in before if not _holds(dtype, holder[name])), None)
        if too_large is not None:
            widen(model)
            warnings.warn(f"weights have grown beyond {name_of(too_large)}'s largest number: the model stays in float32", stacklevel=3)
        for holder, name, dtype in before if too_large is None else ():
            _convert(holder, name, dtype)


def _floats(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield where each floating-point parameter and buffer is held: a module's dict, and its name there."""
    for each in module.modules():
        for holder in (each._parameters, each._buffers):
            yield from ((holder, name) for name, tensor in holder.items() if tensor is not None and tensor.is_floating_point())


def _convert(holder: dict[str, Any], name: str, dtype: torch.dtype) -> None:
    """Parameters stay the objects that an optimizer and other modules know."""
    if isinstance(holder[name], nn.Parameter):
        holder[name].data = holder[name].data.to(dtype)
    else:
        holder[name] = holder[name].to(dtype)


def _holds(dtype: torch.dtype, tensor: torch.Tensor) -> bool:
    """Whether no finite number becomes infinite in a dtype."""
    if tensor.numel() == 0 or torch.finfo(dtype).max >= torch.finfo(tensor.dtype).max:
        return True
    largest = tensor.detach().abs().max()
    return not bool(torch.isfinite(largest) & torch.isinf(largest.to(dtype)))


def name_of(dtype: torch.dtype) -> str:
    """Return what files call a dtype.

    >>> name_of(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def _listed(found: Mapping[str, tuple[Any, ...]]) -> str:
    return ", ".join(f"{part} {' and '.join(str(entry).removeprefix('torch.') for entry in entries)}" for part, entries in found.items())
