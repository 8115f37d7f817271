"""What ends an answer and what stands around it, by template and tokenizer: for generation, and to read labels back.

The margins are found by looking: one word is rendered as an answer, and what the model would say besides it is the margins. So they
hold for every template, and for tokenizers that put a space of their own before text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import groupby
from typing import Any

from ..spec import IGNORE_LABEL, LmmError
from ..spec.words import Mode
from .lookup import get_template
from .pieces import IMAGE_MARKER
from .templates import ChatTemplate
from .text_encoder import special_ids, text_encoder
from .tokenize import Tokens, encode_chat

_WORD = "x"


def answer_ends(template: ChatTemplate, tokenizer: Any, stop: Sequence[str] = ()) -> frozenset[int]:
    """Return the ids that end an answer, and no others do: every stop string that is a token which text never becomes, and the tokenizer's own end
    token or, where the template keeps what a model states (`ends`), these.

    Args:
        template: its stop strings.
        tokenizer: whose special tokens are meant, besides those that the template writes.
        stop: more stop strings.
    """
    tokens = _stop_tokens(template, tokenizer, stop).values()
    stated = [tokenizer.backend_tokenizer.token_to_id(text) for text in getattr(template, "ends", ())]
    return frozenset({*(stated or [tokenizer.eos_token_id]), *tokens} - {None})


def stop_texts(template: ChatTemplate, tokenizer: Any, stop: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the stop strings that are text, and so have to be looked for in what the model says: those that `answer_ends` has no id for."""
    return tuple(text for text, token in _stop_tokens(template, tokenizer, stop).items() if token is None)


def _stop_tokens(template: ChatTemplate, tokenizer: Any, stop: Sequence[str]) -> dict[str, int | None]:
    vocabulary = tokenizer.backend_tokenizer
    written = {vocabulary.token_to_id(text) for text in getattr(template, "tokens", ())}
    tokens = written | special_ids(tokenizer)
    ids = {text: vocabulary.token_to_id(text) for text in (*template.stop, *getattr(template, "stops", ()), *stop)}
    return {text: token if token in tokens else None for text, token in ids.items()}


def with_ends(template: ChatTemplate, ids: Iterable[int], tokenizer: Any, *, found: str) -> ChatTemplate:
    """Return a template that ends answers with the tokens that a model states, and with what it writes after an answer itself.

    Args:
        template: how the model is talked to; the same one is returned where it ends answers with these ids anyway.
        ids: of the tokens.
        tokenizer: the model's.
        found: where they are stated, for messages.

    Raises:
        LmmError: an id that is none of the tokenizer's, or a template without a field `ends`.
    """
    stated = frozenset(ids)
    if stated <= answer_ends(template, tokenizer):
        return template
    vocabulary = tokenizer.backend_tokenizer
    unknown = sorted(token for token in stated if vocabulary.id_to_token(token) is None)
    if unknown:
        raise LmmError(f"{found} ends answers with {unknown}, which are no ids of the tokenizer ({len(tokenizer)} tokens): correct eos_token_id")
    if not (is_dataclass(template) and any(field.name == "ends" for field in fields(template))):
        raise LmmError(
            f"{found} ends answers with {sorted(stated)}, and template {template.name!r} has no field 'ends' to keep them in: give it one, as "
            f"MarkedTemplate has"
        )
    if tokenizer.eos_token_id is not None and _writes_eos(template):
        stated |= {tokenizer.eos_token_id}
    return replace(template, ends=tuple(vocabulary.id_to_token(token) for token in sorted(stated)))


def with_stops(template: ChatTemplate, strings: Sequence[str], tokenizer: Any, *, found: str) -> ChatTemplate:
    """Return a template that ends answers with the strings that a model states, too; the same one where it does anyway.

    Raises:
        LmmError: a template without a field to keep them in.
    """
    ends, known = answer_ends(template, tokenizer), stop_texts(template, tokenizer)
    new = tuple(text for text in dict.fromkeys(strings) if text not in known and tokenizer.backend_tokenizer.token_to_id(text) not in ends)
    if not new:
        return template
    if not (is_dataclass(template) and any(field.name == "stops" for field in fields(template))):
        raise LmmError(
            f"{found} ends answers with the strings {list(new)}, and template {template.name!r} has no field 'stops' to keep them in: give it one, "
            f"as MarkedTemplate has"
        )
    return replace(template, stops=(*template.stops, *new))


def _writes_eos(template: ChatTemplate) -> bool:
    """Whether the tokenizer's own end token stands after answers."""
    messages = [{"role": "user", "content": IMAGE_MARKER}, {"role": "assistant", "content": _WORD}]
    said = [piece for piece in template.render(messages) if piece.train]
    return bool(said) and said[-1].kind == "eos"


def answer_margins(template: ChatTemplate, tokenizer: Any, *, mode: Mode = "pieces") -> tuple[str, str]:
    """Return the text that the model says before an answer and after it, before the token that ends it.

    Args:
        template: a template object.
        tokenizer: a transformers tokenizer backed by the `tokenizers` library.
        mode: how conversations are tokenised, see `encode_chat`.

    Returns:
        `(" ", "")` for Vicuna, `(" ", " ")` for Llama 2, `("", "")` for ChatML. A space in front where nothing can be found out: the template
        refuses a picture with one word as its caption, or the tokenizer can't spell the word.
    """
    messages = [{"role": "user", "content": IMAGE_MARKER}, {"role": "assistant", "content": _WORD}]
    try:
        tokens = encode_chat(messages, template, tokenizer, mode=mode)
    except LmmError:
        return " ", ""
    said = supervised_texts(tokens, tokenizer, answer_ends(template, tokenizer))
    before, found, after = "".join(said).partition(_WORD)
    return (before, after) if found else (" ", "")


def decode_supervised(
    tokens: Tokens,
    tokenizer: Any,
    *,
    template: str | ChatTemplate | None = None,
    mode: Mode = "pieces",
    separator: str = " ",
) -> list[str]:
    """Return the texts that the labels teach, to look at or to compare with the answers.

    Args:
        tokens: a tokenised conversation.
        tokenizer: the tokenizer that made it.
        template: what rendered it: what it puts before an answer and after it is taken off.
        mode: the mode it was tokenised in.
        separator: without a template, what stands before an answer; taken off where it is found.

    Returns:
        One string per unbroken run of supervised tokens, without the token that ends an answer.
    """
    if template is None:
        texts = supervised_texts(tokens, tokenizer, frozenset({tokenizer.eos_token_id}))
        return [text.removeprefix(separator) for text in texts]
    template = get_template(template, tokenizer)
    before, after = answer_margins(template, tokenizer, mode=mode)
    texts = supervised_texts(tokens, tokenizer, answer_ends(template, tokenizer))
    return [text.removeprefix(before).removesuffix(after) for text in texts]


def supervised_texts(tokens: Tokens, tokenizer: Any, ends: frozenset[int]) -> list[str]:
    """Return the text of each unbroken run of supervised tokens, without the tokens in `ends`."""
    encoder = text_encoder(tokenizer)
    runs = groupby(tokens.labels, key=lambda label: label != IGNORE_LABEL)
    return [encoder.decode([label for label in run if label not in ends]) for supervised, run in runs if supervised]
