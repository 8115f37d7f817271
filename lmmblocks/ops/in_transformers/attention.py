"""What transformers calls in every layer as the attention ``lmmblocks``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ...spec import LmmError, Segments
from ..attention.reference import attention
from .rows import AttentionRows

WITHOUT_EFFECT = frozenset(
    "cache cache_position cu_seq_lens_k cu_seq_lens_q max_length_k max_length_q num_items_in_batch output_hidden_states output_router_logits "
    "past_key_values position_embeddings position_ids return_dict seq_idx use_cache".split()
)
"""Keyword arguments that change nothing here, or are read by name; any other one is refused."""

_LENGTHS = WeakTensorKeyDictionary()


def attention_of_transformers(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: AttentionRows | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend with :func:`lmmblocks.ops.attention`.

    Args:
        module: the attention module that calls.
        query: ``(B, N, Q, E)``.
        key: ``(B, K, T, E)``.
        value: as ``key``, maybe narrower.
        attention_mask: what ``mask.py`` made of the pass's mask; None in models that make none.
        scaling: default ``E ** -0.5``.
        dropout: 0.
        sliding_window: see ``window`` of ``ops.attention``; where a mask was made, that one says it.
        softcap: see ``ops.attention``.
        is_causal: default that of the module; where a mask was made, that one says it.
        **kwargs: of the model; ``cu_seq_lens_q`` and ``cu_seq_lens_k`` among them.

    Returns:
        ``(B, Q, N, E)``, zeros where a row is padding, and no weights.

    Raises:
        LmmError: what ``ops.attention`` doesn't compute; all of it at once.
    """
    problems = list(_not_computed(query, attention_mask, dropout, kwargs))
    if problems:
        raise LmmError(f"lmmblocks' attention can't do what {type(module).__name__} asks for: {'; '.join(problems)}")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    rows = _rows(query, key, attention_mask, causal, sliding_window, kwargs)
    width = value.shape[-1]
    value = F.pad(value, (0, key.shape[-1] - width)) if width != key.shape[-1] else value
    q_TNE, k_TKE, v_TKE = (_chosen(x, at) for x, at in ((query, rows.queries), (key, rows.keys), (value, rows.keys)))
    out_TNE = attention(
        q_TNE,
        k_TKE,
        v_TKE,
        rows.segments,
        causal=rows.causal,
        kv_end=rows.kv_end,
        scale=scaling,
        window=rows.window,
        softcap=softcap,
    )
    batch, heads, length, _ = query.shape
    if rows.queries is not None:
        out_TNE = out_TNE.new_zeros(batch * length, *out_TNE.shape[1:]).index_copy(0, rows.queries, out_TNE)
    return out_TNE.view(batch, length, heads, -1)[..., :width], None


def _not_computed(query: Tensor, mask: Any, dropout: float, kwargs: dict[str, Any]) -> Iterator[str]:
    if mask is not None and not isinstance(mask, AttentionRows):
        yield f"it brings a mask of its own, {tuple(mask.shape)}: give it the (batch, length) mask of its padding, or use 'sdpa'"
    if dropout:
        yield f"dropout {dropout} of attention weights: set it to 0 in the config (its fields with 'drop' in their name), or use 'sdpa'"
    if kwargs.get("output_attentions"):
        yield "attention weights (output_attentions), which are never formed: use 'eager'"
    if kwargs.get("cu_seq_lens_q") is not None and query.shape[0] != 1:
        yield f"cu_seq_lens_q with {query.shape[0]} rows: packed samples lie in one row"
    known = WITHOUT_EFFECT | {"output_attentions"}
    unknown = [name for name, value in kwargs.items() if name not in known and value is not None and value is not False]
    if unknown:
        yield f"{', '.join(unknown)} beside queries, keys and values: use 'eager' or 'sdpa'"


def _rows(
    query: Tensor,
    key: Tensor,
    mask: Any,
    causal: bool,
    window: int | None,
    kwargs: dict[str, Any],
) -> AttentionRows:
    cu_q = kwargs.get("cu_seq_lens_q")
    if cu_q is not None:
        cu_k = kwargs.get("cu_seq_lens_k")
        return AttentionRows(_segments(cu_q, cu_q if cu_k is None else cu_k), causal, window)
    if isinstance(mask, AttentionRows):
        return mask
    return AttentionRows(Segments.uniform(len(query), query.shape[2], key.shape[2], device=query.device), causal, window)


def _segments(cu_q: Tensor, cu_k: Tensor) -> Segments:
    lengths_q, lengths_k = _lengths(cu_q), _lengths(cu_k)
    cu_q, cu_k = cu_q.to(torch.int32), cu_k.to(torch.int32)
    return Segments(cu_q, cu_k, max(lengths_q, default=0), max(lengths_k, default=0), lengths_q, lengths_k)


def _lengths(cu: Tensor) -> tuple[int, ...]:
    """Return the lengths between boundaries; the device is asked by the first layer of a pass only."""
    known = _LENGTHS.get(cu)
    if known is None or known[0] != cu._version:
        known = (cu._version, tuple(cu.diff().tolist()))
        _LENGTHS[cu] = known
    return known[1]


def _chosen(heads: Tensor, rows: Tensor | None) -> Tensor:
    """``(B, N, T, E)`` to ``(B * T, N, E)``, or to some of its rows."""
    packed = heads.transpose(1, 2).flatten(0, 1)
    return packed if rows is None else packed.index_select(0, rows)
