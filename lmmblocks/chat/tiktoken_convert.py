"""A vocabulary of tiktoken as a ``tokenizer.json``: the same ids for any text.

tiktoken has no list of merges. It joins, over and over, the two neighbours whose bytes together have the lowest rank, the leftmost of equal ones, and
takes a whole piece of text that has a rank as it is. So every way to cut a token into two others is a merge here, in the order of the tokens' ranks.

Source: ``src/lib.rs`` and ``tiktoken/load.py`` of openai/tiktoken.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..spec import LmmError, some

_PRINTED = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
_LETTER = {byte: chr(byte) for byte in _PRINTED} | {byte: chr(256 + index) for index, byte in enumerate(_OTHERS)}
_BYTE = {letter: byte for byte, letter in _LETTER.items()}


def letters_of(token: bytes) -> str:
    """Return how byte-level tokenizers write bytes: one printable character each, GPT-2's.

    >>> letters_of(b" a\\n")
    'ĠaĊ'
    """
    return "".join(map(_LETTER.__getitem__, token))


def bytes_of(letters: str) -> bytes:
    """Return the bytes of a token of a byte-level tokenizer.

    Raises:
        KeyError: a character that stands for no byte.
    """
    return bytes(map(_BYTE.__getitem__, letters))


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return token -> rank of a vocabulary file, whose lines are a token in base64 and its rank.

    Raises:
        LmmError: a line of another kind, or a vocabulary whose ranks don't count its tokens or that lacks a byte.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line:
            token, rank = _read_line(path, number, line)
            ranks[token] = rank
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise LmmError(f"{path} has {len(ranks)} tokens, expected their ranks to be 0 to {len(ranks) - 1}, each once: download it again")
    missing = [f"0x{byte:02X}" for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise LmmError(f"{path} has no token for {len(missing)} of the 256 bytes: {some(missing)}: download it again")
    return ranks


def _read_line(path: Path, number: int, line: bytes) -> tuple[bytes, int]:
    try:
        token, rank = line.split()
        return base64.b64decode(token, validate=True), int(rank)
    except (ValueError, binascii.Error) as error:
        raise LmmError(f"{path}, line {number}: expected a token in base64 and its rank, found {line[:40]!r}: download it again") from error


def written_ranks(ranks: Mapping[bytes, int]) -> bytes:
    """Return the content of a vocabulary file."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in sorted(ranks.items(), key=lambda entry: entry[1]))


def tokenizer_spec(ranks: Mapping[bytes, int], *, pattern: str, normalizer: str | None, added: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of a ``tokenizer.json``.

    Args:
        ranks: of :func:`read_ranks`.
        pattern: what cuts a text into the pieces inside of which tokens are joined; a regular expression that matches every character.
        normalizer: Unicode form that texts are brought to before, such as ``NFC``; None = none.
        added: the tokens that no text is joined to, each with its ``content`` and ``special``; their ids follow the ranks.
    """
    whole = {"single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(ranks) + index, **whole, "normalized": not token["special"], **token} for index, token in enumerate(added)],
        "normalizer": None if normalizer is None else {"type": normalizer},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that has a rank is one token
            "vocab": {letters_of(token): rank for token, rank in ranks.items()},
            "merges": [[letters_of(left), letters_of(right)] for left, right in merges_of(ranks)],
        },
    }


def merges_of(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield every pair of tokens that make another one together, by the rank of what they make.

    >>> list(merges_of({b"a": 0, b"b": 1, b"ab": 2, b"ba": 3, b"aba": 4}))
    [(b'a', b'b'), (b'b', b'a'), (b'a', b'ba'), (b'ab', b'a')]
    """
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        yield from (pair for pair in cuts if pair[0] in ranks and pair[1] in ranks)
