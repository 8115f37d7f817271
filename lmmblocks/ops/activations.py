"""Gated and plain activations: SwiGLU and GeGLU of the decoders, QuickGELU of OpenAI's CLIP, Gemma's soft cap."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.row_views import row_strides
from .call_checks import misfit
from .dispatch import Implementation, dispatch
from .library import kernel_op, unrecorded
from .row_refusal import rows_fit
from .triton_gate import triton_distrust, triton_refusal


def swiglu(gate: Tensor, up: Tensor, *, backend: str = "auto") -> Tensor:
    """``silu(gate) * up``.

    Args:
        gate: any shape.
        up: shape of ``gate``.
        backend: ``auto`` or the name of an implementation.

    Raises:
        LmmError: two shapes, or a forced backend that refuses.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
    """
    if gate.shape != up.shape:
        raise misfit("swiglu needs gate and up of one shape", gate=gate, up=up)
    return dispatch("swiglu", gate, up, backend=backend)


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """The formula."""
    return F.silu(gate) * up


def geglu(gate: Tensor, up: Tensor, *, backend: str = "auto") -> Tensor:
    """``gelu(gate) * up`` with the tanh approximation of GELU, as Gemma has it; arguments, errors and source as :func:`swiglu`."""
    if gate.shape != up.shape:
        raise misfit("geglu needs gate and up of one shape", gate=gate, up=up)
    return dispatch("geglu", gate, up, backend=backend)


def geglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """The formula."""
    return F.gelu(gate, approximate="tanh") * up


def softcapped(x: Tensor, cap: float | None) -> Tensor:
    """``cap * tanh(x / cap)``: nearly ``x`` near 0, never beyond ``cap``; ``x`` itself when ``cap`` is None.

    Source: Gemma Team, "Gemma 2", arXiv 2408.00118, section 2; the name is that of ``attn_logit_softcapping``.
    """
    return x if cap is None else torch.tanh(x / cap) * cap


def quick_gelu(x: Tensor, *, backend: str = "auto") -> Tensor:
    """``x * sigmoid(1.702 x)``, the activation of OpenAI's CLIP (not the exact GELU)."""
    return dispatch("quick_gelu", x, backend=backend)


def quick_gelu_reference(x: Tensor) -> Tensor:
    """The formula."""
    return x * torch.sigmoid(1.702 * x)


_FWD = kernel_op(
    "activation_fwd(Tensor gate, Tensor? up, float factor, float cubic) -> Tensor",
    "activations:activation_fwd",
    lambda gate, up, factor, cubic: gate.new_empty(gate.shape),
)
_BWD = kernel_op(
    "activation_bwd(Tensor gate, Tensor? up, Tensor grad, float factor, float cubic) -> (Tensor, Tensor)",
    "activations:activation_bwd",
    lambda gate, up, grad, factor, cubic: (gate.new_empty(gate.shape), gate.new_empty(0 if up is None else gate.shape)),
)


class _Activation(torch.autograd.Function):
    """``gate sigmoid(factor (gate + cubic gate^3)) up``; keeps its inputs only."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor | None, factor: float, cubic: float) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.constants = factor, cubic
        return _FWD(gate, up, factor, cubic)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad = rows_fit(grads[0], *((gate,) if up is None else (gate, up)))
        dgate, dup = _BWD(gate, up, grad, *ctx.constants)
        return dgate, None if up is None else dup, None, None


SIGMOID_ARGUMENTS = {
    "swiglu": (1.0, 0.0),
    "geglu": (2 * math.sqrt(2 / math.pi), 0.044715),
    "quick_gelu": (1.702, 0.0),
}
"""``factor, cubic`` of each activation in the form that the kernel computes."""


def activation_triton(op: str) -> Callable[..., Tensor]:
    """Return the implementation of one of :data:`SIGMOID_ARGUMENTS`: one pass forward, one backward, halves of a fused projection in place."""
    constants = SIGMOID_ARGUMENTS[op]

    def run(gate: Tensor, up: Tensor | None = None) -> Tensor:
        given = (gate,) if up is None else (gate, up)
        return _FWD(gate, up, *constants) if unrecorded(*given) else _Activation.apply(gate, up, *constants)

    return run


def _triton_supports(gate: Tensor, *up: Tensor) -> bool | str:
    for other in up:
        if other.dtype != gate.dtype or other.shape != gate.shape:
            return f"gate is {gate.dtype} {tuple(gate.shape)} but up is {other.dtype} {tuple(other.shape)}"
    problem = triton_refusal(gate, *up)
    if problem is None and (not gate.dim() or row_strides(gate, *up) is None):
        problem = f"rows of a tensor {tuple(gate.shape)} with strides {gate.stride()} need more than two strides"
    return problem or True


def _triton_trusted(op: str) -> Callable[..., bool | str]:
    return lambda gate, *up: triton_distrust(op, gate) or True


SWIGLU_TRITON = Implementation("triton", activation_triton("swiglu"), _triton_supports, _triton_trusted("swiglu"))
SWIGLU_REFERENCE = Implementation("reference", swiglu_reference)
GEGLU_TRITON = Implementation("triton", activation_triton("geglu"), _triton_supports, _triton_trusted("geglu"))
GEGLU_REFERENCE = Implementation("reference", geglu_reference)
QUICK_GELU_TRITON = Implementation("triton", activation_triton("quick_gelu"), _triton_supports, _triton_trusted("quick_gelu"))
QUICK_GELU_REFERENCE = Implementation("reference", quick_gelu_reference)
