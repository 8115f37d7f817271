"""Rotary position embedding in the half-split layout of Hugging Face's Llama.

``y = x * cos + rotate_half(x) * sin`` with ``rotate_half([a, b]) = [-b, a]``; angles are ``position * theta^(-2i/E)``.
Source: Su et al., "RoFormer", arXiv 2104.09864.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import Implementation, dispatch, register_implementation


def rope_table(positions_T: Tensor, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Return fp32 ``cos_TE, sin_TE`` of the rotation angles.

    Args:
        positions_T: integer positions ``(T,)``.
        head_dim: ``E``, even.
        theta: base of the frequencies.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions_T.device).float() / head_dim
    inverse = 1.0 / (theta**exponent)
    angles = torch.cat([positions_T.float()[:, None] * inverse[None, :]] * 2, dim=-1)
    return angles.cos(), angles.sin()


def rope(
    q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by their position.

    Args:
        q_TNE: ``(T, N, E)``.
        k_TKE: ``(T, K, E)``.
        cos_TE: ``(T, E)`` from :func:`rope_table`.
        sin_TE: ``(T, E)``.
        backend: ``auto`` or the name of an implementation.

    Returns:
        The rotated pair, shapes and dtypes unchanged.
    """
    return dispatch("rope", q_TNE, k_TKE, cos_TE, sin_TE, backend=backend)


def rope_reference(q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> tuple[Tensor, Tensor]:
    """The formula, the table rounded to the dtype of ``q`` first, as Llama does."""
    cos, sin = cos_TE[:, None].to(q_TNE.dtype), sin_TE[:, None].to(q_TNE.dtype)
    return q_TNE * cos + _rotate_half(q_TNE) * sin, k_TKE * cos + _rotate_half(k_TKE) * sin


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


register_implementation("rope", Implementation("reference", rope_reference))
