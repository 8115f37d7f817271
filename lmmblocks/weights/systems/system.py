"""A released model as data: :class:`System` says how its folders are recognised, read and written; :class:`ModelFolder` is one such folder.

One file in this package holds one system, ``all.py`` lists them. A new released model is one more file, one line there, and a preset.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...chat.load import has_tokenizer
from ...config import LMMConfig
from ..files.maps import KeyMap
from ..files.overlay import renamed
from ..files.tensors import CONFIG, WeightFiles, open_weights, read_json

NATIVE_CONFIG = "lmmblocks.json"
OWN_TOKENIZER = "lmmblocks_tokenizer"
"""Folder of the model's tokenizer where the one beside the weights got an image token that the model's table has no row for."""

Source = str | os.PathLike[str] | None


@dataclass(frozen=True)
class ModelFolder:
    """The folder of a model, what its reader was told beside it, and what it is told apart by.

    Attributes:
        path: where it lies.
        systems: what it may be; the first that reads it counts.
        base: of a projector or an adapter; None = what its files name.
        vision_tower: of an original checkpoint; None = what its ``config.json`` names.
        download: the hub may be asked for parts that lie elsewhere; without, only what is on this machine counts.
        found: what a system found out about the folder and need not look for again.
    """

    path: Path
    systems: tuple[System, ...]
    base: Source = None
    vision_tower: Source = None
    download: bool = True
    found: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def values(self) -> dict[str, Any]:
        """What ``config.json`` says, nothing without one.

        Raises:
            LmmError: it can't be read.
        """
        return read_json(self.path / CONFIG) if (self.path / CONFIG).is_file() else {}

    @property
    def says_itself(self) -> bool:
        """Whether ``lmmblocks.json`` says what model it is and how to talk to it; other files beside it don't count then."""
        return (self.path / NATIVE_CONFIG).is_file()

    @cached_property
    def system(self) -> System | None:
        """What it holds; None = no whole model, nor something over one."""
        return next((system for system in self.systems if system.reads(self)), None)

    def below(self, path: Path) -> ModelFolder:
        """Return the folder that this one lies over."""
        return ModelFolder(path, self.systems, vision_tower=self.vision_tower, download=self.download)


def whole_files(folder: ModelFolder) -> WeightFiles:
    """Return the weights of a folder that holds all of them."""
    return open_weights(folder.path)


def complete(folder: ModelFolder, own: WeightFiles | None, expected: Collection[str], dtype: torch.dtype | None) -> WeightFiles:
    """Return the weights of a folder that holds all of them, as they are."""
    assert own is not None
    return own


def tokenizer_inside(folder: ModelFolder) -> Path | None:
    """Return where in a folder its tokenizer lies, None when there is none."""
    own = folder.path / OWN_TOKENIZER
    place = own if own.is_dir() else folder.path
    return place if has_tokenizer(place) else None


def chat_inside(folder: ModelFolder) -> tuple[Path, ...]:
    """Return the folder where its files are to be asked how its model is talked to, nothing where ``lmmblocks.json`` says it."""
    return () if folder.says_itself else (folder.path,)


def nothing(*_: Any) -> None:
    """Return None, as a system does that has nothing to say."""


def no_differences(*_: Any) -> Iterator[str]:
    """Yield nothing: such a folder says nothing twice."""
    return iter(())


def no_findings(folder: ModelFolder) -> tuple[dict[str, str], list[str]]:
    """Return no settings and no problems."""
    return {}, []


def everything(files: WeightFiles | None) -> Collection[str] | None:
    """Say that a folder's weights are those of all parts."""
    return None


def nothing_is_held(model: Any) -> bool:
    """Say that no model is written so."""
    return False


@dataclass(frozen=True)
class System:
    """A released model, or a form in which models are released.

    Reading:

    Attributes:
        name: what it is called in messages.
        reads: whether a folder holds one, told by which files it has and by the keys of its ``config.json``, never by names of folders.
        config: the model that a folder describes, image preprocessing included. An LmmError lists all that the blocks can't compute.
        layouts: how its weight files may name the tensors; which one a file has is decided by its names.
        files: the weights inside of a folder under the names in the file, whole tables included; None where there are none.
        complete: ``(folder, own, expected, dtype)``, the weights inside under the model's names (None without any), the names of the model's
            ``state_dict`` and the dtype asked for (None = as stored), to all weights of the model: with what lies elsewhere.
        stored_vocab: token rows in the file where these may be more than the model has; None = as many as it has.
        tokenizer: where the model's tokenizer lies; None = nowhere.
        chat: folders whose files say how the model is talked to, in this order.
        differences: ``(folder, config, tokenizer)``: what one file says otherwise than the one that counts, a line each.
        title: what a folder of it is called in a report.
        model_type: of ``config.json``, where this is a model of transformers.
        known_by: how else its ``config.json`` is known, for messages about one that nobody reads.

    What ``inspect`` tells beside:

        held: which submodules the weights inside are those of; None = all of them.
        named_tower: the vision tower that a folder names instead of holding it, a path or hub id; None where it names none.
        named_base: what a folder lies over, as its files name it; None where they don't.
        over_base: whether its folders lie over another model.
        findings: settings, and problems that keep a folder from being loaded.
        templates: names of the templates that its models are known to be talked to with.
        whose: whose these are, in words.

    Writing:

        format: name of the format of ``save`` that writes such folders; None = they are only read.
        holds: whether a model of ours is one of these.
        write: ``(model, config, state, folder, dtype, target, **options)``: writes the files beside the weights and returns the weights under
            the names in the file; its keyword-only parameters are the format's options. An LmmError lists all that it has no place for.
    """

    name: str
    reads: Callable[[ModelFolder], bool]
    config: Callable[[ModelFolder], LMMConfig]
    layouts: tuple[KeyMap, ...]
    title: Callable[[ModelFolder], str]
    model_type: str | None = None
    known_by: str | None = None
    files: Callable[[ModelFolder], WeightFiles | None] = whole_files
    complete: Callable[[ModelFolder, WeightFiles | None, Collection[str], torch.dtype | None], WeightFiles] = complete
    stored_vocab: Callable[[ModelFolder], int | None] = nothing
    tokenizer: Callable[[ModelFolder], Path | None] = tokenizer_inside
    chat: Callable[[ModelFolder], tuple[Path, ...]] = chat_inside
    differences: Callable[[ModelFolder, LMMConfig, Any], Iterator[str]] = no_differences
    held: Callable[[WeightFiles | None], Collection[str] | None] = everything
    named_tower: Callable[[ModelFolder], str | None] = nothing
    named_base: Callable[[ModelFolder], str | None] = nothing
    over_base: bool = False
    findings: Callable[[ModelFolder], tuple[dict[str, str], list[str]]] = no_findings
    templates: tuple[str, ...] = ()
    whose: str = ""
    format: str | None = None
    holds: Callable[[Any], bool] = nothing_is_held
    write: Callable[..., Any] = nothing

    def weights(self, folder: ModelFolder, files: WeightFiles | None, expected: Collection[str], dtype: torch.dtype | None) -> WeightFiles:
        """Return the weights of the model in a folder under its own names, before any tensor is read.

        Args:
            folder: of such a model.
            files: the weights inside, as the field ``files`` gives them.
            expected: names in the model.
            dtype: the one asked for; None = as stored.

        Raises:
            LmmError: parts that lie nowhere, or whose files are damaged.
        """
        own = None if files is None else renamed(files, self.layouts, expected)
        return self.complete(folder, own, expected, dtype)
