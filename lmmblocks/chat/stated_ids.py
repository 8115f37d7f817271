"""What the small files of a tokenizer say about tokens, held against the tokenizer that was made of all of them.

Motivation: ``tokenizer.json``, ``added_tokens_decoder`` of ``tokenizer_config.json`` and ``added_tokens.json`` each give tokens their ids, and
transformers takes one and passes over the others without a word; a token of a model's table is then another row's, or no token at all.
``tokenizer_config.json`` and ``special_tokens_map.json`` both name the special tokens; which one counts has changed with the versions of
transformers.

How it works: an id that the tokenizer doesn't have is refused, with both values. Of special tokens those of the tokenizer as transformers made it
count, and a warning names both where the files differ in the first or the last of a text.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files.json_object import read_object
from ..spec import LmmError, some

_CONFIG, _ADDED, _MAP = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
_ENDS = ("bos_token", "eos_token")


def check_stated_tokens(folder: Path, tokenizer: Any) -> None:
    """Hold a tokenizer against what its folder's files say.

    Raises:
        LmmError: a file gives a token an id that it doesn't have in the tokenizer; all are listed.

    Warns:
        UserWarning: two files name different tokens for the beginning or the end of a text.
    """
    files = {name: read_object(folder / name) for name in (_CONFIG, _ADDED, _MAP) if (folder / name).is_file()}
    known = tokenizer.get_vocab()
    other = [
        f"{name} says {number} for {token!r}, the tokenizer {_found(known, token)}"
        for name, token, number in _ids(files)
        if known.get(token) != number
    ]
    if other:
        raise LmmError(
            f"the tokenizer files in {folder} disagree about the ids of {len(other)} tokens: {some(other)}: use the files that the model was "
            f"saved with"
        )
    for key in _ENDS:
        said = {name: text for name in (_CONFIG, _MAP) if (text := _text(files.get(name, {}).get(key))) is not None}
        if len(set(said.values())) > 1:
            both = " and ".join(f"{text!r} ({name})" for name, text in said.items())
            warnings.warn(f"{folder} names two tokens as {key}: {both}: {getattr(tokenizer, key)!r} counts; correct the other file", stacklevel=4)


def _ids(files: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, int]]:
    """Yield the file, a token and the id that the file gives it."""
    decoder = files.get(_CONFIG, {}).get("added_tokens_decoder")
    for number, token in (decoder if isinstance(decoder, Mapping) else {}).items():
        text = _text(token)
        if text is not None and str(number).isdigit():
            yield _CONFIG, text, int(number)
    for token, number in files.get(_ADDED, {}).items():
        if isinstance(number, int):
            yield _ADDED, token, number


def _text(token: Any) -> str | None:
    """Return the text of a token, which is a string or an object with its ``content``."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def _found(known: Mapping[str, int], token: str) -> str:
    return f"says {known[token]}" if token in known else "doesn't have it"
