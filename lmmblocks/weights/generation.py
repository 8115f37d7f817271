"""What ends an answer, in the files that transformers and vLLM look it up in.

``generation_config.json`` lists every token that ends an answer (``eos_token_id``, read by both), and the strings that do and are no token
(``stop_strings``, which ``generate`` of transformers takes when it is given ``tokenizer=``, and refuses to go without). The configs of the
model and of its text part name the same tokens.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ..chat import answer_ends, stop_texts
from .files.folder import write_json

GENERATION_CONFIG = "generation_config.json"


def token_ids(model: Any) -> dict[str, Any]:
    """Return ``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` as a config has them; without a tokenizer all are None.

    ``eos_token_id`` is one id, or, where several end an answer, a list that the tokenizer's own leads.
    """
    tokenizer = model.tokenizer
    bos, own, pad = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad"))
    ends = [] if tokenizer is None else sorted(answer_ends(model.template, tokenizer), key=lambda token: (token != own, token))
    return {"bos_token_id": bos, "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None), "pad_token_id": pad}


def write_generation_config(folder: Path, model: Any) -> None:
    """Write how answers are made when nobody says otherwise: greedily, up to whatever ends one here.

    Warns:
        UserWarning: a string that is no token ends an answer, which readers have to be told of.
    """
    values = {key: value for key, value in token_ids(model).items() if value is not None}
    strings = [] if model.tokenizer is None else list(stop_texts(model.template, model.tokenizer))
    if strings:
        values["stop_strings"] = strings
        warnings.warn(
            f"template {model.template.name!r} ends answers with {', '.join(map(repr, strings))}, which is text and no token: it is written as "
            f"stop_strings of {GENERATION_CONFIG}, for which generate of transformers has to be given tokenizer=...; servers such as vLLM don't "
            f"read it: give them stop={strings}",
            stacklevel=2,
        )
    write_json(folder / GENERATION_CONFIG, {**values, "do_sample": False})
