"""Do the parts fit together? Everything that doesn't is found at once, each with what was found, what was expected and what to change."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..decoders.hooks import HOOK_OFFERS
from ..ops.dispatch import check_environment
from ..spec import LmmError, closest
from ..spec.fields import is_whole
from ..spec.words import ATTENTIONS
from .dry_run import OF_THE_MODEL, name_of, row_mismatches
from .dtypes import disagreement
from .vocabulary import ids_needed


@dataclass(frozen=True)
class Parts:
    """What is put together.

    Attributes:
        encoder: see ``spec.Encoder``.
        projector: see ``spec.Projector``; None = it could not be made, which is a mismatch of its own.
        decoder: see ``spec.Decoder``.
        reducers: see ``spec.Reducer``.
        hooks: see ``spec.LayerHook``.
        tokenizer: None = the model eats ready batches.
        template: a chat template.
        max_length: most rows of a segment, or None.
        attention: ``causal`` or ``images``.
    """

    encoder: Any
    projector: Any
    decoder: Any
    reducers: Sequence[Any] = ()
    hooks: Sequence[Any] = ()
    tokenizer: Any = None
    template: Any = None
    max_length: int | None = None
    attention: str = "causal"

    @property
    def named(self) -> list[tuple[str, str, Any]]:
        """Kind, what to call it, and the part, of every part there is."""
        single = [(kind, getattr(self, kind)) for kind in ("encoder", "projector", "decoder")]
        several = [("reducer", part) for part in self.reducers] + [("hook", part) for part in self.hooks]
        return [(kind, f"{kind} {name_of(part)}", part) for kind, part in single + several if part is not None]

    @property
    def needs(self) -> dict[str, frozenset[str]]:
        """What each part needs of the encoder."""
        return {
            name: frozenset(part.requires) - OF_THE_MODEL - (HOOK_OFFERS if kind == "hook" else frozenset())
            for kind, name, part in self.named
            if kind in ("projector", "reducer", "hook")
        }


def refuse(problems: Sequence[str]) -> None:
    """Raise one error that lists all problems, if there are any."""
    if problems:
        raise LmmError("the parts don't fit together:\n" + "\n".join(f"- {problem}" for problem in problems))


def mismatches(parts: Parts) -> Iterator[str]:
    """Yield everything that doesn't fit; parts that lack something of their contract are reported alone.

    Raises:
        LmmError: the environment chooses an implementation that there is not; no part is to blame.
    """
    check_environment()
    missing = list(_missing_attributes(parts))
    yield from missing or _disagreements(parts)


_CONTRACT = {
    "encoder": ("spec", "preprocess"),
    "projector": ("requires", "out_grid"),
    "decoder": ("dim", "vocab", "table", "head_weight", "embed", "head"),
    "reducer": ("requires", "out_count"),
    "hook": ("requires", "layers", "__call__"),
}
_PROTOCOLS = {"hook": "LayerHook"}


def _missing_attributes(parts: Parts) -> Iterator[str]:
    for kind, name, part in parts.named:
        missing = [attribute for attribute in _CONTRACT[kind] if not hasattr(part, attribute)]
        if missing:
            yield f"{name} lacks {missing}, which lmmblocks.spec.{_PROTOCOLS.get(kind, kind.capitalize())} asks for"


def _disagreements(parts: Parts) -> Iterator[str]:
    yield from _duplicates(parts)
    offers = parts.encoder.spec.offers
    for name, needed in parts.needs.items():
        if not needed <= offers:
            yield (
                f"{name} needs {sorted(needed - offers)}, encoder {name_of(parts.encoder)} offers "
                f"{sorted(offers)}: choose an encoder that offers them, or another {name.partition(' ')[0]}"
            )
    if parts.projector is not None:
        most = parts.max_length if is_whole(parts.max_length) else None
        yield from row_mismatches(parts.encoder, parts.projector, parts.decoder, parts.reducers, most)
        yield from _instruction_mismatches(parts)
    yield from _hook_mismatches(parts)
    yield from _attention_mismatches(parts)
    yield from _text_mismatches(parts)
    several = disagreement({name: part for _, name, part in parts.named})
    if several:
        yield several


def _duplicates(parts: Parts) -> Iterator[str]:
    first: dict[int, str] = {}
    for kind, name, part in parts.named:
        if first.setdefault(id(part), name) is not name:
            yield f"{name} is there twice, as {first[id(part)]} and as a {kind}: make a second one"


def _instruction_mismatches(parts: Parts) -> Iterator[str]:
    projector, name = parts.projector, name_of(parts.projector)
    if "instruction" not in projector.requires:
        return
    if getattr(parts.encoder, "arrangement", None) is not None:
        yield (
            f"projector {name} reads what is asked about an image, encoder {name_of(parts.encoder)} cuts images into "
            f"tiles, which have no question of their own: use a projector that doesn't require 'instruction', or an encoder without tiles"
        )
    if parts.tokenizer is None:
        return
    if not hasattr(projector, "instruct"):
        yield f"projector {name} requires 'instruction': give it instruct(tokenizer), which returns what turns a text into ids"
        return
    try:
        projector.instruct(parts.tokenizer)
    except LmmError as error:
        yield f"projector {name}: {error}"


def _hook_mismatches(parts: Parts) -> Iterator[str]:
    decoder, offers = name_of(parts.decoder), frozenset(getattr(parts.decoder, "hook_offers", ()))
    count = getattr(getattr(parts.decoder, "config", None), "layers", None)
    for hook in parts.hooks:
        missing = frozenset(hook.requires) & HOOK_OFFERS - offers
        if missing:
            yield (
                f"hook {name_of(hook)} requires {sorted(missing)}, decoder {decoder} offers hooks {sorted(offers) or 'nothing'}: use a native decoder"
            )
        outside = [layer for layer in hook.layers if not isinstance(layer, int) or not 0 <= layer < (count or layer + 1)]
        if outside and isinstance(count, int):
            yield f"hook {name_of(hook)} names layers {outside}, decoder {decoder} has layers 0 to {count - 1}: choose among these"


def _attention_mismatches(parts: Parts) -> Iterator[str]:
    """Rows that see ahead need a decoder that computes them, in one pass and with a cache."""
    if parts.attention not in ATTENTIONS:
        yield f"attention {parts.attention!r} is none of {ATTENTIONS}{closest(str(parts.attention), ATTENTIONS)}"
    if parts.attention == "causal":
        return
    refusal = getattr(parts.decoder, "sees_ahead", "its forward takes no kv_end" if not _takes(parts.decoder.forward, "kv_end") else True)
    if refusal is not True:
        yield (
            f"attention={parts.attention!r} lets image rows see ahead, which decoder {name_of(parts.decoder)} can't compute: {refusal}: use "
            f"attention='causal', or another decoder"
        )


def _takes(function: Any, name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _text_mismatches(parts: Parts) -> Iterator[str]:
    tokenizer, decoder = parts.tokenizer, parts.decoder
    if tokenizer is not None and ids_needed(tokenizer) > decoder.vocab:
        yield (
            f"the tokenizer has {ids_needed(tokenizer)} ids, decoder {name_of(decoder)} has a table of {decoder.vocab} rows: use the decoder's own "
            f"tokenizer, or let table and head grow with build(..., grow_vocab='mean')"
        )
    if parts.template is not None:
        yield from template_mismatches(parts.template, tokenizer)
    most = positions_of(decoder)
    if parts.max_length is not None and not (is_whole(parts.max_length) and parts.max_length > 0):
        yield f"max_length must be a whole number above 0, or None for the decoder's positions, found {parts.max_length!r}"
    elif parts.max_length and most and parts.max_length > most:
        yield f"max_length {parts.max_length} is above the decoder's max_positions {most}: lower max_length"


def more_ids(ids: int, rows: int) -> str:
    """Say that tokens were added behind a model's back, and how its table learns them."""
    return f"the tokenizer has {ids} ids, the decoder's table {rows} rows: let table and head grow with model.grow_vocab(model.tokenizer)"


def positions_of(decoder: Any) -> int | None:
    """Return the most rows of a sequence that a decoder was made for; None where it says nothing."""
    return getattr(getattr(decoder, "config", None), "max_positions", None)


def template_mismatches(template: Any, tokenizer: Any) -> Iterator[str]:
    """Every special token that a conversation needs has to be one of the tokenizer's; nothing is said where there is none."""
    from ..chat.tokenize import tokenize

    if not hasattr(tokenizer, "backend_tokenizer"):
        return
    messages = [{"role": "user", "content": "<image>\nHello"}, {"role": "assistant", "content": "Hello"}]
    said = set()
    for piece in template.render(messages):
        if piece.kind in ("text", "image"):
            continue
        try:
            tokenize([piece], tokenizer)
        except LmmError as error:
            if str(error) not in said:
                said.add(str(error))
                yield f"template {template.name!r}: {error}"
