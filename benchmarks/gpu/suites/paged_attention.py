"""Attention of new rows against a cache in pages: exactness, and bandwidth beside the same keys packed and beside gathering them first.

A step reads every key and value once; a page table and lengths beside them are nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from lmmblocks import ops
from lmmblocks.spec import Segments

from ..case import HALF, OURS, Call, Check, Inputs, Outputs, Suite, Target, Timing, in_cuda_too
from ..plain_attention import plain_attention
from .attention_decode import TOY_KEYS

NOWHERE = -7
"""In the table where a sequence has no page."""

PLACES = ("k_pages", "v_pages", "page_table", "lengths")
SEQUENCES, KEYS, HEADS, KV_HEADS, WIDTH, PAGE_ROWS = 8, 4096, 32, 8, 128, 64
SHAPE = f"{SEQUENCES}x{KEYS} h{HEADS}/{KV_HEADS} d{WIDTH}, pages of {PAGE_ROWS}"


def _tensors(rows: int, keys: tuple[int, ...], heads: int, kv_heads: int, width: int, page_rows: int, device: torch.device) -> Inputs:
    """Keys packed, and the same in pages that lie in a random order; rows of pages that hold nothing are NaN."""
    q = torch.randn(rows * len(keys), heads, width, device=device)
    k, v = (torch.randn(sum(keys), kv_heads, width, device=device) for _ in range(2))
    counts = [-(-length // page_rows) for length in keys]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).split(counts)
    table = torch.full((len(keys), max(counts)), NOWHERE, dtype=torch.int32)
    pages = [torch.full((sum(counts), page_rows, kv_heads, width), float("nan"), device=device) for _ in range(2)]
    first = 0
    for sequence, (length, own) in enumerate(zip(keys, order)):
        table[sequence, : len(own)] = own
        for packed, paged in ((k, pages[0]), (v, pages[1])):
            held = F.pad(packed[first : first + length], (0, 0, 0, 0, 0, len(own) * page_rows - length), value=float("nan"))
            paged[own.to(device)] = held.unflatten(0, (-1, page_rows))
        first += length
    lengths = torch.tensor(keys, dtype=torch.int32, device=device)
    inputs: Inputs = {"q": q, "k": k, "v": v, "segments": Segments.of((rows,) * len(keys), keys, device=device)}
    return inputs | dict(zip(PLACES, (*pages, table.to(device), lengths)))


def _paged(backend: str, i: Inputs, **options: Any) -> Any:
    return ops.paged_attention(i["q"], *(i[name] for name in PLACES), backend=backend, **options)


def _check(case: str, rows: int, keys: tuple[int, ...], heads: int, kv_heads: int, width: int, page_rows: int, **options: Any) -> Check:
    mask = {name: options[name] for name in options if name != "part_keys"}

    def inputs(device: torch.device, toy: bool) -> Inputs:
        small = tuple(map(min, keys, TOY_KEYS)) if toy else keys
        return _tensors(rows, small, heads, kv_heads, width, page_rows, device)

    def run(backend: str, i: Inputs) -> Outputs:
        with torch.no_grad():
            return (_paged(backend, i, **options),)

    def plain(i: Inputs) -> Outputs:
        return (plain_attention(i, **mask),)

    return Check("paged_attention", case, inputs, run, dtypes=HALF, plain=plain)


def _inputs(device: torch.device, sequences: int, keys: int) -> Inputs:
    found = _tensors(1, (keys,) * sequences, HEADS, KV_HEADS, WIDTH, PAGE_ROWS, device)
    return {name: x.bfloat16() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for name, x in found.items()}


def _ours(backend: str) -> Callable[[Inputs], Call]:
    return lambda i: lambda: _paged(backend, i)


def _packed(backend: str) -> Callable[[Inputs], Call]:
    """The same keys without pages: what the table costs."""
    return lambda i: lambda: ops.attention(i["q"], i["k"], i["v"], i["segments"], backend=backend)


def _gathered(i: Inputs) -> Call:
    """Copy the pages into a batch, then SDPA: what is done without a kernel for pages."""

    def call() -> torch.Tensor:
        k, v = (i[name][i["page_table"]].flatten(1, 2).transpose(1, 2) for name in ("k_pages", "v_pages"))
        return F.scaled_dot_product_attention(i["q"][:, :, None], k, v, enable_gqa=True)

    return call


CHECKS = [
    _check("d128 groups of 4", 1, (5000, 70, 900), 8, 2, 128, 64),
    _check("d64, 3 rows, parts of 256 keys", 3, (2000, 130), 14, 2, 64, 16, part_keys=256),
    _check("d256, window, softcap", 2, (3000, 40), 4, 2, 256, 32, window=1500, softcap=30.0),
]


def _timing(sequences: int, keys: int, shape: str) -> Timing:
    providers = {
        "lmmblocks triton": _ours("triton"),
        "lmmblocks cuda": _ours("cuda"),
        "lmmblocks reference": _ours("reference"),
        "triton, packed": _packed("triton_decode"),
        "cuda, packed": _packed("cuda_decode"),
        "gather + SDPA": _gathered,
    }
    size = 2 * sequences * keys * KV_HEADS * WIDTH * 2
    return Timing("paged_attention", shape, "fwd", lambda device: _inputs(device, sequences, keys), providers, bytes=size)


SUITE = Suite(
    checks=in_cuda_too(CHECKS),
    timings=[_timing(SEQUENCES, KEYS, SHAPE)],
    cpu=[_timing(2, 1024, f"2x1024 h{HEADS}/{KV_HEADS} d{WIDTH}, pages of {PAGE_ROWS}")],
    targets=[
        *(Target("paged_attention", "fwd", SHAPE, f"{name}, packed", 0.95, ours=OURS + name) for name in ("triton", "cuda")),
        Target("paged_attention", "fwd", SHAPE, "gather + SDPA", 2.0),
    ],
)
