"""Checkpoints: all that is needed to go on exactly where a run stopped, written so that a kill at any moment leaves a whole one.

A checkpoint is written into a hidden folder, flushed to the disk, and renamed: readers see all of it or nothing. Which one
is newest, and whether it is whole, is read from its ``state.json``, which lists every file and its size. Folders that aren't
whole are what a kill left, and are removed.

=======================  ==========================================================================================
``trainable.safetensors``  parameters and buffers of the trained parts, under the names of the model's state dict
``optimizer.pt``           state of the optimiser and of all random generators (tensors and plain values only)
``losses.csv``             the log up to here
``state.json``             step (the position in the data), fingerprint of the run, files and sizes
=======================  ==========================================================================================
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..spec import LmmError, machine_failure
from .optimizer import trained_parameters

if TYPE_CHECKING:
    from ..lmm import LMM

TENSORS, OPTIMIZER, LOSSES, STATE = "trainable.safetensors", "optimizer.pt", "losses.csv", "state.json"
_WRITING, _STEP = ".writing", "step-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint on disk.

    Attributes:
        path: its folder.
        step: steps taken before it; also the next step's number.
        fingerprint: what a run that resumes from it must share.
        counts: running totals of the log.
    """

    path: Path
    step: int
    fingerprint: Mapping[str, Any]
    counts: Mapping[str, Any]

    @property
    def losses(self) -> str:
        """The log up to this checkpoint, as CSV text."""
        return (self.path / LOSSES).read_text()


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: holds nothing else; made when the first checkpoint is written.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def latest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None. Nothing on disk is changed."""
        return max(self._whole(), key=lambda checkpoint: checkpoint.step, default=None)

    def remove_incomplete(self) -> list[Path]:
        """Remove what a kill left behind, and return it."""
        whole = {checkpoint.path for checkpoint in self._whole()}
        broken = [p for p in self._folders() if p not in whole and p.name.startswith((_WRITING, _STEP))]
        for path in broken:
            shutil.rmtree(path)
        return broken

    def save(
        self,
        step: int,
        model: LMM,
        optimizer: torch.optim.Optimizer,
        *,
        fingerprint: Mapping[str, Any],
        losses: str,
        counts: Mapping[str, Any],
    ) -> Checkpoint:
        """Write a checkpoint, then remove those that are too old.

        Args:
            step: steps taken.
            model: whose trained parts are saved.
            optimizer: whose state is saved.
            fingerprint: see :func:`lmmblocks.train.fingerprint.fingerprint`.
            losses: the log so far, as CSV text.
            counts: running totals of the log.

        Raises:
            LmmError: the disk refuses (full, read-only); checkpoints written before are untouched.
        """
        target = self.folder / f"{_STEP}{step:08d}"
        temporary = self.folder / f"{_WRITING}-{target.name}"
        try:
            temporary.mkdir(parents=True)
            _write_tensors(temporary / TENSORS, trained_tensors(model))
            _write_torch(temporary / OPTIMIZER, {"optimizer": optimizer.state_dict(), "random": random_state()})
            shutil.copymode(temporary / OPTIMIZER, temporary / TENSORS)  # safetensors lets only the owner read
            _write_text(temporary / LOSSES, losses)
            sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
            state = {"step": step, "fingerprint": fingerprint, "counts": dict(counts), "files": sizes}
            _write_text(temporary / STATE, json.dumps(state, indent=1))
            _flush_folder(temporary)
            temporary.rename(target)
            _flush_folder(self.folder)
        except (OSError, RuntimeError, _safetensors_error()) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise LmmError(f"can't write the checkpoint {target}: {error}: make room, or choose another folder") from error
        for old in sorted(self._whole(), key=lambda checkpoint: checkpoint.step)[: -self.keep]:
            shutil.rmtree(old.path)
        return Checkpoint(target, step, fingerprint, counts)

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_dir()) if self.folder.is_dir() else []

    def _whole(self) -> list[Checkpoint]:
        return [checkpoint for path in self._folders() if (checkpoint := _read(path)) is not None]


def load_checkpoint(checkpoint: Checkpoint, model: LMM, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors, optimiser state and random generators back, bit for bit.

    Raises:
        LmmError: tensors are missing, or there are more than the model trains.
    """
    from safetensors.torch import load_file

    saved = load_file(checkpoint.path / TENSORS)
    wanted = trained_tensors(model)
    problems = [f"{name} is {'missing' if name in wanted else 'not trained by this run'}" for name in sorted(wanted.keys() ^ saved.keys())]
    problems += [
        f"{name} has shape {tuple(saved[name].shape)}, the model {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & saved.keys())
        if saved[name].shape != wanted[name].shape
    ]
    if problems:
        raise LmmError(f"{checkpoint.path} doesn't fit the model: " + "; ".join(problems))
    state = torch.load(checkpoint.path / OPTIMIZER, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(saved[name])
    optimizer.load_state_dict(state["optimizer"])
    set_random_state(state["random"])


def verify_checkpoint(checkpoint: Checkpoint, model: LMM, optimizer: torch.optim.Optimizer) -> None:
    """Read a checkpoint that was just written and compare every bit with what is in memory.

    Raises:
        LmmError: the disk gave back something else.
    """
    from safetensors.torch import load_file

    saved, live = load_file(checkpoint.path / TENSORS), trained_tensors(model)
    on_disk = torch.load(checkpoint.path / OPTIMIZER, map_location="cpu", weights_only=True)["optimizer"]
    in_memory = optimizer.state_dict()
    moments = [
        (f"{index}.{key}", value, on_disk["state"].get(index, {}).get(key))
        for index, entries in in_memory["state"].items()
        for key, value in entries.items()
    ]
    pairs = [(name, tensor, saved.get(name)) for name, tensor in live.items()] + moments
    wrong = [name for name, ours, theirs in pairs if theirs is None or not _same_bits(ours.cpu(), theirs)]
    if wrong or on_disk["param_groups"] != in_memory["param_groups"]:
        raise LmmError(f"{checkpoint.path} reads back differently from what was written ({wrong[:3]}): check the disk")


def _same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Compare bits, not numbers: NaN is no disk's fault."""
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return False
    left, right = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (ours, theirs))
    return torch.equal(left, right)


def trained_tensors(model: LMM) -> dict[str, Tensor]:
    """Return trained parameters and the saved buffers of trained parts, by their names in the state dict."""
    entries = {name: parameter for _, name, parameter in trained_parameters(model)}
    parts = {name.partition(".")[0] for name in entries}
    persistent = model.state_dict(keep_vars=True)
    buffers = {n: b for n, b in model.named_buffers() if n in persistent and n.partition(".")[0] in parts}
    return {name: tensor.detach() for name, tensor in {**entries, **buffers}.items()}


def random_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's, torch's and every GPU's global generator, as plain values and tensors."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back to a :func:`random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _read(folder: Path) -> Checkpoint | None:
    """Return the checkpoint in a folder if all its files are there in full."""
    if folder.name.startswith(_WRITING):
        return None
    try:
        state = json.loads((folder / STATE).read_text())
        whole = all((folder / name).stat().st_size == size for name, size in state["files"].items())
        return Checkpoint(folder, state["step"], state["fingerprint"], state["counts"]) if whole else None
    except OSError as error:  # a checkpoint that this machine can't read must not be passed over for an older one
        if machine := machine_failure(f"checkpoint {folder} cannot be read", error):
            raise machine from error
        return None
    except (ValueError, KeyError):
        return None


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _write_torch(path: Path, values: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(values, file)
        file.flush()
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Wait until the entries of a folder are on the disk (Windows does that by itself and opens no folders)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError
