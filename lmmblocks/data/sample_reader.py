"""How a sample will be read: what its template refuses, how long it is and which special tokens its texts spell, without loading a model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..spec import IMAGE_TOKEN, LmmError, Sample

_DEFAULT = "vicuna_v1"


@dataclass(frozen=True, slots=True)
class Reading:
    """How one sample is read.

    Attributes:
        rows: in the decoder, tokens of the rendered conversation and image rows; None = there is no tokenizer to count with.
        spelled: special tokens of the tokenizer that are no markup and that texts spell, which are read as their characters.
    """

    rows: int | None = None
    spelled: tuple[str, ...] = ()


@dataclass(frozen=True)
class SampleReader:
    """Renders samples as training does, and with a tokenizer makes tokens of them.

    Attributes:
        template: a template object.
        tokenizer: a transformers tokenizer; None = samples are only rendered.
        mode: how conversations are tokenised.
        image_rows: rows every image becomes.
    """

    template: Any
    tokenizer: Any = None
    mode: Any = "pieces"
    image_rows: int = 576

    def __call__(self, sample: Sample) -> Reading:
        """Read a sample.

        Raises:
            LmmError: the template refuses it, or it can't be tokenised.
        """
        if self.tokenizer is None:
            self.template.render(sample.messages)
            return Reading()
        from ..chat import encode_chat

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they tell is in the reading
            ids = encode_chat(sample.messages, self.template, self.tokenizer, mode=self.mode).ids
        rows = len(ids) + ids.count(IMAGE_TOKEN) * (self.image_rows - 1)
        return Reading(rows, tuple(dict.fromkeys(self._spelled(sample))))

    def _spelled(self, sample: Sample) -> Iterator[str]:
        from ..chat.messages import plain_messages
        from ..chat.pieces import split_markers
        from ..chat.text_encoder import text_encoder

        encoder, markup = text_encoder(self.tokenizer), getattr(self.template, "tokens", ())
        for message in plain_messages(sample.messages):
            for text in split_markers(message["content"]):
                yield from encoder.unread_tokens(text, markup)


def sample_reader(folder: str | os.PathLike[str] | None = None, *, template: Any = None, image_rows: int = 576) -> SampleReader:
    """Return what reads samples as a model will.

    Args:
        folder: local folder of a tokenizer or of a model, which is talked to as its files say; None = samples are only rendered.
        template: a name, ``auto`` for the tokenizer's own, or a template object; None = the model's, of a tokenizer alone ``vicuna_v1``.
        image_rows: rows every image becomes; 576 for LLaVA-1.5.

    Raises:
        LmmError: there is no tokenizer in the folder, the template is unknown or not told by the files, or ``image_rows`` is not positive.
    """
    from ..chat import get_template, load_tokenizer
    from ..chat.lookup import AUTO
    from ..weights.systems.all import folder_of

    if image_rows < 1:
        raise LmmError(f"image_rows must be at least 1, found {image_rows}")
    if template is not None and template != AUTO:
        get_template(template)  # a wrong name is refused before anything is read
    if folder is None:
        return SampleReader(get_template(_DEFAULT if template is None else template), image_rows=image_rows)
    if not os.path.isdir(folder):
        what = "is a file" if os.path.exists(folder) else "does not exist"
        raise LmmError(f"tokenizer folder {os.fspath(folder)} {what}: give a local folder of a tokenizer or model")
    if folder_of(Path(folder)).system is not None:
        return _of_model(folder, template, image_rows)
    tokenizer = load_tokenizer(folder)
    return SampleReader(get_template(_DEFAULT if template is None else template, tokenizer), tokenizer, image_rows=image_rows)


def _of_model(folder: str | os.PathLike[str], template: Any, image_rows: int) -> SampleReader:
    from ..chat import load_tokenizer
    from ..weights.model_chat import model_chat
    from ..weights.systems.all import open_model

    found, system = open_model(folder)
    home = system.tokenizer(found)
    if home is None:
        raise LmmError(f"{os.fspath(folder)} holds no tokenizer: give the folder of one, and --template")
    tokenizer, config = load_tokenizer(home), system.config(found)
    chat = model_chat(config, system.chat(found), tokenizer, template)
    return SampleReader(chat.template, tokenizer, chat.tokenize_mode or config.tokenize_mode, image_rows)
