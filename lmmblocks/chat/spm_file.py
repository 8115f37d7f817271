"""Reading a SentencePiece file (``tokenizer.model``): its pieces with their scores, and how it prepares text.

Motivation: LLaMA, Vicuna and the original LLaVA folders hold this file alone, so it is on the main path: it is read without sentencepiece
and protobuf, and is the same whatever version of transformers is installed.

How it works: the file is one protobuf message, ``ModelProto``, whose field numbers are public and fixed; a message is a sequence of
(field number, wire type, value). Source of the numbers: ``sentencepiece_model.proto`` of SentencePiece 0.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_VARINT, _BITS64, _BYTES, _BITS32 = 0, 1, 2, 5
UNIGRAM, BPE = 1, 2


class Kind(IntEnum):
    """What a piece is: text becomes NORMAL and USER_DEFINED pieces only, the latter always whole."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class NotSentencePiece(ValueError):
    """A file is no SentencePiece model; the message says why."""


@dataclass(frozen=True, slots=True)
class SentencePieces:
    """A SentencePiece model.

    Attributes:
        pieces: text, score and kind of each id.
        model_type: ``UNIGRAM`` or ``BPE``; 3 and 4 are whole words and characters.
        byte_fallback: whether unknown characters become bytes.
        special: ids by name: ``unk``, ``bos``, ``eos`` and ``pad``, where the model has them.
        charsmap: the compiled normalisation of characters (NFKC, mostly); empty = none.
        dummy_prefix: whether a space goes before a text.
        one_space: whether runs of spaces become one, and those at the ends of a text none.
        suffix: whether the space belongs to the word before it.
    """

    pieces: tuple[tuple[str, float, Kind], ...]
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    special: tuple[tuple[str, int], ...] = ()
    charsmap: bytes = b""
    dummy_prefix: bool = True
    one_space: bool = True
    suffix: bool = False


def read_sentencepieces(path: Path) -> SentencePieces:
    """Read a file.

    Raises:
        NotSentencePiece: it is something else (Llama 3's file of the same name is), or damaged.
    """
    try:
        model = dict(_grouped(path.read_bytes()))
        pieces = tuple(_piece(message) for message in model[1])
        trainer, normalizer = (_last(model.get(number, [b""])[-1]) for number in (2, 3))
    except (KeyError, IndexError, ValueError, struct.error, TypeError) as error:
        raise NotSentencePiece(f"{path} is no SentencePiece model: {error}") from error
    ids = {name: _signed(trainer.get(number, default)) for name, (number, default) in _IDS.items()}
    return SentencePieces(
        pieces,
        model_type=int(trainer.get(3, UNIGRAM)),
        byte_fallback=bool(trainer.get(35, False)),
        special=tuple((name, index) for name, index in ids.items() if 0 <= index < len(pieces)),
        charsmap=bytes(normalizer.get(2, b"")),
        dummy_prefix=bool(normalizer.get(3, True)),
        one_space=bool(normalizer.get(4, True)),
        suffix=bool(trainer.get(24, False)),
    )


def sentencepieces_of(path: Path) -> SentencePieces | None:
    """Return the SentencePiece model of a file, None if there is none or it is of another kind."""
    try:
        return read_sentencepieces(path)
    except (NotSentencePiece, OSError):
        return None


_IDS = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
"""Field of the trainer and its default."""


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field: an integer, or the bytes of anything else."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        size, at = _varint(message, at) if wire == _BYTES else ({_BITS64: 8, _BITS32: 4}[wire], at)
        if at + size > len(message):
            raise ValueError(f"it ends inside field {number}")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _grouped(message: bytes) -> dict[int, list[bytes]]:
    """Return the values of each field of a message of messages."""
    groups: dict[int, list[bytes]] = {}
    for number, value in _fields(message):
        if not isinstance(value, bytes):
            raise ValueError(f"field {number} is a number, expected a message")
        groups.setdefault(number, []).append(value)
    return groups


def _last(message: bytes) -> dict[int, int | bytes]:
    """Return the value of each field; of one that is repeated the last."""
    return dict(_fields(message))


def _piece(message: bytes) -> tuple[str, float, Kind]:
    fields = _last(message)
    text, score = fields[1], fields.get(2, b"\0\0\0\0")
    assert isinstance(text, bytes) and isinstance(score, bytes)
    return text.decode("utf-8"), struct.unpack("<f", score)[0], Kind(int(fields.get(3, Kind.NORMAL)))


def _signed(value: int | bytes) -> int:
    number = int(value)
    return number - (1 << 64) if number >> 63 else number
