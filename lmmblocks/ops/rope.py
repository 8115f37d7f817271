"""Rotary position embedding in the half-split layout of Hugging Face's Llama.

``y = x * cos + rotate_half(x) * sin`` with ``rotate_half([a, b]) = [-b, a]``; angles are ``position * theta^(-2i/E)``.
Source: Su et al., "RoFormer", arXiv 2104.09864.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import Implementation, dispatch, register_implementation


def rope_frequencies(head_dim: int, theta: float, device: torch.device | str = "cpu") -> Tensor:
    """Return fp32 ``theta^(-2i/E)`` for the ``E/2`` pairs of a head."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float() / head_dim
    return 1.0 / (theta**exponent)


def rope_table(
    positions_T: Tensor, head_dim: int, theta: float = 10000.0, *, frequencies: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return fp32 ``cos_TE, sin_TE`` of the rotation angles.

    Args:
        positions_T: integer positions ``(T,)``.
        head_dim: ``E``, even; of a partial rotation only what is turned.
        theta: base of the frequencies.
        frequencies: instead of those of ``theta``: fp32 ``(E/2,)``, or ``(T, E/2)`` where rows differ.
    """
    if frequencies is None:
        frequencies = rope_frequencies(head_dim, theta, positions_T.device)
    angles = torch.cat([positions_T.float()[:, None] * frequencies] * 2, dim=-1)
    return angles.cos(), angles.sin()


def rope(
    q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by their position.

    Args:
        q_TNE: ``(T, N, E)``.
        k_TKE: ``(T, K, E)``.
        cos_TE: ``(T, E)`` from :func:`rope_table`; a narrower table turns the first dimensions only, as Phi does.
        sin_TE: shape of ``cos_TE``.
        backend: ``auto`` or the name of an implementation.

    Returns:
        The rotated pair, shapes and dtypes unchanged.
    """
    return dispatch("rope", q_TNE, k_TKE, cos_TE, sin_TE, backend=backend)


def rope_reference(q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> tuple[Tensor, Tensor]:
    """The formula, the table rounded to the dtype of ``q`` first, as Llama does."""
    cos, sin = cos_TE[:, None].to(q_TNE.dtype), sin_TE[:, None].to(q_TNE.dtype)
    return _rotated(q_TNE, cos, sin), _rotated(k_TKE, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = cos.shape[-1]
    if width == x.shape[-1]:
        return x * cos + _rotate_half(x) * sin
    turned, kept = x[..., :width], x[..., width:]
    return torch.cat([turned * cos + _rotate_half(turned) * sin, kept], dim=-1)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


register_implementation("rope", Implementation("reference", rope_reference))
