"""What a launcher asks of a device: capability, number of multiprocessors, and to be the current one.

Tensors that lie on no GPU (Triton's interpreter, compilation ahead of time) stand for the device that :func:`assumed` names, an A100 unless
told otherwise. Nothing here asks the driver twice.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor

A100 = ((8, 0), 108)
"""Compute capability and number of multiprocessors."""

_ASSUMED: ContextVar[tuple[tuple[int, int], int]] = ContextVar("lmmblocks_assumed_device", default=A100)


@contextmanager
def assumed(capability: tuple[int, int], multiprocessors: int) -> Iterator[None]:
    """Let tensors without a GPU stand for this device inside a ``with`` block."""
    token = _ASSUMED.set((capability, multiprocessors))
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability, ``(8, 0)`` for an A100."""
    return _properties(device.index)[0] if device.type == "cuda" else _ASSUMED.get()[0]


def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors (SMs), 108 for an A100."""
    return _properties(device.index)[1] if device.type == "cuda" else _ASSUMED.get()[1]


def launching_on(tensor: Tensor) -> AbstractContextManager:
    """Return a context in which the tensor's device is the current one: Triton launches there, whatever was current before."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


@functools.cache
def _properties(index: int | None) -> tuple[tuple[int, int], int]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    return (properties.major, properties.minor), properties.multi_processor_count
