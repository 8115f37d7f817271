"""Layer norm of the ViTs: exactness at their widths, bandwidth beside torch and Liger-Kernel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lmmblocks import ops

from ..build import Formula, check, lazily, timing
from ..case import Inputs, Suite, Target, Timing

EPS = 1e-5
ROWS, CPU_ROWS = 64 * 577, 2 * 577
WANTED = ("x", "weight", "bias")


def _ours(backend: str, i: Inputs) -> Any:
    return ops.layer_norm(i["x"], i["weight"], i["bias"], EPS, backend=backend)


def _torch(i: Inputs) -> Any:
    return F.layer_norm(i["x"], i["weight"].shape, i["weight"], i["bias"], EPS)


def _liger() -> Formula:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return lambda i: LigerLayerNormFunction.apply(i["x"], i["weight"], i["bias"], EPS)


def _shapes(rows: int, width: int) -> dict[str, tuple[int, ...]]:
    return {"x": (rows, width), "weight": (width,), "bias": (width,), "grad": (rows, width)}


def _timing(width: int, mode: str, rows: int = ROWS) -> Timing:
    formulas = {
        "lmmblocks triton": lambda i: _ours("triton", i),
        "lmmblocks reference": lambda i: _ours("reference", i),
        "torch F.layer_norm": _torch,
        "torch.compile": lazily(lambda: torch.compile(_torch)),
        "Liger-Kernel": lazily(_liger),
    }
    tensors = {"fwd": 2, "bwd": 3}[mode]
    return timing("layer_norm", f"{rows}x{width} bf16", mode, _shapes(rows, width), formulas, WANTED, bytes=tensors * rows * width * 2)


SUITE = Suite(
    checks=[check("layer_norm", f"C={c}", _shapes(257, c), _shapes(9, c // 32 + 8), _ours, WANTED) for c in (768, 1024, 1152, 1664)],
    timings=[_timing(1024, mode) for mode in ("fwd", "bwd")],
    cpu=[_timing(1024, mode, CPU_ROWS) for mode in ("fwd", "bwd")],
    targets=[Target("layer_norm", mode, "", "copy", 0.8) for mode in ("fwd", "bwd")],
)
