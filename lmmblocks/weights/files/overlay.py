"""Weights of one model from several places: files under the model's names, one over the other.

An original LLaVA takes its vision tower from elsewhere, a projector lies over a base, a LoRA run's tensors over both. Each is a
:class:`WeightFiles`; so is what they make together, and reading it is still one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .maps import KeyMap, choose
from .tensors import WeightFiles


def renamed(files: WeightFiles, layouts: Sequence[KeyMap], expected: Collection[str]) -> WeightFiles:
    """Return the files under the names of the model.

    Args:
        files: the weights.
        layouts: what they may look like; their names decide.
        expected: names in the model.

    Returns:
        The same tensors; one that the model has no place for keeps its name, so that whoever reads all can say so.
    """
    layout = choose(layouts, files.shapes, expected)
    place: dict[str, str] = {}
    for name in files.shapes:
        if not layout.skips(name):
            model = layout.to_model(name)
            known = model is not None and model in expected and model not in place
            place[str(model) if known else name] = name
    return WeightFiles(
        files.folder,
        {model: files.shapes[name] for model, name in place.items()},
        lambda model: files.read(place[model]),
        {model: files.dtypes[name] for model, name in place.items()},
        layout.name,
    )


def overlaid(lower: WeightFiles, upper: WeightFiles) -> WeightFiles:
    """Return both as one; where both hold a tensor, it is the upper one's."""
    return WeightFiles(
        lower.folder if lower.folder == upper.folder else upper.folder,
        {**lower.shapes, **upper.shapes},
        lambda name: (upper if name in upper.shapes else lower).read(name),
        {**lower.dtypes, **upper.dtypes},
        f"{lower.layout} in {lower.folder}, under {upper.layout}",
    )


def in_dtype(files: WeightFiles, dtype: torch.dtype) -> WeightFiles:
    """Return the files with their floating-point tensors in one dtype."""
    name_of = str(dtype).removeprefix("torch.")

    def read(name: str) -> Tensor:
        tensor = files.read(name)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    dtypes = {name: name_of if getattr(torch, found).is_floating_point else found for name, found in files.dtypes.items()}
    return replace(files, read=read, dtypes=dtypes)


def of_state(folder: Path, state: Mapping[str, Tensor], prefix: str, layout: str) -> WeightFiles:
    """Return tensors that are in memory already as files; each is handed out once read, under ``prefix``."""
    values = {prefix + name: value for name, value in state.items()}
    read: Callable[[str], Tensor] = values.__getitem__
    dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in values.items()}
    return WeightFiles(folder, {name: tuple(value.shape) for name, value in values.items()}, read, dtypes, layout)
