"""Weight files of a folder, one tensor at a time: safetensors or, where there is nothing else, ``.bin`` read with ``weights_only=True``.

Opening reads names and shapes only. A tensor is copied when it is asked for and its file is closed again, so the memory in use stays near
the size of what was read, and nothing in the model depends on the file afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...files.foreign import folder_kind
from ...spec import LmmError
from .bin_files import BinFile
from .file_checks import damaged, listing, read_json, some
from .quantised import refuse_packed

__all__ = ["CONFIG", "WeightFiles", "open_file", "open_weights", "read_json", "some"]

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
BIN = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "BOOL": "bool"}
_DTYPES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "U8": "uint8", "I8": "int8", "I16": "int16"}


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a folder.

    Attributes:
        folder: where they are.
        shapes: name in the file -> shape.
        read: name in the file -> a tensor of its own on the CPU.
        dtypes: name in the file -> name of the dtype, such as ``float16``.
        layout: what the names are called in messages, once they have become the model's (``overlay.renamed``).
    """

    folder: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    dtypes: Mapping[str, str]
    layout: str | None = None


def has_weights(folder: Path) -> bool:
    """Say whether :func:`open_weights` finds something to open."""
    return any((folder / name).is_file() for name in (SAFETENSORS, SAFETENSORS_INDEX, BIN, BIN_INDEX))


def open_weights(folder: Path) -> WeightFiles:
    """Open the weights of a folder; safetensors are preferred, an index says which shard holds what.

    Raises:
        LmmError: no weights in the folder, a shard is missing, a file is truncated or is something else.
    """
    for name, is_index in ((SAFETENSORS, False), (SAFETENSORS_INDEX, True), (BIN, False), (BIN_INDEX, True)):
        if (folder / name).is_file():
            index = _index(folder / name) if is_index else None
            return _opened(folder, sorted(set(index.values())) if index is not None else [name], index)
    expected = ", ".join((SAFETENSORS, SAFETENSORS_INDEX, BIN, BIN_INDEX))
    raise LmmError(f"{folder} holds no weights: expected one of {expected}; found {listing(folder)}{folder_kind(folder)}")


def open_file(path: Path) -> WeightFiles:
    """Open one weight file; its ending says which kind it is.

    Raises:
        LmmError: truncated, or something else.
    """
    return _opened(path.parent, [path.name], None)


def weight_bytes(folder: Path) -> int:
    """Return how many bytes of the disk all weight files of a folder take."""
    return sum(path.stat().st_size for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))


class _Safetensors:
    """One safetensors file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _open_safetensors(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            self.dtypes = {name: _DTYPES.get(part.get_dtype(), part.get_dtype()) for name, part in slices.items()}

    def read(self, name: str) -> Tensor:
        with _open_safetensors(self._path) as file:
            return file.get_tensor(name).clone()


def _opened(folder: Path, names: list[str], index: Mapping[str, str] | None) -> WeightFiles:
    shards: dict[str, Any] = {name: (_Safetensors if name.endswith(".safetensors") else BinFile)(folder / name) for name in names}
    found = {tensor: name for name, shard in shards.items() for tensor in shard.shapes}
    place = _placed(folder, found, index)
    refuse_packed(folder, {tensor: shards[name].dtypes[tensor] for tensor, name in place.items()})
    return WeightFiles(
        folder,
        {tensor: shards[name].shapes[tensor] for tensor, name in place.items()},
        lambda tensor: shards[place[tensor]].read(tensor),
        {tensor: shards[name].dtypes[tensor] for tensor, name in place.items()},
    )


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise LmmError(damaged(path, str(error))) from error


def _index(path: Path) -> dict[str, str]:
    """Return ``{tensor: shard}`` of an index file; every shard is there."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise LmmError(f"{path} has no 'weight_map' of tensor names to shard files: write or download it again")
    outside = sorted(shard for shard in set(weight_map.values()) if Path(shard).name != shard)
    if outside:
        raise LmmError(f"{path} points outside its folder, expected file names: {some(outside)}")
    missing = sorted(shard for shard in set(weight_map.values()) if not (path.parent / shard).is_file())
    if missing:
        raise LmmError(
            f"{path.parent} lacks {len(missing)} of {len(set(weight_map.values()))} shards: {some(missing)}: download them"
            f"{folder_kind(path.parent) if any((path.parent / shard).is_symlink() for shard in missing) else ''}"
        )
    return weight_map


def _placed(folder: Path, found: Mapping[str, str], index: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return ``{tensor: shard}``: what the index says, once the shards agree."""
    if index is None:
        return found
    wrong = sorted(f"{name} (in {shard})" for name, shard in index.items() if found.get(name) != shard)
    if wrong:
        raise LmmError(f"{folder}: the index names {len(wrong)} tensors that their shards don't hold: {some(wrong)}: download it again")
    return index
