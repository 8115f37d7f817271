"""Launches of the activations: MLP widths of Vicuna-7B (plain and fused), Gemma, CLIP-L and LLaVA's connector."""

import torch
from lmmblocks.kernels.activations import activation_bwd, activation_fwd
from lmmblocks.kernels.bias_gelu import bias_gelu_bwd, bias_gelu_fwd

from lmmblocks.ops.activations import SIGMOID_ARGUMENTS

ROWS = 16384


def _both(op: str, width: int, fused: bool = False, dtype: torch.dtype = torch.bfloat16) -> None:
    gated = op != "quick_gelu"
    columns = width * (2 if fused else 1)
    gate = torch.empty(ROWS, columns, dtype=dtype, device="meta")
    up = torch.empty(ROWS, columns, dtype=dtype, device="meta") if gated else None
    if fused:
        gate, up = gate.chunk(2, -1)
    y = activation_fwd(gate, up, *SIGMOID_ARGUMENTS[op])
    activation_bwd(gate, up, y, *SIGMOID_ARGUMENTS[op])


def _bias_gelu(width: int, dtype: torch.dtype = torch.bfloat16) -> None:
    x, bias = (
        torch.empty(ROWS, width, dtype=dtype, device="meta"),
        torch.empty(width, dtype=dtype, device="meta"),
    )
    bias_gelu_bwd(x, bias, bias_gelu_fwd(x, bias))


CASES = {
    "swiglu D=11008 bf16": lambda: _both("swiglu", 11008),
    "swiglu D=11008 fused bf16": lambda: _both("swiglu", 11008, fused=True),
    "swiglu D=11008 fp32": lambda: _both("swiglu", 11008, dtype=torch.float32),
    "geglu D=16384 bf16": lambda: _both("geglu", 16384),
    "quick_gelu D=4096 bf16": lambda: _both("quick_gelu", 4096),
    "bias_gelu D=4096 bf16": lambda: _bias_gelu(4096),
    "bias_gelu D=128 bf16": lambda: _bias_gelu(128),
}
