"""Rotary position embedding in the half-split layout of Hugging Face's Llama.

``y = x * cos + rotate_half(x) * sin`` with ``rotate_half([a, b]) = [-b, a]``; angles are ``position * theta^(-2i/E)``.
Source: Su et al., "RoFormer", arXiv 2104.09864.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .call_checks import misfit
from .dispatch import Implementation, dispatch
from .library import kernel_op, unrecorded
from .triton_gate import triton_distrust, triton_refusal


def rope_frequencies(head_dim: int, theta: float, device: torch.device | str = "cpu") -> Tensor:
    """Return fp32 ``theta^(-2i/E)`` for the ``E/2`` pairs of a head."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float() / head_dim
    return 1.0 / (theta**exponent)


def rope_table(positions_T: Tensor, head_dim: int, theta: float = 10000.0, *, frequencies: Tensor | None = None) -> tuple[Tensor, Tensor]:
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
    q_TNE: Tensor,
    k_TKE: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    *,
    inplace: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by their position.

    Args:
        q_TNE: ``(T, N, E)``.
        k_TKE: ``(T, K, E)``.
        cos_TE: ``(T, E)`` from :func:`rope_table`; a narrower table turns the first dimensions only, as Phi does.
        sin_TE: shape of ``cos_TE``.
        inplace: write into ``q`` and ``k`` and return them. Safe where nobody reads the unrotated values again: outputs of linear layers and
            norms, whose backwards keep their inputs only. Not for leaves of autograd, nor while it records for the views that ``split`` or
            ``chunk`` give of one tensor: torch refuses both.
        backend: ``auto`` or the name of an implementation.

    Returns:
        The rotated pair, shapes and dtypes unchanged.

    Raises:
        LmmError: shapes that don't fit together, or a forced backend that refuses.
    """
    check_turn("rope", q_TNE, k_TKE, cos_TE, sin_TE)
    return dispatch("rope", q_TNE, k_TKE, cos_TE, sin_TE, inplace, backend=backend)


def check_turn(op: str, q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> None:
    """Raise LmmError where heads and table don't fit together."""
    q, k, table = q_TNE.shape, k_TKE.shape, cos_TE.shape
    if len(q) == 3 and len(k) == 3 and len(table) == 2 and table == sin_TE.shape:
        rows, _, width = q
        rows_k, _, width_k = k
        angles, turned = table
        if rows == rows_k == angles and width == width_k and turned <= width and not turned % 2:
            return
    needs = f"{op} needs q (T,N,E), k (T,K,E) and tables cos, sin (T,W) of rope_table, W even and at most E"
    raise misfit(needs, q=q_TNE, k=k_TKE, cos=cos_TE, sin=sin_TE)


def rope_reference(q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """The formula, the table rounded to the dtype of ``q`` first, as Llama does."""
    cos, sin = cos_TE[:, None].to(q_TNE.dtype), sin_TE[:, None].to(q_TNE.dtype)
    q_out, k_out = _rotated(q_TNE, cos, sin), _rotated(k_TKE, cos, sin)
    return (q_TNE.copy_(q_out), k_TKE.copy_(k_out)) if inplace else (q_out, k_out)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = cos.shape[-1]
    if width == x.shape[-1]:
        return x * cos + _rotate_half(x) * sin
    turned, kept = x[..., :width], x[..., width:]
    return torch.cat([turned * cos + _rotate_half(turned) * sin, kept], dim=-1)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


_APART = kernel_op(
    "rope_apart(Tensor q, Tensor k, Tensor cos, Tensor sin, bool adjoint=False) -> (Tensor, Tensor)",
    "rope:rope_apart",
    lambda q, k, cos, sin, adjoint=False: (q.new_empty(q.shape), k.new_empty(k.shape)),
)
_IN_PLACE = kernel_op(
    "rope_in_place(Tensor(a!) q, Tensor(b!)? k, Tensor cos, Tensor sin, bool adjoint=False) -> ()",
    "rope:rope_in_place",
    lambda q, k, cos, sin, adjoint=False: None,
)


def unit_stride(grad: Tensor) -> Tensor:
    """Return a gradient as a kernel can read it: a broadcast one (of a sum) has stride 0."""
    return grad if grad.stride(-1) == 1 else grad.contiguous()


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos_TE, sin_TE)
        return _APART(q_TNE, k_TKE, cos_TE, sin_TE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_APART(unit_stride(grads[0]), unit_stride(grads[1]), *ctx.saved_tensors, True), None, None)


class _RopeInPlace(torch.autograd.Function):
    """RoPE in place on one tensor.

    One tensor a call: autograd forbids a function with several outputs to modify a view, and queries are views of the fused projection.
    """

    @staticmethod
    def forward(ctx: Any, x_TNE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        _IN_PLACE(x_TNE, None, cos_TE, sin_TE)
        ctx.mark_dirty(x_TNE)
        ctx.save_for_backward(cos_TE, sin_TE)
        return x_TNE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = unit_stride(grads[0])
        return _APART(grad, grad[:, :0], *ctx.saved_tensors, True)[0], None, None


def rope_triton(q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """One launch for queries and keys, one for both gradients; in place while autograd records, one for each."""
    if not inplace:
        return _APART(q_TNE, k_TKE, cos_TE, sin_TE) if unrecorded(q_TNE, k_TKE) else _Rope.apply(q_TNE, k_TKE, cos_TE, sin_TE)
    if torch.is_grad_enabled() and (q_TNE.requires_grad or k_TKE.requires_grad):
        return _RopeInPlace.apply(q_TNE, cos_TE, sin_TE), _RopeInPlace.apply(k_TKE, cos_TE, sin_TE)
    _IN_PLACE(q_TNE, k_TKE, cos_TE, sin_TE)
    return q_TNE, k_TKE


def rope_refusal(q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> str | None:
    """Return why no kernel can rotate these heads, or None."""
    if q_TNE.dtype != k_TKE.dtype:
        return f"queries are {q_TNE.dtype} but keys are {k_TKE.dtype}"
    if q_TNE.dim() != 3 or (q_TNE.shape[0], q_TNE.shape[2]) != (k_TKE.shape[0], k_TKE.shape[-1]):
        return f"expected queries (T, N, E) and keys (T, K, E), found {tuple(q_TNE.shape)} and {tuple(k_TKE.shape)}"
    tokens, _, width = q_TNE.shape
    if cos_TE.shape != sin_TE.shape or cos_TE.dim() != 2 or cos_TE.shape[0] != tokens:
        return f"expected tables ({tokens}, W), found {tuple(cos_TE.shape)} and {tuple(sin_TE.shape)}"
    if cos_TE.shape[1] % 2 or not 0 < cos_TE.shape[1] <= width:
        return f"a table of {cos_TE.shape[1]} columns can't turn pairs of {width} dimensions"
    if cos_TE.requires_grad or sin_TE.requires_grad:
        return "the table wants a gradient"
    return triton_refusal(q_TNE, k_TKE, cos_TE, sin_TE)


def _triton_supports(q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor, inplace: bool = False) -> bool | str:
    return rope_refusal(q_TNE, k_TKE, cos_TE, sin_TE) or True


def _triton_trusted(q_TNE: Tensor, k_TKE: Tensor, cos_TE: Tensor, sin_TE: Tensor, inplace: bool = False) -> bool | str:
    return triton_distrust("rope", q_TNE) or True


ROPE_TRITON = Implementation("triton", rope_triton, _triton_supports, _triton_trusted)
ROPE_REFERENCE = Implementation("reference", rope_reference)
