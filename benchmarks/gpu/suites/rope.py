"""Rotary embedding of queries and keys: exactness, bandwidth beside torch and Liger-Kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lmmblocks import ops

from ..build import Formula, lazily, with_gradients
from ..case import Call, Check, Inputs, Suite, Target, Timing, in_mode

ROWS, HEADS, KV_HEADS, WIDTH = 16384, 32, 8, 128
WANTED = ("q", "k")


def _tensors(rows: int, heads: int, kv_heads: int, width: int, turned: int, device: torch.device) -> Inputs:
    positions = torch.arange(rows, device=device) % 701
    cos, sin = ops.rope_table(positions, turned)
    q, k = (torch.randn(rows, n, width, device=device) for n in (heads, kv_heads))
    return {"q": q, "k": k, "cos": cos, "sin": sin, "grad": torch.randn(rows, heads, width, device=device)}


def _ours(backend: str, i: Inputs) -> Any:
    return ops.rope(i["q"], i["k"], i["cos"], i["sin"], backend=backend)


def _check(width: int, turned: int) -> Check:
    def inputs(device: torch.device, toy: bool) -> Inputs:
        return _tensors(7, 4, 2, width // 8, turned // 8, device) if toy else _tensors(300, 8, 2, width, turned, device)

    return Check("rope", f"E={width} turned {turned}", inputs, with_gradients(_ours, WANTED))


def _inputs(device: torch.device, rows: int = ROWS) -> Inputs:
    found = _tensors(rows, HEADS, KV_HEADS, WIDTH, WIDTH, device)
    found |= {name: found[name].bfloat16() for name in (*WANTED, "grad")}
    return found | {name: found[name].requires_grad_() for name in WANTED}


def _liger() -> Formula:
    from liger_kernel.ops.rope import LigerRopeFunction

    def formula(i: Inputs) -> Any:
        q, k = (i[name].transpose(0, 1)[None] for name in WANTED)
        cos, sin = (i[name][None].to(q.dtype) for name in ("cos", "sin"))
        return LigerRopeFunction.apply(q.clone(), k.clone(), cos, sin)  # it turns in place

    return formula


def _both(formula: Callable[[Inputs], Any], mode: str) -> Callable[[Inputs], Call]:
    """Queries and keys both get a gradient, as in a model."""

    def prepare(i: Inputs) -> Call:
        def call() -> torch.Tensor:
            q, k = formula(i)
            return torch.cat([q.flatten(), k.flatten()]) if mode != "fwd" else q

        size = i["q"].shape[0] * (HEADS + KV_HEADS) * WIDTH
        grad = torch.randn(size, device=i["q"].device, dtype=i["q"].dtype) if mode != "fwd" else i["grad"]
        return in_mode(mode, call, tuple(i[name] for name in WANTED), grad)

    return prepare


def _rotate_half(i: Inputs) -> Any:
    """As decoders in transformers turn them: halves swapped, one negated."""
    cos, sin = (i[name][:, None].to(i["q"].dtype) for name in ("cos", "sin"))
    halves = {name: i[name].chunk(2, -1) for name in WANTED}
    return tuple(i[name] * cos + torch.cat([-halves[name][1], halves[name][0]], -1) * sin for name in WANTED)


def _timing(mode: str, rows: int = ROWS) -> Timing:
    formulas: dict[str, Formula] = {
        "lmmblocks triton": lambda i: _ours("triton", i),
        "lmmblocks reference": lambda i: _ours("reference", i),
        "torch rotate_half": _rotate_half,
        "torch.compile": lazily(lambda: torch.compile(lambda i: _ours("reference", i))),
        "Liger-Kernel": lazily(_liger),
    }
    providers = {name: _both(formula, mode) for name, formula in formulas.items()}
    size = 2 * rows * (HEADS + KV_HEADS) * WIDTH * 2
    return Timing("rope", f"T={rows} h{HEADS}/{KV_HEADS} d{WIDTH} bf16", mode, lambda device: _inputs(device, rows), providers, bytes=size)


SUITE = Suite(
    checks=[_check(128, 128), _check(64, 64), _check(96, 96), _check(128, 64)],
    timings=[_timing("fwd"), _timing("bwd")],
    cpu=[_timing(mode, 512) for mode in ("fwd", "bwd")],
    targets=[Target("rope", "bwd", "", "copy", 0.8), Target("rope", "bwd", "", "Liger-Kernel", 1.5)],
)
