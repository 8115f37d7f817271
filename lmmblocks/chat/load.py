"""Loading a tokenizer: the one way, for a model's, an instruction's, and one that only counts.

Motivation: what a folder says is said twice, by its files and by the class that transformers reads them with, and the two differ between
versions of transformers. A text has to be cut the way the model was trained, so the files win:

- ``tokenizer.model`` without ``tokenizer.json`` (LLaMA, Vicuna, LLaVA's own folders) is converted here, see ``spm_convert.py``; so is
  ``qwen.tiktoken`` (the first Qwen models and Qwen-VL), whose class is code beside it, see ``qwen_tokenizer.py``;
- a ``tokenizer.json`` whose merges were written in the order of the ids gets them in SentencePiece's order, and a warning says so;
- a class that makes its tokenizer anew instead of taking the file's gives way to the file, where the two cut differently;
- files that give tokens other ids than the tokenizer has are refused, see ``stated_ids.py``.

How it works: where the files as they are would be misread, transformers reads a folder beside them, with a ``tokenizer.json`` made right.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..files.foreign import file_kind
from ..files.json_object import read_object
from ..files.locate import locate
from ..spec import LmmError, first_line
from .merges import mended_merges
from .qwen_tokenizer import CONFIG as QWEN_CONFIG
from .qwen_tokenizer import VOCABULARY as QWEN
from .qwen_tokenizer import qwen_spec
from .spm_convert import tokenizer_spec
from .spm_file import SentencePieces, sentencepieces_of
from .stated_ids import check_stated_tokens

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tokenizer_config.json", "vocab.json", "vocab.txt", QWEN)

_JSON, _CONFIG, _SPM = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
_SPM_OF_T5 = "spiece.model"
_SMALL = {".json", ".txt", ".model", ".jinja"}
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\n")
"""How a vocabulary of tiktoken begins, which Llama 3 has under the same name."""
_READERS = ("sentencepiece", "tiktoken")
_PACKAGES = {**dict(zip(_READERS, _READERS)), "protobuf": "google.protobuf"}
"""What transformers reads vocabularies with, and the modules of each."""
_PROBES = (
    "Hello world, it isn't  so:\n\n\tx = 12345.67",
    "\n  two   blanks ",
    "\u732b\u5728\u57ab\u5b50\u4e0a \N{CAT FACE} caf\u00e9 \ufb01\uff21",
    "def f(a):\n        return [a  for a in (1,2)]",
)
"""Texts that tokenizers of different making cut differently. None begins with a space, before which classes and files differ by design."""


def load_tokenizer(path_or_id: str | os.PathLike[str]) -> Any:
    """Return the transformers tokenizer of a folder or hub id; it cuts texts as the files say.

    Args:
        path_or_id: a folder, or ``owner/name`` of the hub.

    Raises:
        LmmError: no tokenizer there, or one that can't be read.
    """
    folder = locate(path_or_id, weights=False)
    if not has_tokenizer(folder):
        raise LmmError(f"{folder} holds no tokenizer: expected {' or '.join(TOKENIZER_FILES)}; pass tokenizer=... or another folder")
    for path in (folder / name for name in TOKENIZER_FILES if (folder / name).is_file()):
        if (kind := file_kind(path)) is not None:
            raise LmmError(f"{path} is {kind}")
    try:
        with _readable(folder) as files:
            tokenizer = _read(files)
    except LmmError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise LmmError(f"the tokenizer in {folder} can't be read: {first_line(error)}: {_advice(error, folder)}") from error
    _without_dropout(getattr(tokenizer, "backend_tokenizer", None))
    check_stated_tokens(folder, tokenizer)
    tokenizer.name_or_path = str(path_or_id)
    if "legacy" not in tokenizer.init_kwargs and isinstance(getattr(tokenizer, "legacy", None), bool):
        tokenizer.init_kwargs["legacy"] = tokenizer.legacy  # else it isn't saved
    if (folder / _SPM).is_file():
        tokenizer.vocab_file = str(folder / _SPM)
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Say whether a folder holds files of a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


@contextmanager
def _readable(folder: Path) -> Iterator[Path]:
    """Give the folder that transformers reads: this one, or a copy of its small files with a ``tokenizer.json`` made right."""
    made = _made_json(folder)
    if made is None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        unknown = ("config.json",) if (folder / QWEN).is_file() else ()  # of a model that transformers doesn't have
        for path in folder.iterdir():
            if path.suffix in _SMALL and path.name not in unknown and path.is_file():
                shutil.copyfile(path, copy / path.name)
        (copy / _JSON).write_text(json.dumps(made), encoding="utf-8")
        (copy / _CONFIG).write_text(json.dumps(_config_with_flags(folder)), encoding="utf-8")
        yield copy


def _made_json(folder: Path) -> dict[str, Any] | None:
    """Return what ``tokenizer.json`` should hold, None if it is there and right, or can't be made here."""
    pieces = sentencepieces_of(folder / _SPM)
    if (folder / _JSON).is_file():
        return _with_mended_merges(folder, pieces)
    if (folder / QWEN).is_file():
        return qwen_spec(folder)
    if pieces is None and _class_of(folder) in ("T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer"):
        pieces = sentencepieces_of(folder / _SPM_OF_T5)
    elif pieces is None and (folder / _SPM).is_file() and not _TIKTOKEN.match((folder / _SPM).read_bytes()):
        raise LmmError(f"the tokenizer in {folder} can't be read: {_SPM} is no SentencePiece model: copy or download it again")
    return None if pieces is None else tokenizer_spec(pieces, legacy=_is_legacy(folder), **_around_documents(folder, pieces))


def _around_documents(folder: Path, pieces: SentencePieces) -> dict[str, str | None]:
    """Return the tokens that stand around a whole document; without a flag LLaMA's class adds the first, T5's the last."""
    config, named = _read_json(folder / _CONFIG), dict(pieces.special)
    is_t5 = "T5" in _class_of(folder)
    added = {"bos": config.get("add_bos_token", not is_t5), "eos": config.get("add_eos_token", is_t5)}
    return {name: _token(config, name, pieces, named) if wanted else None for name, wanted in added.items()}


def _token(config: dict[str, Any], name: str, pieces: SentencePieces, named: dict[str, int]) -> str | None:
    """Return the text of a token: as the config says, else the SentencePiece model."""
    stated = config.get(f"{name}_token")
    stated = stated.get("content") if isinstance(stated, dict) else stated
    return stated or (pieces.pieces[named[name]][0] if name in named else None)


def _with_mended_merges(folder: Path, pieces: SentencePieces | None) -> dict[str, Any] | None:
    """Return the content of ``tokenizer.json`` with its merges in SentencePiece's order, None if they are or it has no such order."""
    made = _read_json(folder / _JSON)
    model = made.get("model")
    merges = mended_merges(model, pieces) if isinstance(model, dict) else None
    if merges is None:
        return None
    warnings.warn(
        f"{folder / _JSON} has its merges in the order of the token ids, expected that of the scores of {_SPM if pieces else 'LLaMA'}, by which the "
        "decoder was pretrained: texts with several spaces in a row are cut by the scores; save the model again to have them in the file",
        stacklevel=5,
    )
    assert isinstance(model, dict)
    return {**made, "model": {**model, "merges": [list(merge) for merge in merges]}}


def _read(files: Path) -> Any:
    """Read a folder of tokenizer files by the class that it names, or by none where that would cut texts in another way."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    has_json = (files / _JSON).is_file()
    try:
        tokenizer = AutoTokenizer.from_pretrained(files, **_unsaid_flags(files))
    except Exception:  # a class that this version of transformers doesn't have, or one that can't take the file
        if not has_json:
            raise
    else:
        if not has_json or _cuts_as(tokenizer, files / _JSON):
            return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(files, **_listed_specials(files))


def _listed_specials(files: Path) -> dict[str, Any]:
    """Return the special tokens without a name as transformers 4 and 5 take them: 5 writes a list where 4 expects a dict."""
    listed = _read_json(files / _CONFIG).get("extra_special_tokens")
    return {"extra_special_tokens": {}, "additional_special_tokens": listed} if isinstance(listed, list) else {}


def _cuts_as(tokenizer: Any, file: Path) -> bool:
    """Whether a tokenizer cuts texts as its file does."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    stated = Tokenizer.from_file(str(file))
    _without_dropout(backend)
    _without_dropout(stated)
    found, expected = ([one.encode(text, add_special_tokens=False).ids for text in _PROBES] for one in (backend, stated))
    return found == expected


def _without_dropout(backend: Any) -> None:
    """Have a tokenizer cut a text in one way, also where the file has it leave merges out by chance, as it was trained with."""
    if getattr(backend, "model", None) is not None and getattr(backend.model, "dropout", None):
        backend.model.dropout = None


def _unsaid_flags(files: Path) -> dict[str, Any]:
    """Return what a folder says about ``legacy`` by its ``tokenizer.json`` alone: classes have changed their default."""
    if "legacy" in _read_json(files / _CONFIG) or not _class_of(files).startswith("LlamaTokenizer"):
        return {}
    stated = _read_json(files / _JSON)
    return {"legacy": _prepends_always(stated)} if stated else {}


def _prepends_always(stated: dict[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` puts a space after every special token: by a normalizer, or by its pre-tokenizer."""
    text = json.dumps([stated.get("normalizer"), stated.get("pre_tokenizer")])
    return '"Prepend"' in text or '"prepend_scheme": "always"' in text


def _config_with_flags(folder: Path) -> dict[str, Any]:
    """Return what ``tokenizer_config.json`` should say beside a converted file: the flag as it is meant, and all of it where there is none."""
    config = _read_json(folder / _CONFIG)
    if (folder / QWEN).is_file() and not (folder / _JSON).is_file():
        return {**{key: config[key] for key in ("model_max_length",) if key in config}, **QWEN_CONFIG}
    if config:
        return config if (folder / _JSON).is_file() else {"legacy": _is_legacy(folder), **config}
    pieces = sentencepieces_of(folder / _SPM)
    named = () if pieces is None else pieces.special
    tokens = {f"{name}_token": pieces.pieces[index][0] for name, index in named} if pieces else {}
    return {"tokenizer_class": "LlamaTokenizer", "legacy": True, **tokens}


def _is_legacy(folder: Path) -> bool:
    """Whether a tokenizer goes on with a space after a special token; files without the flag are older than it."""
    return bool(_read_json(folder / _CONFIG).get("legacy", True))


def _class_of(folder: Path) -> str:
    return str(_read_json(folder / _CONFIG).get("tokenizer_class") or "")


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, nothing if there is no such file."""
    return read_object(path) if path.is_file() else {}


def _advice(error: Exception, folder: Path) -> str:
    """Say what to do: install what is missing, or repair the files."""
    needed = {name for name in _PACKAGES if name in str(error).lower()} - set(_READERS)
    if not (folder / _JSON).is_file():  # the file knows: transformers 5 tries each on either and tells of the last, 4 names a class
        needed |= {reader for path in folder.glob("*.model") if (reader := _reader_of(path))}
    missing = [name for name, module in _PACKAGES.items() if name in needed and not _is_installed(module)]
    return f"`pip install {' '.join(missing)}`" if missing else "copy or download it again"


def _reader_of(path: Path) -> str | None:
    """Return the package that reads a vocabulary, None for what is none."""
    if sentencepieces_of(path) is not None:
        return "sentencepiece"
    return "tiktoken" if _TIKTOKEN.match(path.read_bytes()) else None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False
