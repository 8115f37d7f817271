"""Loading a tokenizer, with the merges of a SentencePiece model in SentencePiece's own order.

Motivation: Vicuna and the original LLaVA checkpoints ship `tokenizer.model` alone. transformers 5 turns it
into a BPE tokenizer whose merges are ordered by token id. In LLaMA's vocabulary the runs of spaces have the
first ids but the lowest scores, so every text with two spaces in a row is cut differently from the way the
model was trained: `"a  is"` must be `▁a ▁ ▁is`, not `▁a ▁▁ is`.

How it works: after loading, the merges are sorted by the score of what they make; equal scores exist for runs
of spaces only, which SentencePiece grows from the left, so there the longer left part goes first.
"""

from __future__ import annotations

import json
import math
from os import PathLike
from typing import Any

from ..spec import LmmError

_WHERE = ("revision", "subfolder", "cache_dir", "token", "local_files_only")
"""The options that say which file of a repository is meant."""


def load_tokenizer(source: str | PathLike[str], **options: Any) -> Any:
    """Load a tokenizer from a folder or from the hub.

    Args:
        source: a folder or a repository name.
        **options: passed on to `transformers.AutoTokenizer.from_pretrained`.

    Returns:
        The transformers tokenizer.

    Raises:
        LmmError: there is no tokenizer that transformers can load.
    """
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    source = str(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError) as error:
        raise LmmError(
            f"no tokenizer can be loaded from {source!r} ({str(error).splitlines()[0]}): expected a folder or "
            "repository with tokenizer.json, or with tokenizer.model, which needs `pip install sentencepiece protobuf`"
        ) from error
    where = {key: options[key] for key in _WHERE if key in options}
    where |= {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    if cached_file(source, "tokenizer.json", **where) is None:
        model_file = cached_file(source, "tokenizer.model", **where)
        if model_file is not None:
            _order_merges_by_score(tokenizer, model_file)
    return tokenizer


def _order_merges_by_score(tokenizer: Any, model_file: str) -> None:
    """Sort the merges of a BPE tokenizer by the scores in its SentencePiece file."""
    from sentencepiece import SentencePieceProcessor

    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    if model["type"] != "BPE":
        return
    pieces = SentencePieceProcessor(model_file=model_file)
    scores = {pieces.id_to_piece(i): pieces.get_score(i) for i in range(len(pieces))}
    merges = sorted(
        (tuple(merge) for merge in model["merges"]),
        key=lambda merge: (scores.get(merge[0] + merge[1], -math.inf), len(merge[0]), len(merge[1])),
        reverse=True,
    )
    kept = {key: model[key] for key in ("unk_token", "fuse_unk", "byte_fallback")}
    backend.model = type(backend.model)(model["vocab"], merges, **kept)
