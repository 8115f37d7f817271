"""Registration of kernels as torch ops, so that tracing, ``torch.compile`` and ``opcheck`` see one opaque call with known shapes.

An op is defined with its schema, a launcher and a shape function; autograd stands beside it in an ``autograd.Function`` of the op's own file.
Launchers are named by module and function and imported at the first call: no module of this package needs Triton or lmmblocks._C to be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

NAMESPACE = "lmmblocks"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_DEVICES = ("CUDA", "CPU")  # on CPU tensors a launcher runs in Triton's interpreter, or in the emulator of csrc/simt


def kernel_op(schema: str, launcher: str, fake: Callable[..., Any]) -> Any:
    """Define ``lmmblocks::name`` and return its overload, ready to be called.

    Args:
        schema: ``"name(Tensor x, float eps) -> Tensor"``; arguments that are written to are marked ``Tensor(a!)``.
        launcher: ``"module:function"`` with the arguments of the schema; a module without a dot lies below ``lmmblocks.kernels``, one with a dot
            is named in full, such as ``"lmmblocks.ops.splice_cuda:splice_fwd"``.
        fake: same arguments; returns empty tensors of the right shapes, dtypes and strides.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema)
    run = _imported_at_first_call(*launcher.split(":"))
    for device in _DEVICES:
        _LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.lmmblocks, name).default


def _imported_at_first_call(module: str, function: str) -> Callable[..., Any]:
    found: list[Callable[..., Any]] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        if not found:
            home = module if "." in module else f"{NAMESPACE}.kernels.{module}"
            found.append(getattr(import_module(home), function))
        return found[0](*args, **kwargs)

    return run
