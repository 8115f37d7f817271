"""A SentencePiece model as a ``tokenizer.json``: the same ids for any text."""

from __future__ import annotations

import base64
from typing import Any

from ..spec import LmmError
from .merges import merges_by_score
from .spm_file import UNIGRAM, Kind, SentencePieces

_SPACE = "▁"
SPACES_AT_ENDS = r"\A +| +\z"
"""The pattern of the normalizer that takes the spaces off a text, which is wrong for a piece of a conversation."""


def tokenizer_spec(pieces: SentencePieces, *, legacy: bool, bos: str | None, eos: str | None) -> dict[str, Any]:
    """Return the content of a ``tokenizer.json``.

    Args:
        pieces: the SentencePiece model.
        legacy: whether a text goes on with a space in front after a special token, as transformers did before it had the flag.
        bos: the token that stands before a whole document, None for none.
        eos: the token that stands after it.

    Raises:
        LmmError: a kind of model that can't be expressed.
    """
    _refuse_others(pieces)
    names = [text for text, _, _ in pieces.pieces]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(pieces),
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(pieces)},
        "pre_tokenizer": _pre_tokenizer(pieces, legacy),
        "post_processor": _post_processor(names, bos, eos),
        "decoder": _decoder(pieces),
        "model": _unigram(pieces) if pieces.model_type == UNIGRAM else _bpe(pieces),
    }


def _refuse_others(pieces: SentencePieces) -> None:
    found = {3: "whole words", 4: "characters"}.get(pieces.model_type)
    if found is None and pieces.suffix:
        found = "words with the space after them"
    if found is None and any(kind == Kind.UNUSED for _, _, kind in pieces.pieces):
        found = "pieces that are marked unused"
    if found is None and pieces.one_space and any(" " in text for text, _, kind in pieces.pieces if kind == Kind.USER_DEFINED):
        found = "user-defined pieces with spaces, in which runs of spaces become one"
    if found is not None:
        raise LmmError(
            f"the SentencePiece model is one of {found}, expected Unigram or BPE: convert it to a tokenizer.json with the library it was made for"
        )


def _added_tokens(pieces: SentencePieces) -> list[dict[str, Any]]:
    """Return what isn't made of smaller pieces: special tokens, and user-defined pieces, which text has with its spaces replaced."""
    kinds = {Kind.CONTROL: True, Kind.UNKNOWN: True, Kind.USER_DEFINED: False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    return [
        {"id": index, "content": text, **flags, "normalized": not kinds[kind], "special": kinds[kind]}
        for index, (text, _, kind) in enumerate(pieces.pieces)
        if kind in kinds and (kinds[kind] or " " not in text)
    ]


def _bpe(pieces: SentencePieces) -> dict[str, Any]:
    scores = {text: score for text, score, kind in pieces.pieces if kind == Kind.NORMAL}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces.pieces[dict(pieces.special).get("unk", 0)][0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": pieces.byte_fallback,
        "ignore_merges": False,
        "vocab": {text: index for index, (text, _, _) in enumerate(pieces.pieces)},
        "merges": [list(merge) for merge in merges_by_score(scores)],
    }


def _unigram(pieces: SentencePieces) -> dict[str, Any]:
    """Pieces that text can't become score lower than any way to spell them in single characters."""
    normal = [score for _, score, kind in pieces.pieces if kind == Kind.NORMAL]
    longest = max(len(text) for text, _, _ in pieces.pieces)
    never = (longest + 1) * min(min(normal, default=0.0), -1.0)
    scores = [score if kind == Kind.NORMAL else never for _, score, kind in pieces.pieces]
    return {
        "type": "Unigram",
        "unk_id": dict(pieces.special).get("unk", 0),
        "byte_fallback": pieces.byte_fallback,
        "vocab": [[text, score] for (text, _, _), score in zip(pieces.pieces, scores)],
    }


def _normalizers(pieces: SentencePieces) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if pieces.charsmap:
        parts.extend(_line_breaks_apart(pieces.charsmap))
        parts.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(pieces.charsmap).decode()})
    if pieces.one_space:
        parts.append({"type": "Replace", "pattern": {"Regex": SPACES_AT_ENDS}, "content": ""})
        parts.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    return [*parts, {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]


def _line_breaks_apart(charsmap: bytes) -> list[dict[str, Any]]:
    """Return what keeps both of a carriage return and the line break after it.

    SentencePiece maps them one by one. The tokenizers library maps a whole grapheme cluster, which the two are, by its first character.
    """
    from tokenizers.normalizers import Precompiled

    mapped = Precompiled(charsmap).normalize_str
    apart = mapped("\r") + mapped("\n")
    return [] if mapped("\r\n") == apart else [{"type": "Replace", "pattern": {"String": "\r\n"}, "content": apart}]


def _pre_tokenizer(pieces: SentencePieces, legacy: bool) -> dict[str, Any]:
    scheme = ("always" if legacy else "first") if pieces.dummy_prefix else "never"
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False}


def _post_processor(names: list[str], bos: str | None, eos: str | None) -> dict[str, Any] | None:
    tokens = [token for token in (bos, eos) if token in names]

    def around(text: str, segment: int) -> list[dict[str, Any]]:
        before, behind = ([{"SpecialToken": {"id": token, "type_id": segment}}] if token in names else [] for token in (bos, eos))
        return [*before, {"Sequence": {"id": text, "type_id": segment}}, *behind]

    if not tokens:
        return None
    ids = {token: {"id": token, "ids": [names.index(token)], "tokens": [token]} for token in tokens}
    single = around("A", 0)
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, *around("B", 1)], "special_tokens": ids}


def _decoder(pieces: SentencePieces) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}]
    parts += [{"type": "ByteFallback"}] if pieces.byte_fallback else []
    parts += [{"type": "Fuse"}]
    parts += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if pieces.dummy_prefix else []
    return {"type": "Sequence", "decoders": parts}
