"""Attention of a new row against a long cache: exactness of split keys, bandwidth of reading the cache.

Beside FlashAttention-2, cuDNN and our kernel that splits no keys.

A step reads every key and value once; nothing else is worth counting.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lmmblocks import ops
from lmmblocks.spec import Segments

from ..case import HALF, OURS, Call, Check, Inputs, Outputs, Suite, Target, Timing, in_cuda_too
from ..plain_attention import plain_attention

KERNEL, CUDA_KERNEL = "triton_decode", "cuda_decode"
CUDA_WIDTHS = (64, 128, 256)
"""Head widths that the CUDA kernel is compiled for."""

TOY_KEYS = (330, 140)
"""The first is long enough to be split."""


@dataclass(frozen=True)
class Shape:
    """Sequences that are decoded side by side: rows of their caches, heads and head width."""

    name: str
    keys: tuple[int, ...]
    heads: int
    kv_heads: int
    width: int
    quick: bool = True

    @property
    def bytes(self) -> int:
        """Keys and values in bf16."""
        return 2 * sum(self.keys) * self.kv_heads * self.width * 2


SHAPES = (
    Shape("1x4096 h32 d128", (4096,), 32, 32, 128),
    Shape("1x32768 h32/8 d128", (32768,), 32, 8, 128),
    Shape("8x4096 h32/8 d128", (4096,) * 8, 32, 8, 128),
    Shape("64x2048 h32/8 d128", (2048,) * 64, 32, 8, 128, quick=False),
    Shape("mixed 40k h32/8 d128", (16384, 9000, 6000, 4096, 2500, 1100, 640, 333), 32, 8, 128),
    Shape("1x8192 h14/2 d64", (8192,), 14, 2, 64, quick=False),
)


def _tensors(rows: int, keys: tuple[int, ...], heads: int, kv_heads: int, width: int, device: torch.device, slack: int = 0) -> Inputs:
    """Random rows and keys, and so many rows of NaN after both."""
    q = torch.randn(rows * len(keys) + slack, heads, width, device=device)
    k, v = (torch.randn(sum(keys) + slack, kv_heads, width, device=device) for _ in range(2))
    for tensor, used in ((q, rows * len(keys)), (k, sum(keys)), (v, sum(keys))):
        tensor[used:] = float("nan")
    return {"q": q, "k": k, "v": v, "segments": Segments.of((rows,) * len(keys), keys, device=device)}


def _check(case: str, rows: int, keys: tuple[int, ...], heads: int, kv_heads: int, width: int, slack: int = 0, **options: Any) -> Check:
    def inputs(device: torch.device, toy: bool) -> Inputs:
        small = tuple(map(min, keys, TOY_KEYS)) if toy else keys
        return _tensors(rows, small, heads, kv_heads, width, device, slack)

    def run(backend: str, i: Inputs) -> Outputs:
        with torch.no_grad():
            return (ops.attention(i["q"], i["k"], i["v"], i["segments"], backend=backend, **options),)

    def plain(i: Inputs) -> Outputs:
        return (plain_attention(i, **options),)

    return Check("attention", f"decode: {case}", inputs, run, dtypes=HALF, implementation=KERNEL, plain=plain)


def _inputs(shape: Shape) -> Callable[[torch.device], Inputs]:
    def make(device: torch.device) -> Inputs:
        found = _tensors(1, shape.keys, shape.heads, shape.kv_heads, shape.width, device)
        return found | {name: found[name].bfloat16() for name in ("q", "k", "v")}

    return make


def _packed(backend: str) -> Callable[[Inputs], Call]:
    def prepare(i: Inputs) -> Call:
        return lambda: ops.attention(i["q"], i["k"], i["v"], i["segments"], backend=backend)

    return prepare


def _sdpa(backend: str | None = None) -> Callable[[Inputs], Call]:
    """``scaled_dot_product_attention`` on equal caches as a batch, held to one of its backends if one is named."""

    def prepare(i: Inputs) -> Call:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        batch = i["q"].shape[0]
        q, k, v = (i[name].unflatten(0, (batch, -1)).transpose(1, 2) for name in ("q", "k", "v"))

        def call() -> torch.Tensor:
            with nullcontext() if backend is None else sdpa_kernel(getattr(SDPBackend, backend)):
                return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])

        return call

    return prepare


def _timing(shape: Shape) -> Timing:
    ours = (KERNEL, "triton", *((CUDA_KERNEL,) if shape.width in CUDA_WIDTHS else ()))
    providers = {f"{OURS}{name}": _packed(name) for name in ours}
    providers |= {f"{OURS}{name}": _packed(name) for name in ("torch", "reference")}
    providers |= {label: _packed(name) for name, label in {"sdpa_flash": "flash varlen (torch)", "flash_attn": "flash-attn"}.items()}
    if len(set(shape.keys)) == 1:
        providers |= {"SDPA flash": _sdpa("FLASH_ATTENTION"), "SDPA cuDNN": _sdpa("CUDNN_ATTENTION"), "SDPA": _sdpa()}
    return Timing("attention_decode", shape.name, "fwd", _inputs(shape), providers, bytes=shape.bytes, quick=shape.quick)


CHECKS = [
    _check("d128 groups of 4, slack", 1, (5000, 70, 900), 8, 2, 128, slack=3),
    _check("d128, every head its own", 1, (3000,), 2, 2, 128),
    _check("d64 groups of 7, 3 rows", 3, (2000, 130), 14, 2, 64),
    _check("d256", 1, (3000,), 4, 2, 256),
    _check("16 rows, window, softcap", 16, (4000, 100), 4, 2, 64, window=1500, softcap=30.0),
]

SUITE = Suite(
    checks=[*in_cuda_too(CHECKS, CUDA_KERNEL), _check("d72", 1, (1500,), 2, 2, 72)],
    timings=[_timing(shape) for shape in SHAPES],
    cpu=[_timing(Shape("2x1024 h8/2 d128", (1024,) * 2, 8, 2, 128))],
    targets=[
        Target("attention_decode", "fwd", shape.name, "flash varlen (torch)", 1.0, ours=ours)
        for shape in SHAPES
        if shape.quick
        for ours in (f"{OURS}{KERNEL}", f"{OURS}{CUDA_KERNEL}")
    ],
)
