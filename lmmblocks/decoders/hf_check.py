"""Which way a model of transformers is run, and how its table and head differ from plain ones: found by trying it on a few rows.

The packed way is taken only when it gives what transformers' own attention gives for each segment alone, and when every layer
asked for its attention once. What a few rows can't show (a window longer than they are) is read from the config. Scales are measured:
``embed(ids) / table[ids]`` and ``logits / head(hidden)``; a measured one is replaced by the number of the config that it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..ops.activations import softcapped
from ..spec import LmmError, Segments, first_line
from .cache import KVCache
from .context import LayerContext
from .hf_packed import IMPLEMENTATION, PackedPass, find_layers, register, run_packed
from .modes import evaluating

PROBE_LENGTHS = (6, 5)
_ROPE_BY_LENGTH = frozenset({"dynamic", "longrope"})
_PACKED_LAYERS = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True)
class Findings:
    """What was found out about a model.

    Attributes:
        against_packed: why it can't be run packed; empty when it can.
        embed_scale: factor between rows of the table and rows that enter the model; None = 1.
        logit_scale: factor that the model puts on the logits; None = 1.
        logit_softcap: see ``ops.softcapped``; None = none.
        notes: what else a user should know.
        certain: False as long as there are no weights to try it with.
    """

    against_packed: tuple[str, ...] = ()
    embed_scale: float | None = None
    logit_scale: float | None = None
    logit_softcap: float | None = None
    notes: tuple[str, ...] = ()
    certain: bool = True


def find_out(model: Any, trunk: nn.Module, *, packed: bool = True) -> Findings:
    """Try a model; its mode and its attention implementation are afterwards as before.

    Args:
        model: an ``AutoModelForCausalLM``, in any mode, on any device.
        trunk: the model without its head.
        packed: whether to try the packed way.

    Raises:
        LmmError: a table or head that is more than a matrix, a bias, a factor and a soft cap.
    """
    text = model.config.get_text_config(decoder=True)
    softcap = getattr(text, "final_logit_softcapping", None)
    reasons = list(_structure(model, trunk, text)) if packed else []
    if any(parameter.is_meta for parameter in model.parameters()):
        return Findings(tuple(reasons), None, None, softcap, tuple(_notes(text)), certain=False)
    own = model.config._attn_implementation
    with torch.no_grad(), evaluating(model), _implementation(model, "eager" if own == IMPLEMENTATION else own):
        _check_causal(model, trunk, text)
        embed_scale = _embed_scale(model, text)
        logit_scale = _logit_scale(model, trunk, text, softcap)
        if packed and not reasons:
            reasons = list(_trial(model, trunk, text))
    return Findings(tuple(reasons), embed_scale, logit_scale, softcap, tuple(_notes(text)))


def _structure(model: Any, trunk: nn.Module, text: Any) -> Iterator[str]:
    """Yield what speaks against the packed way before anything is computed."""
    if getattr(model, "_is_stateful", False):
        yield "it carries a state from token to token, which would run over from one segment into the next"
    if not getattr(model, "_supports_attention_backend", False):
        yield "its attention doesn't go through transformers' attention interface"
    kinds = sorted(set(getattr(text, "layer_types", None) or ()) - _PACKED_LAYERS)
    if kinds:
        yield f"it has layers of the kinds {', '.join(kinds)}"
    if find_layers(trunk, getattr(text, "num_hidden_layers", None)) is None:
        yield "its layers are not in one list"


def _notes(text: Any) -> Iterator[str]:
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = {str(each.get("rope_type")) for each in (rope, *rope.values()) if isinstance(each, dict)} & _ROPE_BY_LENGTH
    if kinds:
        yield f"rope_type {min(kinds)!r} chooses its frequencies by the longest sequence of a batch, for all of them"


def _trial(model: Any, trunk: nn.Module, text: Any) -> Iterator[str]:
    """Run two segments packed, with a cache, and each alone after transformers' own attention; yield what differs."""
    embeds_TD = _random_rows(model, sum(PROBE_LENGTHS))
    segments = Segments.of(PROBE_LENGTHS, device=embeds_TD.device)
    positions_T = torch.cat([torch.arange(n, device=embeds_TD.device) for n in PROBE_LENGTHS])
    cache = KVCache(text.num_hidden_layers, len(PROBE_LENGTHS))
    run = PackedPass(LayerContext(0, positions_T, segments, None, None, None, cache), calls=[])
    alone = []
    with _implementation(model, "eager"):
        for rows, places in zip(embeds_TD.split(PROBE_LENGTHS), positions_T.split(PROBE_LENGTHS)):
            alone.append(trunk(inputs_embeds=rows[None], position_ids=places[None], use_cache=False)[0][0])
    register()
    try:
        with _implementation(model, IMPLEMENTATION):
            packed_TD = run_packed(trunk, embeds_TD, run)
    except Exception as error:  # other people's code: whatever goes wrong in it is a reason, and is told
        yield f"a packed trial failed with {type(error).__name__}: {first_line(error)}"
        return
    yield from _calls(trunk, text, run)
    difference = _relative(packed_TD, torch.cat(alone))
    if not difference <= _tolerance(embeds_TD.dtype):
        yield f"in a trial, packed rows differed from single ones by {difference:.1e} of their size"


def _calls(trunk: nn.Module, text: Any, run: Any) -> Iterator[str]:
    """Yield where not every layer called the attention once, or a window of the config never came."""
    layers = find_layers(trunk, text.num_hidden_layers)
    assert layers is not None and run.calls is not None
    owner = {id(part): index for index, layer in enumerate(layers) for part in layer.modules()}
    counts = [0] * len(layers)
    for module, _ in run.calls:
        if id(module) in owner:
            counts[owner[id(module)]] += 1
    if set(counts) != {1}:
        yield f"its layers called the attention {counts} times, expected once each"
    windowed = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * len(layers)
    expected = [windowed if kind == "sliding_attention" else None for kind in kinds]
    found = [window for _, window in run.calls]
    if len(found) == len(expected) and found != expected:
        yield f"the windows of its layers should be {_short(expected)}, but its attention was called with {_short(found)}"


def _check_causal(model: Any, trunk: nn.Module, text: Any) -> None:
    rows = _random_rows(model, PROBE_LENGTHS[0])
    other = torch.cat([rows[:-1], rows[:1]])
    before, after = (trunk(inputs_embeds=each[None], use_cache=False)[0][0, :-1] for each in (rows, other))
    if not _relative(after, before) <= _tolerance(rows.dtype):
        raise LmmError(
            f"{text.model_type!r} lets rows see the rows after them: use a causal language model (for some types, is_decoder=True in the config)"
        )


def _embed_scale(model: Any, text: Any) -> float | None:
    table = model.get_input_embeddings()
    ids = torch.arange(min(table.weight.shape[0], 16), device=table.weight.device)
    return _factor(table(ids), table.weight[ids], text, f"the embeddings of {text.model_type!r} are no rows of its table, nor these times one number")


def _logit_scale(model: Any, trunk: nn.Module, text: Any, softcap: float | None) -> float | None:
    rows = _random_rows(model, PROBE_LENGTHS[0])[None]
    head = model.get_output_embeddings()
    logits = model(inputs_embeds=rows, use_cache=False).logits
    plain = head(trunk(inputs_embeds=rows, use_cache=False)[0])
    refusal = f"the logits of {text.model_type!r} are not those of its head on the last hidden states, nor these times one number"
    scale = _factor(logits, softcapped(plain, softcap), text, refusal)
    if scale is not None and (softcap is not None or getattr(head, "bias", None) is not None):
        raise LmmError(f"{refusal}, which together with a bias or a soft cap is not supported")
    return scale


def _factor(found: Tensor, plain: Tensor, text: Any, refusal: str) -> float | None:
    """Return the number that turns ``plain`` into ``found``; None = 1."""
    tolerance = _tolerance(found.dtype)
    if _relative(found, plain) <= tolerance:
        return None
    found, plain = found.double(), plain.double()
    factor = ((found * plain).sum() / plain.square().sum()).item()
    if not _relative(found, plain * factor) <= tolerance:
        raise LmmError(f"{refusal}: this decoder can't be used here")
    known = min(_config_factors(text), key=lambda number: abs(number / factor - 1))
    return known if abs(known / factor - 1) <= tolerance else factor


def _config_factors(text: Any) -> list[float]:
    """Return the numbers of a config as factors, their reciprocals, and the root of the width (Gemma)."""
    numbers = [value for value in text.to_dict().values() if isinstance(value, (int, float)) and not isinstance(value, bool) and value]
    return [*map(float, numbers), *(1.0 / value for value in numbers), text.hidden_size**0.5]


def _relative(found: Tensor, expected: Tensor) -> float:
    """Size of the difference over the size of what is expected."""
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def _tolerance(dtype: torch.dtype) -> float:
    """Rounding through all layers stays below this; a row that sees another segment is far above it."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 5e-2


def _random_rows(model: Any, count: int) -> Tensor:
    """Rows of the size that those of the table have."""
    table = model.get_input_embeddings().weight
    rows = torch.randn(count, table.shape[1], generator=torch.Generator().manual_seed(0))
    return (rows.to(table.device) * table[: min(len(table), 64)].float().std().clamp_min(1e-3)).to(table.dtype)


def _short(windows: list[int | None]) -> str:
    return str(windows) if len(windows) <= 6 else f"{str(windows[:6])[:-1]}, ...]"


@contextmanager
def _implementation(model: Any, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    if name == before:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
