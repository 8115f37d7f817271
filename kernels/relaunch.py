"""Kernels that cost the host less from the second launch on: what Triton has compiled is found by a key of our own and launched directly.

Motivation: a launch by ``kernel[grid](...)`` costs 8 us for 20 arguments. It binds them to names, asks what is special about each, writes all answers
into a string and looks that up; what it finds is launched in 1.5 us. ``benchmarks/host_cpu.py`` measures it.

How it works: Triton compiles a kernel anew for other types, for constants, for whole numbers that are 1 or multiples of 16 or don't fit 32 bits,
and for pointers that are not on 16 bytes. The key has whatever could change that: types and dtypes, options, the device, and every number itself,
but for those that the kernel does not specialise. Launches with a pointer off 16 bytes or such a number beyond 32 bits go by Triton.
So the key tells apart all that Triton does, and more; what is not found is launched by Triton, which then says what it launched.

Non-goals: other versions of Triton than those whose rules these are, other backends (AMD's looks at sizes too), the interpreter: there a kernel
stays what it is. Not looked at from the second launch on: whether global constants of the kernel's module have changed, or ``TRITON_DEBUG``.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction

KNOWN_VERSIONS = ("3.6", "3.7", "3.8")
"""Of Triton, whose rules of specialisation are those above."""

ALIGNED_BYTES, BEYOND_32_BITS = 16, 2**31

KEPT = 512
"""Compiled kernels of one list of types; where sizes of a stride or a constant never end, all are forgotten at so many."""

Picked = Callable[[tuple[Any, ...]], tuple[Any, ...]]


class _Known(NamedTuple):
    """What was launched with arguments of one list of types.

    Attributes:
        tensors: picks these from the arguments.
        counts: likewise the whole numbers that the kernel doesn't specialise.
        others: likewise all others.
        compiled: kernels by key.
    """

    tensors: Picked
    counts: Picked
    others: Picked
    compiled: dict[tuple[Any, ...], CompiledKernel]


class Relaunched:
    """A kernel, to be launched as ``kernel[grid](*arguments, **options)`` with all arguments by position, a tensor among them.

    Attributes:
        kernel: Triton's own.
    """

    def __init__(self, kernel: JITFunction) -> None:
        self.kernel = kernel
        unspecialised = set(kernel.do_not_specialize)
        self._counted = [name in unspecialised or place in unspecialised for place, name in enumerate(kernel.arg_names)]
        self._known: dict[tuple[type, ...], _Known] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return functools.partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *arguments: Any, **options: Any) -> Any:
        """Launch, and return what was launched, as Triton does."""
        kinds = tuple(map(type, arguments))
        pick_tensors, pick_counts, pick_others, compiled = self._known.get(kinds) or self._know(kinds)
        tensors, starts, counts = pick_tensors(arguments), 0, 0
        for tensor in tensors:
            starts |= tensor.data_ptr()
        for count in pick_counts(arguments):
            counts |= count  # negative where one is, and as wide as the widest
        if starts % ALIGNED_BYTES or not 0 <= counts < BEYOND_32_BITS or self.kernel.pre_run_hooks:
            return self.kernel[grid](*arguments, **options)
        key = (tensors[0].get_device(), *[tensor.dtype for tensor in tensors], *pick_others(arguments), *options.items())
        found = compiled.get(key)
        if found is not None:
            found[(*grid, 1, 1)[:3]](*arguments)
            return found
        launched = self.kernel[grid](*arguments, **options)
        if isinstance(launched, CompiledKernel):
            if len(compiled) >= KEPT:
                compiled.clear()
            compiled[key] = launched
        return launched

    def _know(self, kinds: tuple[type, ...]) -> _Known:
        if len(kinds) != len(self._counted):
            raise TypeError(f"{self.kernel.__name__} takes {len(self._counted)} arguments by position, found {len(kinds)}")
        everywhere = range(len(kinds))
        tensors = [place for place in everywhere if issubclass(kinds[place], Tensor)]
        counts = [place for place in everywhere if self._counted[place] and kinds[place] is int]
        others = [place for place in everywhere if place not in tensors and place not in counts]
        return self._known.setdefault(kinds, _Known(_picking(tensors), _picking(counts), _picking(others), {}))


def relaunched(kernel: Any) -> Any:
    """Return the kernel that ``triton.jit`` made, launched again at less cost where that is known to be right."""
    known = triton.__version__.startswith(tuple(f"{version}." for version in KNOWN_VERSIONS))
    return Relaunched(kernel) if known and torch.version.hip is None and isinstance(kernel, JITFunction) else kernel


def _picking(places: list[int]) -> Picked:
    """Return what picks the arguments at these places; ``itemgetter`` returns no tuple for less than two."""
    return operator.itemgetter(*places) if len(places) > 1 else lambda arguments: tuple(arguments[place] for place in places)
