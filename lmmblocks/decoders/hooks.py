"""Running layer hooks: what a decoder does before each layer.

A decoder that calls :func:`pass_vision` before its layers, :func:`enter_layer` before each and ``context.restored`` after the last serves
every hook; its class says so with ``hook_offers = HOOK_OFFERS``. After a drop, a sliding window counts the rows that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..spec import LayerHook, LmmError, Segments
from .cache import KVCache
from .context import LayerContext
from .vision import VisionContext

LAST_ROW_SCORES, VISION, DROP = "last_row_scores", "vision", "drop"
HOOK_OFFERS = frozenset({LAST_ROW_SCORES, VISION, DROP})
"""What hooks may require of a decoder; anything else they require is a feature of the encoder (``layers``, ``keys``, ...)."""


def pass_vision(vision: VisionContext | None, cache: KVCache | None, segments: Segments, rows: int) -> VisionContext | None:
    """Start a pass; return the images that its hooks may see: its own and those after the cached ones."""
    if cache is None:
        return vision
    cache.begin()
    if vision is not None:
        cache.pending_vision = vision.behind(cache.vision, cache.lengths)
        return cache.pending_vision
    return None if cache.vision is None else cache.vision.for_pass(rows, len(segments.lengths_q))


def enter_layer(hooks: Sequence[LayerHook], hidden_TD: Tensor, context: LayerContext, layer: int) -> tuple[Tensor, LayerContext]:
    """Return the rows that enter a layer, and the layer's own context (recomputing a layer needs the one it had).

    Raises:
        LmmError: a hook returned something that is neither rows nor rows and a context, or other rows than its context says.
    """
    # 1. The scores that the layer before was asked for; those of keys in the cache are no rows of this pass.
    scores = context.last_row_scores if context.wants_scores else None
    context = replace(context, layer=layer, last_row_scores=_over_rows(scores, context.segments), wants_scores=False)
    # 2. Where an earlier pass dropped rows, layers hold different numbers of keys.
    if context.cache is not None and context.cache.ragged:
        segments = context.cache.segments(context.segments.lengths_q, hidden_TD.device, layer=layer)
        context = replace(context, segments=segments)
    # 3. The hooks of this layer, each on what the one before it returned.
    for hook in hooks:
        if layer in hook.layers:
            hidden_TD, context = _called(hook, hidden_TD, context)
    # 4. Attention scores cost a pass over the keys: this layer computes them only if a hook of the next one asks.
    if any(layer + 1 in hook.layers and LAST_ROW_SCORES in hook.requires for hook in hooks):
        context = replace(context, wants_scores=True)
    return hidden_TD, context


def _called(hook: LayerHook, hidden_TD: Tensor, context: LayerContext) -> tuple[Tensor, LayerContext]:
    result = hook(hidden_TD, context)
    hidden, after = result if isinstance(result, tuple) else (result, context)
    name = type(hook).__name__
    if not isinstance(hidden, Tensor) or not isinstance(after, LayerContext):
        raise LmmError(f"hook {name!r} returned {type(hidden).__name__}, expected the rows, or context.keep(rows, ...)")
    if hidden.shape != (after.positions.shape[0], hidden_TD.shape[1]):
        raise LmmError(
            f"hook {name!r} before layer {context.layer} returned rows {tuple(hidden.shape)}, expected "
            f"{(after.positions.shape[0], hidden_TD.shape[1])}: to drop rows, return context.keep(rows, keep_T, lengths)"
        )
    return hidden, after


def _over_rows(scores: Tensor | None, segments: Segments) -> Tensor | None:
    """Return the scores of the rows of this pass: without those of the keys that were in the cache before."""
    if scores is None or segments.lengths_q == segments.lengths_k:
        return scores
    parts = scores.split(segments.lengths_k)
    return torch.cat([part[len(part) - rows :] for part, rows in zip(parts, segments.lengths_q)])
