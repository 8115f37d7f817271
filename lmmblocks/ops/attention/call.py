"""What an implementation of ``attention`` is given: one :class:`AttentionCall`, and the answers that most of them need from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import Segments

_OPTIONS = {
    "kv_end": "mask with an end per row (kv_end)",
    "window": "window",
    "softcap": "softcap",
    "return_lse": "log-sum-exp to return (return_lse)",
}


class AttentionCall(NamedTuple):
    """One call of :func:`~lmmblocks.ops.attention`, checked, its defaults filled in.

    An implementation is a function of it. It returns ``out_TNE``, zeros in rows that see no key, or with ``return_lse`` the pair
    ``(out_TNE, lse_TN)``. What it doesn't compute, its ``supports`` must refuse: nothing else keeps a mask from being ignored.

    Attributes:
        q_TNE: queries.
        k_TKE: keys.
        v_TKE: values.
        segments: whose rows see each other; those after the last segment are slack, which may hold NaN.
        causal: see :func:`~lmmblocks.ops.attention`, as for the next four.
        kv_end: overrides ``causal``.
        scale: of the scores; never None here.
        window: most keys up to its own place that a query sees.
        softcap: of the scores.
        return_lse: whether the pair is asked for.
    """

    q_TNE: Tensor
    k_TKE: Tensor
    v_TKE: Tensor
    segments: Segments
    causal: bool
    kv_end: Tensor | None
    scale: float
    window: int | None = None
    softcap: float | None = None
    return_lse: bool = False

    @property
    def group(self) -> int:
        """How many query heads share a head of keys."""
        return self.q_TNE.shape[1] // self.k_TKE.shape[1]

    @property
    def wants_gradient(self) -> bool:
        """Whether autograd records this call."""
        return torch.is_grad_enabled() and (self.q_TNE.requires_grad or self.k_TKE.requires_grad or self.v_TKE.requires_grad)

    def refusal_beyond(self, *known: str) -> str | None:
        """Return why an implementation that knows only some of ``kv_end``, ``window``, ``softcap``, ``return_lse`` can't take it, or None."""
        if self.kv_end is None and self.window is None and self.softcap is None and not self.return_lse:
            return None
        asked = {"kv_end": self.kv_end is not None, "window": self.window is not None, "softcap": self.softcap is not None}
        asked["return_lse"] = self.return_lse
        missing = [name for option, name in _OPTIONS.items() if asked[option] and option not in known]
        return f"it has no {' and no '.join(missing)}" if missing else None

    def owned(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows of q, k and v that belong to a segment."""
        rows_q, rows_k = sum(self.segments.lengths_q), sum(self.segments.lengths_k)
        return self.q_TNE[:rows_q], self.k_TKE[:rows_k], self.v_TKE[:rows_k]

    def joined(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the output of the call from those of its segments, in their order, with zeros in the slack rows after them."""
        if not outputs:
            nothing = sum(x[:0].sum() for x in (self.q_TNE, self.k_TKE, self.v_TKE))  # 0, but autograd finds its way
            return torch.zeros_like(self.q_TNE) + nothing
        slack = self.q_TNE.shape[0] - sum(out.shape[0] for out in outputs)
        if slack:
            outputs = [*outputs, torch.zeros_like(self.q_TNE[:slack])]
        return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs))
