"""How long a sample will be in the decoder, without loading a model."""

from __future__ import annotations

import os
from collections.abc import Callable

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


def _load_tokenizer(folder: str):
    if not os.path.isdir(folder):
        raise LmmError(f"tokenizer folder {folder} does not exist: give a local folder with tokenizer.json")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LmmError(f"no tokenizer could be loaded from {folder}: {first_line}") from error
