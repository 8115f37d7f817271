"""What the files of a model say about talking to it: a chat template and the tokens that end an answer.

A chat template is in ``processor_config.json``, ``chat_template.json``, ``chat_template.jinja``, ``additional_chat_templates/`` or
``tokenizer_config.json``; the tokens that end an answer are ``eos_token_id``, one or a list, of ``generation_config.json``, ``config.json`` or its
``text_config``, and the strings that do are ``stop_strings`` of ``generation_config.json``. The first file that says it counts, in the order of
transformers' processors. Of several templates it is the one called ``default``.
An id of ``config.json`` counts where it is a special token: that file often has another model's.
Source: ``processing_utils.py`` and ``generation/configuration_utils.py`` of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..spec import LmmError
from ..spec.fields import is_whole
from .files.tensors import CONFIG, read_json

GENERATION = "generation_config.json"
_KEY = "chat_template"
_IN_JSON = ("processor_config.json", "chat_template.json")
_JINJA = "chat_template.jinja"
_MORE = "additional_chat_templates"
_TOKENIZER = "tokenizer_config.json"
_WHEN_ASKED = ("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "max_new_tokens", "max_length")
"""Settings that a caller chooses here: how tokens are drawn, and how many at most."""
_GREEDY_WITHOUT: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale", "num_beams"), (1,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens", "penalty_alpha"), (0,)),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids", "constraints"), ([],)),
    **dict.fromkeys(("sequence_bias",), ([], {})),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "dola_layers"), ()),
    "token_healing": (False,),
}
"""Settings that give other tokens even where nothing is drawn -> the values, besides null, with which they don't."""


_SHOWN = 60  # characters of a value


@dataclass(frozen=True)
class Stated:
    """Something that a file says.

    Attributes:
        file: its name.
        value: what it says.
        others: files that say something else and don't count.
    """

    file: str
    value: Any
    others: tuple[str, ...] = ()


def stated_template(folder: Path) -> Stated | None:
    """Return the source of a folder's chat template, None where it has none.

    Raises:
        LmmError: a file that can't be read, or several templates of which none is the default.
    """
    found = list(_templates(folder))
    if not found:
        return None
    first, *rest = found
    return Stated(*first, tuple(file for file, source in rest if source != first[1]))


def _templates(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield every file that holds a chat template, in the order in which they count, and the template."""
    for name in _IN_JSON:
        yield from _of_json(folder, name, required=name == "chat_template.json")
    if (folder / _JINJA).is_file():
        yield _JINJA, _text(folder / _JINJA)
    more = {path.stem: path for path in sorted((folder / _MORE).glob("*.jinja"))}
    if "default" in more:
        yield f"{_MORE}/default.jinja", _text(more["default"])
    elif more and not (folder / _JINJA).is_file():
        raise LmmError(_no_default(folder / _MORE, more))
    yield from _of_json(folder, _TOKENIZER)


def _of_json(folder: Path, name: str, *, required: bool = False) -> Iterator[tuple[str, str]]:
    values = read_json(folder / name) if (folder / name).is_file() else {}
    said = values.get(_KEY)
    if required and values and _KEY not in values:
        raise LmmError(f"{folder / name} has no {_KEY!r}, found {', '.join(map(repr, values))}: correct or remove it")
    if isinstance(said, list) and all(isinstance(entry, Mapping) and {"name", "template"} <= set(entry) for entry in said):
        said = {entry["name"]: entry["template"] for entry in said}
    if isinstance(said, Mapping) and said:
        if "default" not in said:
            raise LmmError(_no_default(folder / name, said))
        said = said["default"]
    if said and not isinstance(said, str):
        raise LmmError(f"{folder / name}: {_KEY} must be a Jinja template, or several with names, found a {type(said).__name__}")
    if said:
        yield name, said


def _no_default(where: Path, names: Any) -> str:
    return f"{where} holds the chat templates {', '.join(map(repr, names))}, expected one called 'default': choose one with load(..., template=...)"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LmmError(f"{path} is no chat template: byte {error.start} is not UTF-8: copy it again") from error


def stated_ends(folder: Path, special: frozenset[int]) -> Stated | None:
    """Return the ids that a folder says end an answer, None where it says nothing.

    Args:
        folder: of a model.
        special: ids of the tokenizer's special tokens.

    Raises:
        LmmError: what is said is no id and no list of ids.
    """
    if (folder / GENERATION).is_file():
        ids = _ids(folder / GENERATION, read_json(folder / GENERATION).get("eos_token_id"))
        if ids:
            return Stated(GENERATION, ids)
    if not (folder / CONFIG).is_file():
        return None
    values = read_json(folder / CONFIG)
    text = values.get("text_config")
    for where, said in ((CONFIG, values), (f"{CONFIG}, text_config", text if isinstance(text, Mapping) else {})):
        ids = _ids(folder / CONFIG, said.get("eos_token_id"))
        if ids and set(ids) <= special:
            return Stated(where, ids)
    return None


def _ids(path: Path, said: Any) -> tuple[int, ...]:
    """Return one id or a list of them as ids."""
    ids = tuple(said) if isinstance(said, list) else () if said is None else (said,)
    if not all(is_whole(entry) and entry >= 0 for entry in ids):
        raise LmmError(f"{path}: eos_token_id must be a token id or a list of them, found {said!r}: correct it")
    return ids


def stated_stops(folder: Path) -> tuple[str, ...]:
    """Return the strings that a folder says end an answer.

    Raises:
        LmmError: what is said is no string and no list of strings.
    """
    said = read_json(folder / GENERATION).get("stop_strings") if (folder / GENERATION).is_file() else None
    strings = tuple(said) if isinstance(said, list) else () if said is None else (said,)
    if not all(isinstance(entry, str) and entry for entry in strings):
        raise LmmError(f"{folder / GENERATION}: stop_strings must be a string or a list of them, none of them empty, found {said!r}: correct it")
    return strings


def not_followed(folder: Path) -> dict[str, Any]:
    """Return what ``generation_config.json`` says that would change which token is the most likely one, and isn't computed here."""
    values = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    stated = {key: values[key] for key in _GREEDY_WITHOUT if values.get(key) is not None}
    return {key: value for key, value in stated.items() if value not in _GREEDY_WITHOUT[key]}


def sampling(folder: Path) -> dict[str, Any]:
    """Return what ``generation_config.json`` says about decoding beside its ends, for reports: here the caller says it.

    That nothing is drawn is what is done here anyway.
    """
    values = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    stated = {key: values[key] for key in _WHEN_ASKED if values.get(key) is not None and (key, values[key]) != ("do_sample", False)}
    return {**stated, **not_followed(folder)}


def in_words(settings: Mapping[str, Any]) -> str:
    """Return settings and their values for a message; long lists are cut."""
    return ", ".join(f"{key} {str(value) if len(str(value)) <= _SHOWN else str(value)[:_SHOWN] + '...'}" for key, value in settings.items())
