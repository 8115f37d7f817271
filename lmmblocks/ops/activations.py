"""Gated and plain activations: SwiGLU and GeGLU of the decoders, QuickGELU of OpenAI's CLIP, Gemma's soft cap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Implementation, dispatch, register_implementation


def swiglu(gate: Tensor, up: Tensor, *, backend: str = "auto") -> Tensor:
    """``silu(gate) * up``.

    Args:
        gate: any shape.
        up: shape of ``gate``.
        backend: ``auto`` or the name of an implementation.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
    """
    return dispatch("swiglu", gate, up, backend=backend)


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """The formula."""
    return F.silu(gate) * up


def geglu(gate: Tensor, up: Tensor, *, backend: str = "auto") -> Tensor:
    """``gelu(gate) * up`` with the tanh approximation of GELU, as Gemma has it; arguments and source as :func:`swiglu`."""
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


register_implementation("swiglu", Implementation("reference", swiglu_reference))
register_implementation("geglu", Implementation("reference", geglu_reference))
register_implementation("quick_gelu", Implementation("reference", quick_gelu_reference))
