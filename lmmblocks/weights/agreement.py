"""Files of one folder of transformers that say the same thing twice: which counts, and what is told where they differ.

| said in | and in | counts |
|---|---|---|
| ``processor_config.json``, ``image_processor`` | ``preprocessor_config.json`` | refused where they differ (5 reads the first, 4 the second) |
| image processor: size | ``config.json``: the tower's image size | refused where they differ |
| ``processor_config.json``: patch size, select strategy, tokens | ``config.json`` | ``config.json``, which the weights were trained with; told |
| ``processor_config.json``: image token | ``config.json``: its id | ``config.json``; told |
| ``config.json``: encoder, decoder | ``lmmblocks.json`` | ``lmmblocks.json``; told |

The third and fourth only count ``<image>`` in the prompts of transformers' processors, which there fails where they are wrong; here the encoder
counts.
Source: ``processing_llava.py``, ``processing_instructblip.py`` and ``image_processing_base.py`` of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ..config import LMMConfig
from .files.tensors import CONFIG, read_json
from .model_chat import IMAGE_IDS

PROCESSOR = "processor_config.json"


def of_processor(folder: Path, values: Mapping[str, Any], expected: Mapping[str, Any], tokenizer: Any) -> Iterator[str]:
    """Yield what ``processor_config.json`` says otherwise than ``config.json``, which counts; both values are named.

    Args:
        folder: of a model of transformers.
        values: of ``config.json``.
        expected: what the processor's keys have to be for the model.
        tokenizer: the model's, None without one.
    """
    path = folder / PROCESSOR
    said: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    for key, value in expected.items():
        if said.get(key) not in (None, value):
            yield f"{path} says {key}={said[key]!r}, {CONFIG} says {value!r}, which counts"
    index = next((values[key] for key in IMAGE_IDS if isinstance(values.get(key), int)), None)
    token = said.get("image_token")
    found = tokenizer.get_vocab().get(token) if tokenizer is not None and isinstance(token, str) else None
    if index is not None and found not in (None, index):
        there = tokenizer.backend_tokenizer.id_to_token(index) if index >= 0 else None
        yield f"{path} says image_token={token!r}, which has the id {found}, {CONFIG} says {index} (token {there!r}), which counts"


def of_config(folder: Path, own: LMMConfig, theirs: LMMConfig) -> Iterator[str]:
    """Yield what the ``config.json`` of a model that was saved for transformers says otherwise than its ``lmmblocks.json``."""
    for role in ("encoder", "decoder"):
        for name, value, other in _fields_that_differ(getattr(own, role), getattr(theirs, role)):
            if name not in ("vocab", "hf.vocab_size"):  # theirs counts rows that only hold the image token
                yield f"{folder / CONFIG} says {name}={other!r} of the {role}, lmmblocks.json says {value!r}, which counts: change both"


def _fields_that_differ(one: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield name and both values of each field; of configs in configs, their fields, and of values of transformers what shapes the model in both."""
    if type(one) is not type(other):
        yield prefix.rstrip(".") or "class", type(one).__name__, type(other).__name__
        return
    for field in fields(one):
        value, theirs = getattr(one, field.name), getattr(other, field.name)
        if is_dataclass(value) and is_dataclass(theirs):
            yield from _fields_that_differ(value, theirs, f"{prefix}{field.name}.")
        elif isinstance(value, Mapping) and isinstance(theirs, Mapping):
            shared = [key for key in value if key in theirs and not key.endswith("_token_id") and value[key] != theirs[key]]
            yield from ((f"{prefix}{field.name}.{key}", value[key], theirs[key]) for key in shared)
        elif value != theirs:
            yield f"{prefix}{field.name}", value, theirs
