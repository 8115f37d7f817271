"""Tokenizer and table: how many rows the ids need, and growing a decoder that has fewer, its head and its config with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..spec import LmmError, closest

INITS = ("mean", "random")


def ids_needed(tokenizer: Any) -> int:
    """Return the rows that a table needs for every id of a tokenizer; ids may have gaps."""
    vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
    return max(len(tokenizer), max(vocabulary.values(), default=-1) + 1)


def check_extends(tokenizer: Any, old: Any) -> None:
    """Refuse a tokenizer that gives ids the decoder knows to other tokens.

    Raises:
        LmmError: some tokens of ``old`` have other ids, or none.
    """
    now, before = tokenizer.get_vocab(), old.get_vocab()
    other = [f"{token!r} was {number}, is {now.get(token, 'gone')}" for token, number in before.items() if now.get(token) != number]
    if other:
        raise LmmError(
            f"the tokenizer isn't the decoder's own with more tokens: {len(other)} of {len(before)} tokens have other ids, such as {other[0]}: add "
            f"the new tokens to the decoder's own tokenizer"
        )


def grow_decoder(decoder: Any, tokenizer: Any, old: Any = None, *, init: str = "mean", multiple_of: int = 1) -> tuple[int, ...]:
    """Give table and head of a decoder a row for every id of a tokenizer.

    Args:
        decoder: with ``resize_vocab(rows)``, as the library's have.
        tokenizer: all its ids get rows.
        old: the vocabulary until now (token -> id); None = as many tokens as the table has rows.
        init: ``mean`` of the rows of tokens until now, or ``random``: normal, of their spread. New is every row after the old end and every
            row of a token that ``old`` doesn't have.
        multiple_of: the number of rows is rounded up to one.

    Returns:
        The new rows.

    Raises:
        LmmError: an unknown ``init``, or a decoder that can't grow.
    """
    if init not in INITS:
        raise LmmError(f"init={init!r} is none of {INITS}{closest(str(init), INITS)}")
    if not isinstance(multiple_of, int) or multiple_of < 1:
        raise LmmError(f"multiple_of={multiple_of!r}: expected a whole number from 1 on")
    before = decoder.vocab
    fresh = set() if old is None else {number for token, number in tokenizer.get_vocab().items() if token not in old and number < before}
    used = sorted(set(range(before) if old is None else (number for number in old.values() if number < before)) - fresh)
    rows = -(-max(before, ids_needed(tokenizer)) // multiple_of) * multiple_of
    if rows > before:
        resize = getattr(decoder, "resize_vocab", None)
        if resize is None:
            raise LmmError(f"decoder {type(decoder).__name__!r} can't grow its table: give it resize_vocab(rows)")
        resize(rows)
    fresh |= set(range(before, rows))
    for weight in _by_token(decoder):
        _initialise(weight, used, sorted(fresh), init)
    return tuple(sorted(fresh))


def as_tokens(tokens: Any) -> list[Any] | None:
    """Return new tokens as a list, None for a tokenizer.

    Raises:
        LmmError: something else.
    """
    if hasattr(tokens, "get_vocab") and hasattr(tokens, "add_tokens"):
        return None
    given = [tokens] if isinstance(tokens, str) else list(tokens) if isinstance(tokens, Iterable) else [tokens]
    wrong = [token for token in given if not (isinstance(token, str) and token or type(token).__name__ == "AddedToken")]
    if wrong or not given:
        raise LmmError(f"grow_vocab takes new tokens (texts, such as ['<seg>']) or a tokenizer that has them, found {wrong[0] if wrong else given!r}")
    return given


def _by_token(decoder: Any) -> list[Tensor]:
    """Return what has one row per token, each once: table, head, bias of the head."""
    found = (decoder.table, decoder.head_weight, getattr(decoder, "head_bias", None))
    return list({id(weight): weight for weight in found if weight is not None}.values())


@torch.no_grad()
def _initialise(weight: Tensor, used: Sequence[int], fresh: Sequence[int], init: str) -> None:
    if not fresh or weight.is_meta:
        return
    rows, places = (torch.tensor(ids, device=weight.device) for ids in (used, fresh))
    known = weight[rows].float()
    made = known.mean(0).expand(len(fresh), *weight.shape[1:])
    if init == "random":
        made = made.mean() + torch.randn_like(made.contiguous()) * known.std()
    weight[places] = made.to(weight.dtype)
