"""Gated and plain activations: SwiGLU of the decoders, QuickGELU of OpenAI's CLIP."""

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


def quick_gelu(x: Tensor, *, backend: str = "auto") -> Tensor:
    """``x * sigmoid(1.702 x)``, the activation of OpenAI's CLIP (not the exact GELU)."""
    return dispatch("quick_gelu", x, backend=backend)


def quick_gelu_reference(x: Tensor) -> Tensor:
    """The formula."""
    return x * torch.sigmoid(1.702 * x)


register_implementation("swiglu", Implementation("reference", swiglu_reference))
register_implementation("quick_gelu", Implementation("reference", quick_gelu_reference))
