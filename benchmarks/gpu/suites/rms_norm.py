"""RMS norm, alone and with the residual sum: exactness at the decoders' widths, bandwidth beside torch and Liger-Kernel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lmmblocks import ops

from ..build import Formula, check, lazily, timing
from ..case import Inputs, Suite, Target, Timing

EPS = 1e-5
ROWS, CPU_ROWS = 32768, 1024
WIDTHS = (4096, 5120)


def _ours(backend: str, i: Inputs) -> Any:
    return ops.rms_norm(i["x"], i["weight"], EPS, backend=backend)


def _ours_added(backend: str, i: Inputs) -> Any:
    return ops.add_rms_norm(i["x"], i["residual"], i["weight"], EPS, backend=backend)


def _torch(i: Inputs) -> Any:
    return F.rms_norm(i["x"], i["weight"].shape, i["weight"], EPS)


def _liger() -> Formula:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return lambda i: LigerRMSNormFunction.apply(i["x"], i["weight"], EPS, 0.0, "llama", False)  # not in place: x is read again


def _liger_added() -> Formula:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    return lambda i: LigerFusedAddRMSNormFunction.apply(i["x"], i["residual"], i["weight"], EPS, 0.0, "llama", False)


def _shapes(rows: int, width: int) -> dict[str, tuple[int, ...]]:
    return {"x": (rows, width), "residual": (rows, width), "weight": (width,), "grad": (rows, width)}


def _norm(width: int, mode: str, rows: int = ROWS) -> Timing:
    formulas = {
        "lmmblocks triton": lambda i: _ours("triton", i),
        "lmmblocks reference": lambda i: _ours("reference", i),
        "torch F.rms_norm": _torch,
        "torch.compile": lazily(lambda: torch.compile(_torch)),
        "Liger-Kernel": lazily(_liger),
    }
    tensors = {"fwd": 2, "bwd": 3, "fwd+bwd": 5}[mode]
    return timing("rms_norm", f"{rows}x{width} bf16", mode, _shapes(rows, width), formulas, ("x", "weight"), bytes=tensors * rows * width * 2)


def _added(width: int, mode: str, rows: int = ROWS) -> Timing:
    formulas = {
        "lmmblocks triton": lambda i: _ours_added("triton", i),
        "lmmblocks composed": lambda i: _ours_added("composed", i),
        "torch F.rms_norm": lambda i: F.rms_norm(i["x"] + i["residual"], i["weight"].shape, i["weight"], EPS),
        "Liger-Kernel": lazily(_liger_added),
    }
    tensors = {"fwd": 4, "bwd": 4, "fwd+bwd": 8}[mode]
    size = tensors * rows * width * 2
    return timing("add_rms_norm", f"{rows}x{width} bf16", mode, _shapes(rows, width), formulas, ("x", "residual", "weight"), bytes=size)


def _toy(width: int) -> dict[str, tuple[int, ...]]:
    return _shapes(9, width // 32 + 8)


SUITE = Suite(
    checks=[
        *(check("rms_norm", f"D={d}", _shapes(257, d), _toy(d), _ours, ("x", "weight")) for d in (64, 128, 1152, 4096, 5120, 8192)),
        *(check("add_rms_norm", f"D={d}", _shapes(257, d), _toy(d), _ours_added, ("x", "residual", "weight")) for d in (64, 4096, 5120)),
    ],
    timings=[
        *(_norm(width, mode) for width in WIDTHS for mode in ("fwd", "bwd", "fwd+bwd")),
        *(_added(WIDTHS[0], mode) for mode in ("fwd", "bwd")),
    ],
    cpu=[of(WIDTHS[0], mode, CPU_ROWS) for of in (_norm, _added) for mode in ("fwd", "bwd")],
    targets=[
        *(Target("rms_norm", mode, "", "copy", 0.8) for mode in ("fwd", "bwd")),
        *(Target("rms_norm", mode, "", "Liger-Kernel", 1.5) for mode in ("fwd", "bwd")),
        Target("rms_norm", "fwd", "", "limit", 20.0, "host_us"),
    ],
)
