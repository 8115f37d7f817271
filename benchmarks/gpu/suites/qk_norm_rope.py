"""Norm and rotation of queries and keys in one pass: exactness, bandwidth beside our two kernels one after the other, and beside torch.compile.

Bytes are the floor: forward reads and writes heads once, backward reads them and their gradients and writes gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lmmblocks import ops

from ..build import Formula, lazily, with_gradients
from ..case import OURS, Call, Check, Inputs, Suite, Target, Timing, in_mode

ROWS, HEADS, KV_HEADS, WIDTH = 16384, 32, 8, 128
WANTED = ("q", "k", "q_weight", "k_weight")
BYTES = {mode: passes * ROWS * (HEADS + KV_HEADS) * WIDTH * 2 for mode, passes in {"fwd": 2, "bwd": 3, "fwd+bwd": 5}.items()}


def _tensors(rows: int, heads: int, kv_heads: int, width: int, device: torch.device) -> Inputs:
    cos, sin = ops.rope_table(torch.arange(rows, device=device) % 701, width)
    q, k, grad = (torch.randn(rows, n, width, device=device) for n in (heads, kv_heads, heads))
    weights = {name: 1 + 0.1 * torch.randn(width, device=device) for name in ("q_weight", "k_weight")}
    return {"q": q, "k": k, **weights, "cos": cos, "sin": sin, "grad": grad}


def _arguments(i: Inputs) -> tuple[torch.Tensor, ...]:
    return tuple(i[name] for name in (*WANTED, "cos", "sin"))


def _ours(backend: str, i: Inputs) -> Any:
    return ops.qk_norm_rope(*_arguments(i), backend=backend)


def _in_turn(i: Inputs) -> Any:
    """Norm and rotation by kernels of their own."""
    q, k = (ops.rms_norm(i[name], i[f"{name}_weight"], backend="triton") for name in "qk")
    return ops.rope(q, k, i["cos"], i["sin"], backend="triton")


def _check(width: int, heads: int, kv_heads: int) -> Check:
    def inputs(device: torch.device, toy: bool) -> Inputs:
        return _tensors(7, 4, 2, width // 8, device) if toy else _tensors(300, heads, kv_heads, width, device)

    return Check("qk_norm_rope", f"E={width} h{heads}/{kv_heads}", inputs, with_gradients(_ours, WANTED))


def _inputs(device: torch.device, rows: int = ROWS) -> Inputs:
    found = _tensors(rows, HEADS, KV_HEADS, WIDTH, device)
    found |= {name: found[name].bfloat16() for name in (*WANTED, "grad")}
    return found | {name: found[name].requires_grad_() for name in WANTED}


def _compiled() -> Formula:
    compiled = torch.compile(ops.qk_norm_rope)
    return lambda i: compiled(*_arguments(i), backend="reference")


def _both(formula: Formula, mode: str) -> Callable[[Inputs], Call]:
    """Queries and keys both get a gradient, as in a model: the keys' is a part of the queries'."""

    def prepare(i: Inputs) -> Call:
        def call() -> torch.Tensor:
            q, k = formula(i)
            return q if mode == "fwd" else torch.cat([q.flatten(), k.flatten()])

        grad = torch.cat([i["grad"].flatten(), i["grad"][:, :KV_HEADS].flatten()])
        return in_mode(mode, call, tuple(i[name] for name in WANTED), grad)

    return prepare


def _timing(mode: str, rows: int = ROWS) -> Timing:
    ways: dict[str, Formula] = {
        f"{OURS}triton": lambda i: _ours("triton", i),
        f"{OURS}reference": lambda i: _ours("reference", i),
        "norm, then rope (triton)": _in_turn,
        "torch.compile": lazily(_compiled),
    }
    shape = f"{rows} rows h{HEADS}/{KV_HEADS} d{WIDTH} bf16"
    providers = {name: _both(way, mode) for name, way in ways.items()}
    return Timing("qk_norm_rope", shape, mode, lambda device: _inputs(device, rows), providers, bytes=BYTES[mode] * rows // ROWS)


SUITE = Suite(
    checks=[_check(128, 8, 2), _check(64, 4, 4), _check(256, 4, 1)],
    timings=[_timing(mode) for mode in ("fwd", "fwd+bwd")],
    cpu=[_timing(mode, 512) for mode in ("fwd", "fwd+bwd")],
    targets=[Target("qk_norm_rope", "fwd", "", "copy", 0.8), Target("qk_norm_rope", "fwd", "", "norm, then rope (triton)", 1.3)],
)
