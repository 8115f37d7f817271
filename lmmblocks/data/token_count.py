"""How long a sample will be in the decoder, without loading a model."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..spec import IMAGE_TOKEN, LmmError, Sample


def token_counter(
    tokenizer_dir: str | os.PathLike, *, template: str = "vicuna_v1", image_rows: int = 576
) -> Callable[[Sample], int]:
    """Return a function that counts the rows of a sample: tokens of the rendered conversation plus its image rows.

    Args:
        tokenizer_dir: local folder with tokenizer files (a model's folder has them).
        template: name of the chat template, or ``auto`` for the tokenizer's own.
        image_rows: rows every image becomes; 576 for LLaVA-1.5.

    Raises:
        LmmError: there is no tokenizer in the folder, the template is unknown, or ``image_rows`` is not positive.
    """
    from ..chat import encode_chat, get_template
    from ..chat.lookup import AUTO

    if image_rows < 1:
        raise LmmError(f"image_rows must be at least 1, found {image_rows}")
    if template != AUTO:
        get_template(template)  # a wrong name is refused before anything is read
    tokenizer = _load_tokenizer(os.fspath(tokenizer_dir))
    rendering = get_template(template, tokenizer)

    def count(sample: Sample) -> int:
        ids = encode_chat(sample.messages, rendering, tokenizer).ids
        return len(ids) + ids.count(IMAGE_TOKEN) * (image_rows - 1)

    return count


def _load_tokenizer(folder: str) -> Any:
    if not os.path.isdir(folder):
        what = "is a file" if os.path.exists(folder) else "does not exist"
        raise LmmError(f"tokenizer folder {folder} {what}: give a local folder with tokenizer.json")
    from ..chat import load_tokenizer

    return load_tokenizer(folder)
