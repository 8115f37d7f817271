"""Writing a tokenizer so that transformers 4 and 5 read it alike.

Motivation: ``save_pretrained`` names the class that it saves. ``TokenizersBackend``, which transformers 5 calls a plain tokenizer, is
unknown to 4.57, and the list that 5 calls ``extra_special_tokens`` must be a dict there; the other way round 5 cuts text anew
for a class such as ``LlamaTokenizer``, from vocabulary and merges, instead of reading ``tokenizer.json`` as it is.

How it works: ``tokenizer.json`` holds all that the `tokenizers` library does, and ``PreTrainedTokenizerFast`` reads just that in
every version. So this is the class that ``tokenizer_config.json`` names, and what the versions have different defaults for
is written out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CLASS = "PreTrainedTokenizerFast"
_OF_THIS_PROCESS = ("backend", "is_local", "local_files_only", "name_or_path", "tokenizer_file")
"""Keys that say where the tokenizer was read from, and how."""


def write_tokenizer(tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Write a tokenizer for ``AutoTokenizer`` of transformers 4 and 5.

    Args:
        tokenizer: a transformers tokenizer backed by the `tokenizers` library.
        folder: created when missing.
    """
    tokenizer.save_pretrained(str(folder))
    path = Path(folder) / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(_for_every_version(values, tokenizer), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _for_every_version(values: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if key not in _OF_THIS_PROCESS}
    extra = kept.pop("extra_special_tokens", None)
    if isinstance(extra, list) and extra:  # a dict of names means the same to both
        kept["additional_special_tokens"] = extra
    elif extra:
        kept["extra_special_tokens"] = extra
    return {
        **kept,
        "tokenizer_class": CLASS,
        "model_input_names": list(tokenizer.model_input_names),
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
    }
