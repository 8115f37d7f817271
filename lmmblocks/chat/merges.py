"""The merges of a BPE tokenizer in the order of SentencePiece: by the score of what they make.

Motivation: transformers 5 orders the merges of a ``tokenizer.model`` by token id, and writes them to ``tokenizer.json`` that way. In LLaMA's
vocabulary the runs of spaces have the first ids but the lowest scores, so every text with two spaces in a row is cut differently from
the way the model was trained: ``"a  is"`` must be ``▁a ▁ ▁is``, not ``▁a ▁▁ is``.

How it works: merges are sorted by score; equal scores exist for runs of spaces only, which SentencePiece grows from the left, so there the
longer left part goes first. Where the file with the scores is gone, LLaMA's vocabulary is known by its first words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .spm_file import Kind, SentencePieces

Merge = tuple[str, str]

_SPACE = "▁"
_LLAMA_START = {"▁▁": 259, "▁t": 260, "er": 261, "in": 262, "▁a": 263, "en": 264, "on": 265, "▁th": 266}
_LOWEST = -1e9


def merges_by_score(scores: Mapping[str, float]) -> list[Merge]:
    """Return every way to make a piece of two others, in SentencePiece's order.

    Args:
        scores: of the pieces that text can become.
    """
    merges = [(piece[:at], piece[at:]) for piece in scores for at in range(1, len(piece)) if piece[:at] in scores and piece[at:] in scores]
    return in_order(merges, scores)


def in_order(merges: Sequence[Merge], scores: Mapping[str, float]) -> list[Merge]:
    """Return merges as SentencePiece ranks them; those of pieces without a score come last."""

    def rank(merge: Merge) -> tuple[float, int, int]:
        return scores.get(merge[0] + merge[1], -float("inf")), len(merge[0]), len(merge[1])

    return sorted(merges, key=rank, reverse=True)


def mended_merges(model: Mapping[str, Any], pieces: SentencePieces | None) -> list[Merge] | None:
    """Return the merges that a tokenizer should have, None if it has them or nothing says otherwise.

    Args:
        model: the ``model`` of a ``tokenizer.json``.
        pieces: of the SentencePiece file beside it, if there is one.
    """
    if model.get("type") != "BPE":
        return None
    vocab = model["vocab"]
    scores = _llama_scores(vocab) if pieces is None else _scores_of(pieces, vocab)
    if scores is None:
        return None
    found: list[Merge] = [_pair(merge) for merge in model["merges"]]
    ranked = [scores[left + right] for left, right in found if left + right in scores]
    if all(before >= after for before, after in zip(ranked, ranked[1:])):
        return None
    return in_order(found, scores)


def _pair(merge: str | Sequence[str]) -> Merge:
    """Return the two parts of a merge; older files write them with a space between."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _scores_of(pieces: SentencePieces, vocab: Mapping[str, int]) -> dict[str, float] | None:
    """Return the scores of a SentencePiece file, None if its ids are not those of ``vocab``."""
    if any(vocab.get(text) != index for index, (text, _, kind) in enumerate(pieces.pieces) if kind == Kind.NORMAL):
        return None
    return {text: score for text, score, kind in pieces.pieces if kind == Kind.NORMAL}


def _llama_scores(vocab: Mapping[str, int]) -> dict[str, float] | None:
    """Return the scores of LLaMA's vocabulary: the later the lower, and runs of spaces below all others."""
    if any(vocab.get(piece) != index for piece, index in _LLAMA_START.items()):
        return None
    return {piece: _LOWEST if set(piece) == {_SPACE} else float(-index) for piece, index in vocab.items()}
