"""Registration of kernels as torch ops, so that tracing, ``torch.compile`` and ``opcheck`` see one opaque call with known shapes.

An op is defined with its schema, a launcher and a shape function; autograd stands beside it in an ``autograd.Function`` of the op's own file.
Launchers are named by module and function and imported at the first call: no module of this package needs Triton or lmmblocks._C to be imported.

In eager mode a call goes straight to its launcher: torch's dispatcher finds the same function, at the price of several microseconds of the host.
It is asked wherever somebody listens: while tracing or profiling, under a mode or a transform, and for tensors of other classes or without data.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

NAMESPACE = "lmmblocks"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_DEVICES = ("CUDA", "CPU")  # on CPU tensors a launcher runs in Triton's interpreter, or in the emulator of csrc/simt
_PLAIN = frozenset({Tensor, Parameter, int, float, bool, type(None), tuple, list})


class KernelOp:
    """An op of ours, to be called with the arguments of its schema, by position.

    Attributes:
        op: its overload, as ``torch.ops`` has it.
    """

    def __init__(self, op: Any, launch: Callable[..., Any]) -> None:
        self.op, self._launch = op, launch

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or not _PLAIN.issuperset(map(type, args)) or args[0].is_meta or _somebody_listens():
            return self.op(*args)
        return self._launch(*args)


def _somebody_listens() -> bool:
    """Whether calls must be seen by torch: a dispatch mode, a transform of functions, or the profiler."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.maybe_current_level() is not None or torch._C._autograd._profiler_enabled()


def unrecorded(*tensors: Tensor) -> bool:
    """Return whether autograd, backwards and forwards, has nothing to do with a call of these tensors; never while compiling, which asks later."""
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0:
        return False
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return False
    return True


def kernel_op(schema: str, launcher: str, fake: Callable[..., Any]) -> KernelOp:
    """Define ``lmmblocks::name`` and return it, ready to be called.

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
    return KernelOp(getattr(torch.ops.lmmblocks, name).default, run)


def _imported_at_first_call(module: str, function: str) -> Callable[..., Any]:
    found: list[Callable[..., Any]] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        if not found:
            home = module if "." in module else f"{NAMESPACE}.kernels.{module}"
            found.append(getattr(import_module(home), function))
        return found[0](*args, **kwargs)

    return run
