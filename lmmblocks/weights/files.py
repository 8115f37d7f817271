"""Weight files of a folder, one tensor at a time: safetensors or, where there is nothing else, ``.bin`` read with ``weights_only=True``.

Opening reads names and shapes only. A tensor is copied when it is asked for and its file is closed again, so the memory in use stays near
the size of what was read, and nothing in the model depends on the file afterwards.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..spec import LmmError

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
BIN = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"
_NAMED_AT_MOST = 8


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a folder.

    Attributes:
        folder: where they are.
        shapes: name in the file -> shape.
        read: name in the file -> a tensor of its own on the CPU.
    """

    folder: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]


def open_weights(folder: Path) -> WeightFiles:
    """Open the weights of a folder; safetensors are preferred, an index says which shard holds what.

    Raises:
        LmmError: no weights in the folder, a shard is missing, a file is truncated or is something else.
    """
    for name, is_index, reader in (
        (SAFETENSORS, False, _safetensors),
        (SAFETENSORS_INDEX, True, _safetensors),
        (BIN, False, _pickled),
        (BIN_INDEX, True, _pickled),
    ):
        if (folder / name).is_file():
            index = _index(folder / name) if is_index else None
            shards = sorted(set(index.values())) if index is not None else [name]
            return reader(folder, shards, index)
    expected = ", ".join((SAFETENSORS, SAFETENSORS_INDEX, BIN, BIN_INDEX))
    raise LmmError(f"{folder} holds no weights: expected one of {expected}; found {_listing(folder)}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        LmmError: no such file (the message says what the folder holds), or not a JSON object.
    """
    if not path.is_file():
        raise LmmError(
            f"{path.parent} holds no {path.name}: expected a model folder; found {_listing(path.parent)}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise LmmError(
            f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise LmmError(f"{path} is not JSON: byte {error.start} is not UTF-8") from error
    if not isinstance(values, dict):
        raise LmmError(f"{path} must hold a JSON object, found {type(values).__name__}")
    return values


def some(names: list[str]) -> str:
    """Return the first few names of a list, and how many more there are.

    >>> some(["a", "b"])
    'a, b'
    """
    rest = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {rest} more" if rest > 0 else "")


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    return some(sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())) or "an empty folder"


def _index(path: Path) -> dict[str, str]:
    """Return ``{tensor: shard}`` of an index file; every shard is there."""
    weight_map = read_json(path).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(shard, str) for shard in weight_map.values())
    ):
        raise LmmError(
            f"{path} has no 'weight_map' of tensor names to shard files: write or download it again"
        )
    outside = sorted(shard for shard in set(weight_map.values()) if Path(shard).name != shard)
    if outside:
        raise LmmError(f"{path} points outside its folder, expected file names: {some(outside)}")
    missing = sorted(shard for shard in set(weight_map.values()) if not (path.parent / shard).is_file())
    if missing:
        raise LmmError(
            f"{path.parent} lacks {len(missing)} of {len(set(weight_map.values()))} shards: {some(missing)}: download them"
        )
    return weight_map


def _placed(folder: Path, found: Mapping[str, str], index: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return ``{tensor: shard}``: what the index says, once the shards agree."""
    if index is None:
        return found
    wrong = sorted(f"{name} (in {shard})" for name, shard in index.items() if found.get(name) != shard)
    if wrong:
        raise LmmError(
            f"{folder}: the index names {len(wrong)} tensors that their shards don't hold: {some(wrong)}: download it again"
        )
    return index


def _safetensors(folder: Path, shards: list[str], index: Mapping[str, str] | None) -> WeightFiles:
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    found: dict[str, str] = {}
    for shard in shards:
        with _opened(folder / shard) as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                shapes[name], found[name] = tuple(file.get_slice(name).get_shape()), shard
    place = _placed(folder, found, index)

    def read(name: str) -> Tensor:
        with safe_open(folder / place[name], "pt") as file:
            return file.get_tensor(name).clone()

    return WeightFiles(folder, {name: shapes[name] for name in place}, read)


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise LmmError(_damaged(path, str(error))) from error


def _damaged(path: Path, reason: str) -> str:
    with path.open("rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the weights: run 'git lfs pull' in its repository"
    size = path.stat().st_size
    return f"{path} ({size} bytes) is truncated or not a weight file ({reason}): copy or download it again"


def _pickled(folder: Path, shards: list[str], index: Mapping[str, str] | None) -> WeightFiles:
    tensors: dict[str, Tensor] = {}
    found: dict[str, str] = {}
    for shard in shards:
        for name, value in _unpickled(folder / shard).items():
            if isinstance(value, Tensor):
                tensors[name], found[name] = value, shard
    place = _placed(folder, found, index)
    return WeightFiles(
        folder, {name: tuple(tensors[name].shape) for name in place}, lambda name: tensors[name].clone()
    )


def _unpickled(path: Path) -> dict[str, Any]:
    """Read a ``.bin`` without running code from it; zip archives are mapped, older files are read whole."""
    import zipfile

    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():  # torch names the class or function it refused to import
            raise LmmError(
                f"{path} holds more than tensors and is not read, as loading it could run code: convert it to safetensors"
            ) from error
        raise LmmError(_damaged(path, str(error).splitlines()[0])) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise LmmError(_damaged(path, (str(error) or type(error).__name__).splitlines()[0])) from error
    if not isinstance(values, dict):
        raise LmmError(f"{path} holds a {type(values).__name__}, expected a dictionary of tensors")
    return values
