"""Text to ids and back, without special tokens and without an invented leading space.

A tokenizer is made for whole documents: it looks for special tokens in the text, and a Llama-like one puts a
space before it. Both are wrong for a piece of a conversation. So each tokenizer gets a private copy of
its backend in which

- special tokens are not recognised: `</s>` in a question is four characters. The same holds for `bos`, `eos` and the
  tokens that a template writes, also where the tokenizer calls them ordinary;
- no space is put in front, and none at the ends is taken off. What the tokenizer would have done is kept as a fact (`prefix`), and the caller
  adds the space where a document really starts;
- nothing is drawn: a tokenizer with dropout would cut a text in another way each time;
- decoding does not strip a leading space, so that `decode(encode(text)) == text`, as far as the tokenizer has
  a token or bytes for every character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from ..spec import LmmError
from .merges import mended_merges
from .pieces import IMAGE_MARKER
from .spm_convert import SPACES_AT_ENDS
from .spm_file import sentencepieces_of

Prefix = Literal["never", "first", "every"]
"""Where a tokenizer puts a space before text: nowhere, at the start, or also after every special token.
The Llama tokenizer has `first` with `legacy=False` and `every` with `legacy=True`."""

_CACHED_TEXTS = 4096
_TIDIED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)
"""What `clean_up_tokenization_spaces` replaces, in this order."""


class TextEncoder:
    """The private copy of one tokenizer's backend; get it from `text_encoder`.

    Args:
        tokenizer: a transformers tokenizer backed by the `tokenizers` library.
        reserved: more tokens that are not recognised in text.

    Attributes:
        prefix: where the tokenizer itself would have put a leading space.
        special_tokens: the strings that are not recognised.
        swallowing: ids of the special tokens that swallow the whitespace behind them.
        tidies: whether decoding takes spaces out, before full stops for one.
        encode: text -> tuple of token ids; the last few thousand texts are remembered.

    Raises:
        LmmError: the backend has parts written in Python.
    """

    def __init__(self, tokenizer: Any, reserved: Collection[str] = ()) -> None:
        # 1. The backend as JSON, of which the private copy is made.
        backend = tokenizer.backend_tokenizer
        try:
            spec = json.loads(backend.to_str())
        except Exception as error:  # the library raises plain Exception
            raise LmmError(
                f"{type(tokenizer).__name__} can't be copied ({error}): its normalizer, pre-tokenizer and decoder must "
                "be built-in parts of the tokenizers library"
            ) from error
        _refuse_merges_by_id(tokenizer, spec["model"])
        # 2. Which tokens are special here: those the tokenizer calls so, its own ends, and what templates write.
        reserved = {*reserved, *filter(None, _own_tokens(tokenizer))}
        for token in spec["added_tokens"]:
            token["special"] = token["special"] or token["content"] in reserved
        self.swallowing = frozenset(token["id"] for token in spec["added_tokens"] if token["special"] and token["rstrip"])
        # 3. What the tokenizer adds and takes off by itself goes; what it would have done stays as a fact.
        self.prefix: Prefix = _remove_prefix(spec)
        _keep_leading_space(spec)
        self.tidies = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)) and spec["model"]["type"] != "BPE"
        spec.update(truncation=None, padding=None, post_processor=None)
        spec["model"].update({"dropout": None} if "dropout" in spec["model"] else {})
        # 4. The copy, which recognises no special token in text.
        self._backend = type(backend).from_str(json.dumps(spec))
        self._backend.encode_special_tokens = True
        specials = {token["content"]: token["id"] for token in spec["added_tokens"] if token["special"]}
        specials |= {token: backend.token_to_id(token) for token in reserved}
        self.special_tokens = frozenset(specials)
        # 5. Special tokens that are no markup were added, maybe in order to be said: texts that spell them are told.
        markup = structure_ids(tokenizer) | {backend.token_to_id(token) for token in (*reserved, IMAGE_MARKER)}
        added = {token["content"]: token["id"] for token in spec["added_tokens"] if token["special"]}
        unread = sorted((token for token, index in added.items() if index not in markup), key=len, reverse=True)
        self._unread = re.compile("|".join(map(re.escape, unread)) or "(?!)")
        # 6. Models whose vocabulary spells special tokens as ordinary words: such words are cut before they are encoded.
        specials |= _bytes_that_text_spells(spec["model"])
        self._special_ids = frozenset(specials.values())
        self._inside_special = re.compile("|".join(f"(?<={re.escape(s[0])})(?={re.escape(s[1:])})" for s in specials if len(s) > 1) or "(?!)")
        self.encode = lru_cache(_CACHED_TEXTS)(self._encode)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, its leading space included: exact, but for a tokenizer that tidies spaces up."""
        return self.tidied(self.decode_exactly(ids))

    def decode_exactly(self, ids: Sequence[int]) -> str:
        """Return the text of the ids before any tidying up."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def tidied(self, text: str) -> str:
        """Return a text as the tokenizer tidies it up (`clean_up_tokenization_spaces`); one of BPE loses spaces by it and so doesn't."""
        for found, tidy in _TIDIED if self.tidies else ():
            text = text.replace(found, tidy)
        return text

    def unread_tokens(self, text: str, markup: Collection[str] = ()) -> list[str]:
        """Return the special tokens that a text spells and that are no markup: they were added, maybe in order to be said."""
        return list(dict.fromkeys(token for token in self._unread.findall(text) if token not in markup))

    def _encode(self, text: str) -> tuple[int, ...]:
        ids = self._ids(text)
        if self._special_ids.isdisjoint(ids) or not self._inside_special.search(text):
            return tuple(ids)
        # Unigram and whole-word models spell special tokens in their vocabulary: cut the word that spells one.
        return tuple(i for part in self._inside_special.split(text) for i in self._ids(part))

    def _ids(self, text: str) -> list[int]:
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            surrogate = re.search("[\ud800-\udfff]", text)
            if surrogate is None:
                raise
            at = surrogate.start()
            raise LmmError(
                f"the text has half of a surrogate pair, {text[at]!r}, at character {at}, expected valid Unicode: "
                f"repair or remove it in {text[max(0, at - 20) : at + 20]!r}"
            ) from error


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of all special tokens, added ones included."""
    added = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset({*tokenizer.all_special_ids, *added})


_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def structure_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of the tokens that a tokenizer has a use for itself, such as `bos` and `eos`: what they say is no text."""
    ids = (getattr(tokenizer, f"{name}_token_id", None) for name in _NAMES)
    return frozenset(index for index in ids if index is not None)


def _own_tokens(tokenizer: Any) -> tuple[str | None, str | None]:
    return tokenizer.bos_token, tokenizer.eos_token


_ENCODERS: WeakKeyDictionary[Any, tuple[tuple[Any, ...], dict[frozenset[str], TextEncoder]]] = WeakKeyDictionary()


def text_encoder(tokenizer: Any, reserved: Iterable[str] = ()) -> TextEncoder:
    """Return the encoder of a tokenizer: made once, and again after tokens were added to it.

    Args:
        tokenizer: a transformers tokenizer.
        reserved: tokens that text never becomes, besides the special ones.

    Raises:
        LmmError: the tokenizer is not backed by the `tokenizers` library.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise LmmError(
            f"{type(tokenizer).__name__} has no `backend_tokenizer`, expected a tokenizer backed by the tokenizers "
            "library: load it with lmmblocks.chat.load_tokenizer(...)"
        )
    state = len(tokenizer), *_own_tokens(tokenizer)
    cached = _ENCODERS.get(tokenizer)
    if cached is None or cached[0] != state:
        cached = _ENCODERS[tokenizer] = (state, {frozenset(): TextEncoder(tokenizer)})
    made = cached[1]
    ordinary = frozenset(reserved) - made[frozenset()].special_tokens
    if ordinary not in made:
        made[ordinary] = TextEncoder(tokenizer, ordinary)
    return made[ordinary]


def _bytes_that_text_spells(model: dict[str, Any]) -> dict[str, int]:
    """Return the byte tokens of a Unigram model, which finds them in text that spells one, `<0x0A>`, as any other word."""
    if model["type"] != "Unigram" or not model.get("byte_fallback"):
        return {}
    ids = {text: index for index, (text, _) in enumerate(model["vocab"])}
    return {text: ids[text] for byte in range(256) if (text := f"<0x{byte:02X}>") in ids}


def _refuse_merges_by_id(tokenizer: Any, model: dict[str, Any]) -> None:
    """Refuse a tokenizer that another library made of a SentencePiece file, with its merges in the order of the ids."""
    file = getattr(tokenizer, "vocab_file", None)
    if mended_merges(model, sentencepieces_of(Path(file)) if isinstance(file, str) else None) is not None:
        raise LmmError(
            f"{type(tokenizer).__name__} {tokenizer.name_or_path!r} has its merges in the order of the token ids, expected SentencePiece's, by "
            "score: it would cut texts with several spaces in a row otherwise than the decoder was pretrained with: give the folder or hub id "
            "(tokenizer='...'), or load it with lmmblocks.chat.load_tokenizer(...)"
        )


def _parts(spec: dict[str, Any], stage: str) -> Iterator[dict[str, Any]]:
    """The parts of a stage of the pipeline, whether it is one part or a sequence."""
    part = spec.get(stage)
    nested = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[stage]
    waiting = [part] if part else []
    while waiting:
        part = waiting.pop(0)
        if part["type"] == "Sequence":
            waiting = [*part[nested], *waiting]
        else:
            yield part


def _remove_prefix(spec: dict[str, Any]) -> Prefix:
    """Turn every part off that puts a space before text, or takes spaces off its ends; return what they put in front together."""
    found: set[Prefix] = set()
    for part in _parts(spec, "normalizer"):
        if part["type"] == "Prepend" and part["prepend"] in (" ", "▁"):
            part["prepend"] = ""
            found.add("every")
        elif part["type"] == "Strip":
            part["strip_left"] = part["strip_right"] = False
        elif part["type"] == "Replace" and part["pattern"] == {"Regex": SPACES_AT_ENDS}:
            part["content"] = " "
    for part in _parts(spec, "pre_tokenizer"):
        if part["type"] == "Metaspace":
            found.add({"always": "every"}.get(part["prepend_scheme"], part["prepend_scheme"]))
            part["prepend_scheme"] = "never"
        elif part["type"] == "ByteLevel":
            found.add("every" if part["add_prefix_space"] else "never")
            part["add_prefix_space"] = False
    return "every" if "every" in found else "first" if "first" in found else "never"


def _keep_leading_space(spec: dict[str, Any]) -> None:
    """Turn off what undoes the prefix when decoding."""
    for part in _parts(spec, "decoder"):
        if part["type"] == "Strip" and part["content"] == " ":
            part["start"] = 0
        elif part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
