"""The tokenizer of the first Qwen models, whose files are a vocabulary of tiktoken (``qwen.tiktoken``) and code.

Which special tokens there are is in the code alone: 3 and 205 spare ones after the vocabulary, and after these in Qwen-VL 9 that mark images,
references and boxes. ``config.json`` tells the two apart: Qwen-VL's has a section ``visual``. What marks references and boxes (``<ref>``, ``<box>``,
``<quad>``) is read in a text and said in answers, as Qwen-VL was trained; what marks images and roles never is.

Source: ``tokenization_qwen.py`` of Qwen/Qwen-7B and Qwen/Qwen-VL-Chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.json_object import read_object
from ..spec import LmmError
from .tiktoken_convert import bytes_of, read_ranks, tokenizer_spec, written_ranks

VOCABULARY = "qwen.tiktoken"
END_OF_TEXT = "<|endoftext|>"
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPECIAL = (END_OF_TEXT, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
_SAID = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
_IMAGE = ("<img>", "</img>", "<imgpad>")
CONFIG: Mapping[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": None,
    "eos_token": END_OF_TEXT,
    "pad_token": END_OF_TEXT,
    "unk_token": None,
    "clean_up_tokenization_spaces": False,
}
"""What ``tokenizer_config.json`` says beside the converted vocabulary, where the original's names its code."""


def qwen_spec(folder: Path) -> dict[str, Any]:
    """Return the content of a ``tokenizer.json`` for a folder with a ``qwen.tiktoken``.

    Raises:
        LmmError: a damaged vocabulary, or no ``config.json`` beside it.
    """
    if not (folder / "config.json").is_file():
        raise LmmError(f"{folder} holds {VOCABULARY} and no config.json, which says whether <img> and <box> are tokens: copy it there, too")
    return _spec(read_ranks(folder / VOCABULARY), images="visual" in read_object(folder / "config.json"))


def _spec(ranks: Mapping[bytes, int], *, images: bool) -> dict[str, Any]:
    tokens = {**dict.fromkeys(_SPECIAL, True), **(dict.fromkeys(_SAID, False) | dict.fromkeys(_IMAGE, True) if images else {})}
    added = [{"content": token, "special": special} for token, special in tokens.items()]
    return tokenizer_spec(ranks, pattern=PATTERN, normalizer="NFC", added=added)


def first_image_id(tokens: int) -> int:
    """Return the id of ``<img>`` after a vocabulary of so many tokens.

    >>> first_image_id(151643)
    151857
    """
    return tokens + len(_SPECIAL) + len(_SAID)


def ranks_of(tokenizer: Any) -> dict[bytes, int]:
    """Return the vocabulary of a Qwen-VL's tokenizer, in which a rank is an id.

    Raises:
        LmmError: a tokenizer that is none, or has more tokens.
    """
    from json import loads

    spec = loads(tokenizer.backend_tokenizer.to_str())
    try:
        ranks = {bytes_of(token): rank for token, rank in spec["model"]["vocab"].items()}
        same = _in_order(spec) == _in_order(_spec(ranks, images=True))
    except (KeyError, AttributeError, TypeError):  # not of bytes, or no BPE
        same = False
    if not same:
        raise LmmError(f"the tokenizer ({type(tokenizer).__name__}, {len(tokenizer)} tokens) is not that of Qwen-VL, which {VOCABULARY} can say")
    return ranks


def _in_order(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what decides about ids."""
    model = spec["model"]
    tokens = [(token["id"], token["content"], token["special"]) for token in spec["added_tokens"]]
    return spec["normalizer"], spec["pre_tokenizer"], model["type"], model["merges"], model["ignore_merges"], tokens


def write_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Write ``qwen.tiktoken`` of a Qwen-VL's tokenizer.

    Raises:
        LmmError: a tokenizer that is none, or has more tokens.
    """
    (folder / VOCABULARY).write_bytes(written_ranks(ranks_of(tokenizer)))
