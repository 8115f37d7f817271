"""The packed way of running a model of transformers: its attention calls ``ops.attention`` with our segments.

Motivation: transformers batches by padding and masks. A packed batch is one row ``(1, T, D)`` whose segments only attention has to know
about; every other operation of a decoder works row by row.
How it works: ``lmmblocks_packed`` is an attention implementation of transformers. What belongs to one pass travels as a keyword
argument, which models hand down through their layers to the attention; so it is also there when a layer is recomputed in the backward. No
mask function is registered under that name, and then transformers makes no mask at all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..spec import LayerHook, LmmError
from .cache import KVCache
from .context import LayerContext
from .hf_padded import cache_argument
from .hooks import enter_layer

IMPLEMENTATION = "lmmblocks_packed"
"""Name of our attention among those of transformers."""

PASS = "lmmblocks_pass"
"""Name of the keyword argument that carries a :class:`PackedPass` to the attention."""

_WITHOUT_EFFECT = frozenset(
    "cache cache_position is_causal output_attentions output_hidden_states output_router_logits past_key_values position_embeddings "
    "position_ids return_dict use_cache".split()
)
"""Keyword arguments of attention functions that don't change what is computed here; any other one is refused."""


class _Turned(NamedTuple):
    """Tables ``cos_TE, sin_TE`` that replaced what the model had ``given`` to a layer, for the rows that were left."""

    layer: int
    given: Any
    cos_TE: Any
    sin_TE: Any


@dataclass(slots=True)
class PackedPass:
    """What one pass brings to the layers of the model.

    Attributes:
        context: of the layer that runs now.
        hooks: called before the layers they name.
        calls: attention modules and windows in the order they were called, noted when it is a list.
        turned: rotary tables that hooks put in the place of the model's, for their layer and those after it.
    """

    context: LayerContext
    hooks: Sequence[LayerHook] = ()
    calls: list[tuple[nn.Module, int | None]] | None = None
    turned: list[_Turned] = field(default_factory=list)


@functools.cache
def _cache_class() -> type:
    """Return the class that :func:`run_packed` hands to transformers' layers; made when it is first used, as transformers is heavy."""
    from transformers import Cache

    class CacheOfTransformers(Cache):
        """A :class:`KVCache` where transformers' layers look for theirs; lives for one pass."""

        def __init__(self, run: PackedPass, cache: KVCache) -> None:
            super().__init__(layers=[])
            self._run, self._cache = run, cache

        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            """Append ``(1, K, T, E)`` keys and values of the new rows; return all of the layer, packed the same way."""
            k_TKE, v_TKE = (_packed(rows) for rows in (key_states, value_states))
            stored = self._cache.append(layer_idx, k_TKE, v_TKE, self._run.context.segments.lengths_q)
            keys, values = (rows.transpose(0, 1)[None] for rows in stored)
            return keys, values

        def get_seq_length(self, layer_idx: int = 0) -> int:
            """Return the longest of the sequences; positions are always given, so this sizes nothing."""
            return max(self._cache.lengths, default=0)

    return CacheOfTransformers


def register() -> None:
    """Make :func:`packed_attention` known to transformers, under the name ``lmmblocks_packed``."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, packed_attention)


def run_packed(trunk: nn.Module, embeds_TD: Tensor, run: PackedPass) -> Tensor:
    """Run the model without its head over packed rows and return ``hidden_TD``; rows that a hook dropped come out as zeros."""
    cache, new_lengths = run.context.cache, run.context.segments.lengths_q
    outputs = trunk(
        inputs_embeds=embeds_TD[None],
        position_ids=run.context.positions.long()[None],
        use_cache=cache is not None,
        **{cache_argument(trunk) or "past_key_values": None if cache is None else _cache_class()(run, cache), PASS: run},
    )
    if cache is not None:
        cache.advance(new_lengths)
    hidden_TD, kept = outputs[0][0], run.context.kept_rows
    return hidden_TD if kept is None else run.context.restored(hidden_TD.index_select(0, kept))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls as the attention ``lmmblocks_packed``.

    Args:
        module: the attention module that calls.
        query: ``(1, N, T, E)``.
        key: ``(1, K, T_k, E)``.
        value: as ``key``, maybe narrower.
        attention_mask: None; the segments say what is visible.
        scaling: default ``E ** -0.5``.
        dropout: 0.
        sliding_window: see ``window`` of ``ops.attention``.
        softcap: see ``ops.attention``.
        **kwargs: of the model; the :class:`PackedPass` among them.

    Returns:
        ``(1, T, N, E)`` and no weights.

    Raises:
        LmmError: no pass, or something that ``ops.attention`` doesn't compute.
    """
    run = kwargs.pop(PASS, None)
    if run is None:
        raise LmmError(
            f"{type(module).__name__} runs after lmmblocks' packed attention, but was called without its segments: call the decoder that "
            f"holds the model, or use the model alone after model.set_attn_implementation('sdpa')"
        )
    problems = list(_not_computed(module, attention_mask, dropout, kwargs))
    if problems:
        raise LmmError(f"packed attention can't do what {type(module).__name__} asks for: {'; '.join(problems)}")
    if run.calls is not None:
        run.calls.append((module, sliding_window))
    context, width = run.context, value.shape[-1]
    q_TNE, k_TKE, v_TKE = (_packed(rows) for rows in (query, key, F.pad(value, (0, key.shape[-1] - width))))
    scores: dict[str, Any] = {"scale": scaling, "window": sliding_window, "softcap": softcap}
    if context.wants_scores:
        context.last_row_scores = ops.last_row_scores(q_TNE, k_TKE, context.segments, **scores)
    out_TNE = ops.attention(q_TNE, k_TKE, v_TKE, context.segments, kv_end=context.kv_end, **scores)
    return out_TNE[None, :, :, :width], None


def _packed(heads: Tensor) -> Tensor:
    """``(1, K, T, E)`` to ``(T, K, E)``."""
    return heads[0].transpose(0, 1)


def _not_computed(module: nn.Module, mask: Tensor | None, dropout: float, kwargs: dict[str, Any]) -> Iterator[str]:
    if mask is not None:
        yield "it brings a mask of its own"
    if dropout:
        yield (
            f"dropout {dropout} of attention weights: set it to 0 in the model's config (its fields with 'drop' in their name), or run the "
            f"decoder with way='padded'"
        )
    if (kwargs.get("is_causal") if kwargs.get("is_causal") is not None else getattr(module, "is_causal", True)) is False:
        yield "it isn't causal"
    unknown = [name for name, value in kwargs.items() if name not in _WITHOUT_EFFECT and value is not None and value is not False]
    if unknown:
        yield f"{', '.join(unknown)} beside queries, keys and values"


class EnterLayer:
    """Runs the hooks of a pass before one layer; stays on the layer and does nothing in other passes."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See ``torch.nn.Module.register_forward_pre_hook(with_kwargs=True)``."""
        run = kwargs.get(PASS)
        if run is None or not (run.hooks or (run.context.cache is not None and run.context.cache.ragged)):
            return None
        # 1. What transformers gives this layer, in words of a LayerContext: tables for the rows that are left, hidden states without the batch.
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        given = rest.get("position_embeddings")
        context = replace(run.context, **self._tables(run, given))
        hidden_TD = (args[0] if args else kwargs["hidden_states"])[0]
        # 2. The hooks.
        hidden_TD, run.context = enter_layer(run.hooks, hidden_TD, context, self.layer)
        # 3. Back again: every argument that has a row of the pass loses those that were dropped.
        turned = self._turned(run, given)
        # Recomputing a layer needs the context it had, not the one that the pass has by then.
        rest = {**_of_rows(rest, run.context), **turned, PASS: replace(run)}
        if args:
            return (hidden_TD[None], *_of_rows(args[1:], run.context)), rest
        return (), {"hidden_states": hidden_TD[None], **rest}

    def _tables(self, run: PackedPass, given: Any) -> dict[str, Any]:
        """Return the tables of this layer, for the rows that are left: the model's, or what a hook of an earlier layer put in their place."""
        earlier = [entry for entry in run.turned if entry.layer < self.layer]
        if not earlier:
            cos_TE, sin_TE = _tables(_of_rows(given, run.context))
            return {"cos_TE": cos_TE, "sin_TE": sin_TE, "given_tables": (cos_TE, sin_TE)}
        if given is not earlier[-1].given:
            raise LmmError(
                f"a hook replaced the rotary tables before layer {earlier[-1].layer}, layer {self.layer} has tables of another kind: use the "
                f"native decoder, whose hooks get the tables of all kinds at once"
            )
        return {"cos_TE": earlier[-1].cos_TE, "sin_TE": earlier[-1].sin_TE, "given_tables": None}

    def _turned(self, run: PackedPass, given: Any) -> dict[str, Any]:
        """Remember tables that hooks replaced, and return them as this layer takes them; nothing where none did."""
        context = run.context
        if context.has_given_tables:
            return {}
        if not isinstance(given, tuple):
            raise LmmError(
                f"a hook replaced the rotary tables of layer {self.layer}, which has none: the model turns its rows in another way, or not at all"
            )
        run.turned = [*(entry for entry in run.turned if entry.layer < self.layer), _Turned(self.layer, given, context.cos_TE, context.sin_TE)]
        return {"position_embeddings": (context.cos_TE[None], context.sin_TE[None])}


def _of_rows(value: Any, context: LayerContext) -> Any:
    """Return what belongs to the rows that are left, of whatever a layer is given for all rows ``(1, T, ...)`` of the pass."""
    if context.kept_rows is None:
        return value
    if isinstance(value, Tensor):
        per_row = value.dim() > 1 and value.shape[:2] == (1, context.total_rows)
        return value.index_select(1, context.kept_rows) if per_row else value
    if isinstance(value, dict):
        return {key: _of_rows(entry, context) for key, entry in value.items()}
    return tuple(_of_rows(entry, context) for entry in value) if isinstance(value, tuple) else value


def _tables(table: Any) -> tuple[Any, Any]:
    """Return the rotary tables ``cos_TE, sin_TE`` where a model has them, else None."""
    return (table[0][0], table[1][0]) if isinstance(table, tuple) and len(table) == 2 else (None, None)


class LeaveLayers:
    """Gives the rows of a pass their full number again after the last layer; what follows is transformers' own and counts on it."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """See ``torch.nn.Module.register_forward_hook(with_kwargs=True)``."""
        run = kwargs.get(PASS)
        if run is None or run.context.kept_rows is None:
            return None
        if isinstance(output, tuple):
            return (run.context.restored(output[0][0])[None], *output[1:])
        return run.context.restored(output[0])[None]


def find_layers(trunk: nn.Module, count: int | None) -> nn.ModuleList | None:
    """Return the list of ``count`` layers of a model, None when it has none."""
    lists = (module for module in trunk.modules() if isinstance(module, nn.ModuleList))
    return next((layers for layers in lists if count and len(layers) == count), None)


def serve_hooks(layers: nn.ModuleList) -> None:
    """Prepare layers for passes with hooks, once."""
    if any(isinstance(hook, EnterLayer) for hook in layers[0]._forward_pre_hooks.values()):
        return
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(EnterLayer(index), with_kwargs=True)
    layers[-1].register_forward_hook(LeaveLayers(), with_kwargs=True)
