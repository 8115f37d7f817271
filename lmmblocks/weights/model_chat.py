"""How the model of a folder is talked to: as its caller says, else as its files say, else as its layout is known for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..chat import IMAGE_MARKER, ChatTemplate, from_jinja, get_template, of_model, with_ends, with_stops
from ..chat.text_encoder import special_ids
from ..config import LMMConfig
from ..spec import LmmError
from ..spec.words import Mode
from .chat_files import GENERATION, not_followed, stated_ends, stated_stops, stated_template
from .files.tensors import CONFIG, read_json

IMAGE_IDS = ("image_token_index", "image_token_id")
"""Keys of ``config.json`` for the id that stands for an image, of two generations."""


@dataclass(frozen=True)
class ModelChat:
    """How a model is talked to, and who says so.

    Attributes:
        template: with the tokens that end an answer.
        said_in: the file that holds the chat template; None = no file does.
        ends_in: the file that lists what ends an answer; None = no file does.
        notes: what a reader of these files may miss.
        tokenize_mode: how its conversations are tokenised, where a file of ours says it; None = as its layout is known for.
        not_followed: settings of a file that would give other answers than the most likely ones, and aren't computed here.
    """

    template: ChatTemplate
    said_in: str | None = None
    ends_in: str | None = None
    notes: tuple[str, ...] = ()
    tokenize_mode: Mode | None = None
    not_followed: Mapping[str, Any] = field(default_factory=dict)


def model_chat(config: LMMConfig, folders: Sequence[Path], tokenizer: Any, asked: Any = None) -> ModelChat:
    """Find out how a model is talked to.

    Args:
        config: the model's; its template is what its layout is known for, or what ``lmmblocks.json`` says.
        folders: whose files are asked, in this order; none where ``lmmblocks.json`` says it all.
        tokenizer: the model's; None = it has none, and nothing can be rendered.
        asked: the template that the caller wants: a name, ``auto``, fields or an object; None = the model's.

    Raises:
        LmmError: a file that can't be read, a chat template that can't be taken apart, or ids that the tokenizer doesn't have.
    """
    if tokenizer is None:
        return ModelChat(get_template(config.template if asked is None else asked))
    known = get_template(config.template, tokenizer)
    found = ModelChat(known if asked is None else get_template(asked, tokenizer))
    if asked is None:
        found = _of_files(config, known, folders, tokenizer) or found
    found = _with_ends(replace(found, not_followed=_first(map(not_followed, folders)) or {}), known, folders, tokenizer)
    strings = _first(map(stated_stops, folders)) or getattr(known, "stops", ())
    return replace(found, template=with_stops(found.template, strings, tokenizer, found=GENERATION))


def _with_ends(found: ModelChat, known: ChatTemplate, folders: Sequence[Path], tokenizer: Any) -> ModelChat:
    """Return it with the tokens that end an answer."""
    own = [tokenizer.convert_tokens_to_ids(token) for token in getattr(known, "ends", ())]
    stated = _first(stated_ends(folder, special_ids(tokenizer)) for folder in folders)
    if stated is None and not own:
        return found
    where, ids = (stated.file, stated.value) if stated is not None else ("the model", own)
    template = with_ends(found.template, ids, tokenizer, found=where)
    return replace(found, template=template, ends_in=None if stated is None else stated.file)


def _of_files(config: LMMConfig, known: ChatTemplate, folders: Sequence[Path], tokenizer: Any) -> ModelChat | None:
    """Return what the first folder with a chat template says."""
    for folder in folders:
        stated = stated_template(folder)
        if stated is None:
            continue
        own = from_jinja(stated.value, tokenizer)
        if own is not None:
            return ModelChat(own[0], stated.file, tokenize_mode=own[1])
        try:
            found = of_model(
                stated.value,
                tokenizer,
                name=stated.file,
                known=known,
                image_token=_image_token(folder, tokenizer),
                mode=config.tokenize_mode,
            )
        except LmmError as error:
            raise LmmError(f"{folder}: {error}") from error
        ignored = tuple(f"{other} holds another chat template, which is not used" for other in stated.others)
        return ModelChat(found.template, stated.file, notes=(*found.notes, *ignored))
    return None


def _image_token(folder: Path, tokenizer: Any) -> str:
    """Return what a folder's chat template writes for an image: the token of the id that ``config.json`` gives it."""
    values: Mapping[str, Any] = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    index = next((values[key] for key in IMAGE_IDS if isinstance(values.get(key), int)), None)
    token = tokenizer.backend_tokenizer.id_to_token(index) if index is not None and index >= 0 else None
    return token if token is not None and index in special_ids(tokenizer) else IMAGE_MARKER


def _first(found: Any) -> Any:
    return next((entry for entry in found if entry), None)
