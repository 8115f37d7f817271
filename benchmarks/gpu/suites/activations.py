"""SwiGLU, GeGLU, QuickGELU and bias+GELU: exactness, bandwidth beside torch and Liger-Kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from lmmblocks import experimental, ops

from ..build import Formula, Shapes, check, lazily, timing
from ..case import Check, Inputs, Suite, Target, Timing

ROWS, WIDTH = 16384, 11008
CPU_ROWS = 256
GATED = ("gate", "up")


def _of(op: str) -> Callable[[str, Inputs], Any]:
    names = {"swiglu": GATED, "geglu": GATED, "quick_gelu": ("x",), "bias_gelu": ("x", "bias")}[op]
    return lambda backend, i: getattr(experimental if op == "bias_gelu" else ops, op)(*(i[name] for name in names), backend=backend)


def _shapes(op: str, rows: int, width: int) -> Shapes:
    names = GATED if op in ("swiglu", "geglu") else ("x",)
    shapes: Shapes = {name: (rows, width) for name in (*names, "grad")}
    return shapes | ({"bias": (width,)} if op == "bias_gelu" else {})


def _wanted(op: str) -> tuple[str, ...]:
    return {"swiglu": GATED, "geglu": GATED, "quick_gelu": ("x",), "bias_gelu": ("x", "bias")}[op]


def _liger_swiglu() -> Formula:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return lambda i: LigerSiLUMulFunction.apply(i["gate"], i["up"])


def _liger_geglu() -> Formula:
    from liger_kernel.ops.geglu import LigerGELUMulFunction

    return lambda i: LigerGELUMulFunction.apply(i["gate"], i["up"])


_TORCH: dict[str, Formula] = {
    "swiglu": lambda i: F.silu(i["gate"]) * i["up"],
    "geglu": lambda i: F.gelu(i["gate"], approximate="tanh") * i["up"],
    "quick_gelu": lambda i: i["x"] * torch.sigmoid(1.702 * i["x"]),
    "bias_gelu": lambda i: F.gelu(i["x"] + i["bias"]),
}
_LIGER = {"swiglu": _liger_swiglu, "geglu": _liger_geglu}
_TENSORS = {"swiglu": (3, 5), "geglu": (3, 5), "quick_gelu": (2, 3), "bias_gelu": (2, 3)}
"""Tensors that forward and backward must move."""


def _timing(op: str, mode: str, quick: bool = True, rows: int = ROWS) -> Timing:
    own = _of(op)
    formulas: dict[str, Formula] = {
        "lmmblocks triton": lambda i: own("triton", i),
        "lmmblocks reference": lambda i: own("reference", i),
        "torch": _TORCH[op],
        "torch.compile": lazily(lambda: torch.compile(_TORCH[op])),
    }
    formulas |= {"Liger-Kernel": lazily(_LIGER[op])} if op in _LIGER else {}
    size = _TENSORS[op][mode == "bwd"] * rows * WIDTH * 2
    return timing(op, f"{rows}x{WIDTH} bf16", mode, _shapes(op, rows, WIDTH), formulas, _wanted(op), bytes=size, quick=quick)


def _checks(op: str) -> list[Check]:
    return [check(op, f"D={d}", _shapes(op, 257, d), _shapes(op, 5, d // 128 + 6), _of(op), _wanted(op)) for d in (4096, 11008, 4304)]


OPS = ("swiglu", "geglu", "quick_gelu", "bias_gelu")
SUITE = Suite(
    checks=[case for op in OPS for case in _checks(op)],
    timings=[_timing(op, mode, op in ("swiglu", "bias_gelu")) for op in OPS for mode in ("fwd", "bwd")],
    cpu=[_timing(op, mode, rows=CPU_ROWS) for op in OPS for mode in ("fwd", "bwd")],
    targets=[
        *(Target("swiglu", mode, "", "copy", 0.8) for mode in ("fwd", "bwd")),
        *(Target("swiglu", mode, "", "Liger-Kernel", 1.5) for mode in ("fwd", "bwd")),
    ],
)
