"""What a launcher asks of a device: capability, multiprocessors, shared memory, whether a graph is captured; and to be the current one.

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

SHARED_BYTES = {(8, 0): 166912, (8, 7): 166912, (9, 0): 232448, (10, 0): 232448, (10, 3): 232448}
"""Most shared memory of one CTA that asks for it, by compute capability."""

LEAST_SHARED_BYTES = 101376
"""On all others from 8.0 on: 8.6, 8.9 and 12.0."""

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


def shared_bytes(device: torch.device) -> int:
    """Return the most shared memory that a CTA may ask for: 163 KiB on an A100, 99 KiB on an RTX 3090, 4090 or 5090, an A10 or an L4."""
    return _properties(device.index)[2] if device.type == "cuda" else SHARED_BYTES.get(capability(device), LEAST_SHARED_BYTES)


def capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured: what is launched now is launched again on other data of the same shapes."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def launching_on(tensor: Tensor) -> AbstractContextManager:
    """Return a context in which the tensor's device is the current one: Triton launches there, whatever was current before."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


@functools.cache
def _properties(index: int | None) -> tuple[tuple[int, int], int, int]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    found = properties.major, properties.minor
    known = SHARED_BYTES.get(found, LEAST_SHARED_BYTES)  # where torch doesn't say
    return found, properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin", known)
