"""Pieces to token ids and labels.

Motivation: labels must follow from what the template said, for any tokenizer, role name and answer.

How it works: adjacent text pieces with the same train flag are one run; each run is encoded once, alone; its
labels are its ids or -100. Nothing is tokenised twice or counted back, so a prompt is always an exact prefix
of the conversation that continues it.

A token that was added as an ordinary one (`[SEG]`, `<loc0>`) is recognised in texts and said in answers; special tokens never are: who writes a
text could speak for another role. A text that spells a special one that is no markup is told in a warning.

Some tokenizers have special tokens that swallow the whitespace behind them (Phi-3's `<|user|>` and the newline after it); they do so here too,
but never in what is learned.

The two modes differ in one thing: to `llava15` an image ends the text
and a new one starts after it, for which a Llama-like tokenizer puts a space in front (`USER: <image>\\nWhat`
has the lone space 29871 on both sides of the image); to `pieces` an image is one more token inside the text.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..spec import IGNORE_LABEL, IMAGE_TOKEN, LmmError, closest
from ..spec.words import MODES, Mode
from .lookup import get_template, missing_tokens
from .messages import Message, llava15_messages
from .pieces import Piece
from .templates import ChatTemplate
from .text_encoder import TextEncoder, text_encoder

WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
"""What the tokenizers library calls whitespace; Python adds four control characters."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenised conversation.

    Args:
        ids: token ids; the image token marks an image.
        labels: for each token its id if it is a target, else -100. Not shifted: a label stands at its own
            token.
    """

    ids: list[int]
    labels: list[int]


def tokenize(
    pieces: Iterable[Piece],
    tokenizer: Any,
    *,
    mode: Mode = "pieces",
    image_token: int = IMAGE_TOKEN,
    reserved: Sequence[str] = (),
) -> Tokens:
    """Turn pieces into ids and labels.

    Args:
        pieces: what a template rendered.
        tokenizer: a transformers tokenizer backed by the `tokenizers` library.
        mode: "pieces", or "llava15" for the exact ids of LLaVA-1.5; see `encode_chat`.
        image_token: the id that marks an image.
        reserved: tokens that text never becomes, besides the special ones.

    Returns:
        Ids and labels of the same length.

    Raises:
        LmmError: the mode is unknown, the tokenizer lacks a token that the template asks for, or a text is
            not valid Unicode.

    Source: for "llava15", `tokenizer_image_token` and `preprocess_v1` of LLaVA at c121f04 with transformers
    4.37.2.
    """
    if mode not in MODES:
        raise LmmError(f"unknown tokenising mode {mode!r}{closest(str(mode), MODES)}; known: {', '.join(MODES)}")
    encoder = text_encoder(tokenizer, reserved)
    fresh = _kinds_before_a_prefix(encoder, mode)
    ids: list[int] = []
    labels: list[int] = []
    before = "bos"
    for (kind, train), run in groupby(pieces, key=lambda piece: (piece.kind, piece.train)):
        if kind == "text":
            text = "".join(piece.text for piece in run)
            if ids and ids[-1] in encoder.swallowing and not train:
                text = text.lstrip(WHITESPACE)
            for token in encoder.unread_tokens(text, reserved):
                _tell_of_a_special_token(token)
            new = encoder.encode(f" {text}" if before in fresh else text) if text else ()
        elif kind == "break":
            new = ()
        elif kind == "image":
            new, train = (image_token,) * len(list(run)), False
        else:
            new = tuple(token for piece in run for token in _special_ids(piece, tokenizer))
        ids += new
        labels += new if train else (IGNORE_LABEL,) * len(new)
        before = kind if new else before
    return Tokens(ids, labels)


def _tell_of_a_special_token(token: str) -> None:
    warnings.warn(
        f"a text holds {token!r}, a special token of the tokenizer, which texts never become: it is read as its characters. If the model shall "
        f"read or say the token, add it as an ordinary one: tokenizer.add_tokens([{token!r}])",
        stacklevel=4,
    )


def encode_chat(
    messages: Sequence[Message],
    template: str | ChatTemplate,
    tokenizer: Any,
    *,
    mode: Mode = "pieces",
    add_generation_prompt: bool = False,
    image_token: int = IMAGE_TOKEN,
) -> Tokens:
    """Turn messages into ids and labels: the one way for training and for generation.

    Args:
        messages: an optional system message, then user and assistant in turn; `<image>` marks an image.
        template: a name or a template object.
        tokenizer: a transformers tokenizer backed by the `tokenizers` library.
        mode: "pieces" leaves images where they stand; "llava15" moves them to the front of their turn and
            gives the ids of LLaVA-1.5.
        add_generation_prompt: end with the prompt for an answer; the last message must be the user's.
        image_token: the id that marks an image.

    Returns:
        Ids and labels of the same length.

    Raises:
        LmmError: the conversation is malformed, a name is unknown, or the tokenizer does not fit the
            template.
    """
    template = get_template(template, tokenizer)
    if mode == "llava15":
        messages = llava15_messages(messages)
    pieces = template.render(messages, add_generation_prompt=add_generation_prompt)
    reserved = getattr(template, "tokens", ())
    if missing := missing_tokens(template, tokenizer):
        raise LmmError(tokens_missing(template, missing))
    return tokenize(pieces, tokenizer, mode=mode, image_token=image_token, reserved=reserved)


def tokens_missing(template: ChatTemplate, missing: Sequence[str]) -> str:
    """Say which special tokens the tokenizer lacks, and what to do."""
    known = ", ".join(map(repr, missing))
    return (
        f"template {template.name!r} uses the special tokens {known}, which the tokenizer does not have: choose another template ('auto' is "
        f"the tokenizer's own), or add them with tokenizer.add_special_tokens({{'additional_special_tokens': {list(missing)}}}) and give the "
        "decoder's table a row for each"
    )


def _kinds_before_a_prefix(encoder: TextEncoder, mode: Mode) -> frozenset[str]:
    """The kinds of piece after which a text starts afresh and gets the tokenizer's leading space."""
    if encoder.prefix == "never":
        return frozenset()
    if encoder.prefix == "every":
        return frozenset({"bos", "eos", "special", "image"})
    return frozenset({"bos", "image"} if mode == "llava15" else {"bos"})


def _special_ids(piece: Piece, tokenizer: Any) -> tuple[int, ...]:
    """The id of a special piece; none for the `bos` of a tokenizer that has none."""
    if piece.kind == "bos":
        return () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    if piece.kind == "eos":
        if tokenizer.eos_token_id is None:
            raise LmmError("the tokenizer has no end-of-sequence token, which ends every answer: set tokenizer.eos_token")
        return (tokenizer.eos_token_id,)
    token = tokenizer.backend_tokenizer.token_to_id(piece.text)
    if token is None:
        raise LmmError(
            f"the template uses the special token {piece.text!r}, which the tokenizer does not have: add it with "
            "tokenizer.add_special_tokens(...), or choose another template"
        )
    return (token,)
