"""Record what launchers would launch, without a GPU: kernel, arguments and options of each call.

Launchers run on tensors of the meta device, which hold no data; Triton's ``run`` is replaced while they do. What is compiled later is thus
exactly what a launcher asks for, not a second list that must agree with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from triton.runtime.jit import JITFunction

OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
DIVISIBLE = 16
_POINTERS = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64",
    torch.int8: "*i8", torch.uint8: "*u8", torch.bool: "*i1", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One kernel as it was to be launched.

    Attributes:
        kernel: the jitted function.
        arguments: name -> value, in the order of the kernel's parameters.
        options: ``num_warps``, ``num_stages`` and the like, where given.
    """

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.fn.__name__

    def source(self) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], list]]:
        """Return signature, constants and attributes, specialised as Triton does: 1 and None are constants, multiples of 16 are known to be."""
        signature: dict[str, str] = {}
        constants: dict[tuple[int], Any] = {}
        attributes: dict[tuple[int], list] = {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            is_one = isinstance(value, int) and not isinstance(value, bool) and value == 1
            if parameter.is_constexpr or value is None or (is_one and not parameter.do_not_specialize):
                signature[parameter.name], constants[(index,)] = "constexpr", value
                continue
            signature[parameter.name] = _type_of(value)
            if not parameter.do_not_specialize and _is_divisible(value):
                attributes[(index,)] = [["tt.divisibility", DIVISIBLE]]
        return signature, constants, attributes

    def identity(self) -> tuple[Any, ...]:
        """Return what is compiled: launches with one identity give one kernel."""
        return (self.kernel.fn.__module__, self.name, *map(repr, self.source()), repr(sorted(self.options.items())))


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"a launch argument of type {type(value).__name__} is not known here: add it to {__name__}._type_of")


def _is_divisible(value: Any) -> bool:
    if isinstance(value, torch.Tensor):  # allocations start on 256 bytes
        return value.storage_offset() * value.element_size() % DIVISIBLE == 0
    return isinstance(value, int) and not isinstance(value, bool) and value % DIVISIBLE == 0


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches inside a ``with`` block instead of running them."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs and name not in kernel.arg_names}
        bound = inspect.signature(kernel.fn).bind(*args, **kwargs)
        bound.apply_defaults()
        launches.append(Launch(kernel, dict(bound.arguments), options))

    original = JITFunction.run
    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = original


def launches_of(call: Callable[[], Any]) -> list[Launch]:
    """Return what one call launches."""
    with recording() as launches:
        call()
    return launches
