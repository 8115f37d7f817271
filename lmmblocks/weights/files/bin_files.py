"""A ``.bin`` file of PyTorch, read without running code from it and without keeping it in memory.

``torch.load`` only unpickles names, shapes and places; the zip archive is mapped, so a tensor's bytes are read when it is copied. Pages
that were read count as ours until the map is closed, so it is closed and opened again each time an eighth of the file has gone by: the
peak is the model and an eighth of one shard, where ``torch.load`` alone holds both. Files older than PyTorch 1.6 are no zip archives; they
are read whole and their tensors handed out as they are.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from ...spec import LmmError, first_line
from .file_checks import damaged, some

_PARTS_PER_FILE = 8


class BinFile:
    """One file.

    Attributes:
        shapes: tensor -> shape.
        dtypes: tensor -> name of its dtype, such as ``float16``.

    Raises:
        LmmError: truncated, compressed, not a dictionary of tensors, or a pickle that asks for more than tensors.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._mapped = path, zipfile.is_zipfile(path)
        if self._mapped:
            _refuse_compressed(path)
        self._tensors = self._open()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self._tensors.items()}
        self._copied_bytes = 0
        self._close()

    def read(self, name: str) -> Tensor:
        """Return a tensor of its own, in the dtype of the file."""
        self._tensors = self._tensors or self._open()
        tensor = self._tensors[name]
        if not self._mapped and tensor.untyped_storage().nbytes() == tensor.nbytes:
            return tensor
        copy = tensor.clone(memory_format=torch.contiguous_format)
        self._copied_bytes += copy.nbytes
        if self._copied_bytes * _PARTS_PER_FILE > self._path.stat().st_size:
            self._copied_bytes = 0
            self._close()
        return copy

    def _close(self) -> None:
        if self._mapped:
            self._tensors = {}

    def _open(self) -> dict[str, Tensor]:
        try:
            values = torch.load(self._path, map_location="cpu", weights_only=True, mmap=self._mapped)
        except pickle.UnpicklingError as error:
            raise LmmError(_refusal(self._path, error)) from error
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            raise LmmError(damaged(self._path, first_line(error))) from error
        if not isinstance(values, dict):
            raise LmmError(f"{self._path} holds a {type(values).__name__}, expected a dictionary of tensors")
        tensors = {str(name): value.detach() for name, value in values.items() if isinstance(value, Tensor)}
        if values and not tensors:
            raise LmmError(
                f"{self._path} holds no tensors at its top level, but {some([str(name) for name in values])}: expected {{name: tensor}}, "
                f"save the model's state_dict alone"
            )
        _refuse_repeated(self._path, tensors)
        return tensors


def _refusal(path: Path, error: Exception) -> str:
    """Say what a pickle asked for beside tensors; torch names the class or function it refused to import."""
    if "global" not in str(error).lower():
        return damaged(path, first_line(error))
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f" (it asks for {wanted[1]})" if wanted else ""
    return f"{path} holds more than tensors{what} and is not read, as loading it could run code: convert it to safetensors"


def _refuse_compressed(path: Path) -> None:
    """PyTorch stores its tensors as they are. A compressed entry is somebody else's, and may unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise LmmError(damaged(path, first_line(error))) from error
    if packed:
        raise LmmError(f"{path} is a zip archive with compressed entries ({some(packed)}), which PyTorch never writes: it is not read")


def _refuse_repeated(path: Path, tensors: dict[str, Tensor]) -> None:
    """A tensor larger than its own bytes repeats them (stride 0): a few bytes could ask for any amount of memory."""
    larger = [name for name, tensor in tensors.items() if tensor.nbytes > tensor.untyped_storage().nbytes()]
    if larger:
        raise LmmError(f"{path}: {len(larger)} tensors are larger than their bytes in the file: {some(larger)}: save them contiguous")
