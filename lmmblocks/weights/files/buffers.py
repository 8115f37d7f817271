"""Buffers that no file holds (rotary frequencies, position tables): computed again where a module was built without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn


def compute_buffers(module: nn.Module, make: Callable[[], nn.Module], device: torch.device | str = "cpu") -> None:
    """Like :func:`copy_buffers`, but build the second module with its parameters on the meta device, where they take no memory.

    Args:
        module: built on the meta device and filled since then.
        make: the constructor of one block, which computes no buffer from a parameter.
        device: where the buffers go.
    """
    with _parameters_without_memory():
        copy_buffers(module, make, device)


def copy_buffers(module: nn.Module, make: Callable[[], nn.Module], device: torch.device | str = "cpu") -> None:
    """Give the buffers of a module that are still on the meta device what its constructor computes; does nothing when there are none.

    Args:
        module: built on the meta device and filled since then.
        make: builds such a module a second time.
        device: where the buffers go.
    """
    waiting = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    computed = dict(make().named_buffers()) if waiting else {}
    for name in waiting:
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = computed[name].to(device)


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Within the block, a parameter goes to the meta device as soon as a module gets it; everything else is computed as usual."""
    # For the whole process while the block runs: constructors call this method themselves, there is no other way in.
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: Any) -> None:
        register(self, name, None if param is None else nn.Parameter(param.detach().to("meta"), param.requires_grad))

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
