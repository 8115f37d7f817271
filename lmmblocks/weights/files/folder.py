"""Writing a model folder: whole or not at all."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...spec import LmmError
from .tensors import SAFETENSORS, SAFETENSORS_INDEX, some

SHARD_BYTES = 5_000_000_000
"""Largest weight file, as transformers' 5 GB."""

MODEL_FILES = (
    "lmmblocks.json",
    "lmmblocks_tokenizer",
    "qformer_tokenizer",
    "vision_tower",
    "*config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*.bin*",
    "*token*.json",
    "*token*.model",
    "*.tiktoken",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "README.md",
    ".gitattributes",
)
"""What may be in a folder that is replaced; anything else is somebody's own and is never deleted."""


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``path`` at the end; after an error ``path`` is as it was.

    Raises:
        LmmError: ``path`` is a file, or a folder with something else than a model in it; or the disk refuses.
    """
    path = path.expanduser().absolute()
    _check_replaceable(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        _sync(partial)
        _swap(partial, path)
    except OSError as error:
        raise LmmError(f"can't write the model to {path}: {error.strerror or error}; nothing there was changed") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write indented JSON with a newline at the end."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_weights(folder: Path, state: Mapping[str, Tensor], *, dtype: torch.dtype | None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as safetensors, in shards with an index where one file would be larger than ``shard_bytes``.

    Args:
        folder: where to.
        state: name -> tensor, on any device; no two share memory.
        dtype: of floating-point tensors; None = as they are.
        shard_bytes: a shard is larger only when a single tensor is.
    """
    from safetensors.torch import save_file

    sizes = {name: value.numel() * _item_bytes(value, dtype) for name, value in state.items()}
    shards = _shards(sizes, shard_bytes)
    names = [SAFETENSORS] if len(shards) == 1 else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file_name, members in zip(names, shards):
        tensors = {name: _on_disk(state[name], dtype) for name in members}
        save_file(tensors, folder / file_name, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file_name for file_name, members in zip(names, shards) for name in members}
        write_json(
            folder / SAFETENSORS_INDEX,
            {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map},
        )


def _check_replaceable(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise LmmError(f"{path} is a file, expected a folder to write the model to: choose another path")
    entries = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    foreign = [name for name in entries if not any(fnmatch.fnmatch(name, pattern) for pattern in MODEL_FILES)]
    if foreign:
        raise LmmError(f"{path} holds more than a model, which saving would delete: {some(foreign)}: choose another folder")


def _swap(new: Path, path: Path) -> None:
    """Put ``new`` in the place of ``path``; what was there comes back when that fails."""
    if not path.exists():
        new.rename(path)
        return
    old = new.with_suffix(".replaced")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have every file on the disk before the folder gets its name."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _item_bytes(value: Tensor, dtype: torch.dtype | None) -> int:
    return dtype.itemsize if dtype is not None and value.is_floating_point() else value.element_size()


def _on_disk(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.detach().to(device="cpu", dtype=dtype if value.is_floating_point() else None).contiguous()
