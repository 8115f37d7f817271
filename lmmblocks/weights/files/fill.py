"""From files to a module: match names and shapes first, all problems in one message, then read tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from ...spec import LmmError
from .maps import KeyMap, choose
from .tensors import WeightFiles, some

_INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")


def read_parameters(
    files: WeightFiles,
    layouts: Sequence[KeyMap],
    module: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    stored_rows: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Read every tensor that a module's ``state_dict`` asks for.

    Args:
        files: the weights.
        layouts: what the files may look like; their names decide.
        module: built on the ``meta`` device; says which names and shapes are expected.
        dtype: of floating-point tensors; None = as stored.
        device: where the tensors go.
        stored_rows: model name -> first dimension in the file, where the file holds more rows than the model; the rows after are left out.

    Returns:
        A state dict for ``module.load_state_dict(..., assign=True)``. Tensors that share a parameter (a tied head) are one object.

    Raises:
        LmmError: missing, unexpected or misshapen tensors, all listed; or a tied pair that differs.
    """
    match = _matched(files, layouts, module, stored_rows)
    problems = list(_problems(files, match))
    if problems:
        raise LmmError(
            f"the weights in {files.folder} (read as: {files.layout or match.layout.name}) are not those of the model its config describes:\n"
            + "\n".join(f"- {problem}" for problem in problems)
            + "\nuse a folder whose config and weights were written together"
        )

    def read(name: str) -> Tensor:
        tensor = files.read(match.place[name])
        if match.in_file[name] != match.expected[name]:
            tensor = tensor[: match.expected[name][0]].clone()
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    return _state(files, match.owner, match.place, read)


def weight_problems(files: WeightFiles, layouts: Sequence[KeyMap], module: nn.Module, stored_rows: Mapping[str, int] | None = None) -> list[str]:
    """Return what :func:`read_parameters` would refuse, without reading a tensor."""
    return list(_problems(files, _matched(files, layouts, module, stored_rows)))


@dataclass(frozen=True)
class _Match:
    """What a module asks for and where it is.

    Attributes:
        layout: of the file.
        place: name in the model -> name in the file.
        expected: name in the model -> shape in the model.
        in_file: name in the model -> shape expected in the file.
        owner: parameter -> the first name of the same parameter.
    """

    layout: KeyMap
    place: Mapping[str, str]
    expected: Mapping[str, tuple[int, ...]]
    in_file: Mapping[str, tuple[int, ...]]
    owner: Mapping[str, str]


def _matched(files: WeightFiles, layouts: Sequence[KeyMap], module: nn.Module, stored_rows: Mapping[str, int] | None) -> _Match:
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    in_file = dict(expected)
    for name, rows in (stored_rows or {}).items():
        in_file[name] = (rows, *expected[name][1:])
    layout = choose(layouts, files.shapes, expected)
    place = {model: name for name in files.shapes if (model := layout.to_model(name)) in expected and not layout.skips(name)}
    return _Match(layout, place, expected, in_file, _owners(module))


def _owners(module: nn.Module) -> dict[str, str]:
    """Return parameter name -> the first name of the same parameter (itself, unless it is shared)."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in module.named_parameters(remove_duplicate=False)}


def _problems(files: WeightFiles, match: _Match) -> Iterator[str]:
    """Yield missing, unexpected and misshapen tensors, a line each."""
    held = {match.owner.get(name, name) for name in match.place}
    taken = set(match.place.values())
    found = {
        "missing": [name for name in match.in_file if match.owner.get(name, name) not in held],
        "unexpected": [name for name in files.shapes if name not in taken and not match.layout.skips(name)],
        "of another shape": [
            f"{file_name} is {files.shapes[file_name]}, expected {match.in_file[name]}"
            for name, file_name in match.place.items()
            if files.shapes[file_name] != match.in_file[name]
        ],
        "of integers, expected floating-point numbers": [
            f"{file_name} is {files.dtypes[file_name]}"
            for name, file_name in match.place.items()
            if name in match.owner and files.dtypes[file_name] in _INTEGERS
        ],
    }
    yield from (f"{len(entries)} {what}: {some(entries)}" for what, entries in found.items() if entries)


def _state(files: WeightFiles, owner: Mapping[str, str], place: Mapping[str, str], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Read each parameter once; every name of a shared one gets the same object."""
    shared: dict[str, Tensor] = {}
    for name, first in owner.items():
        if name not in place:
            continue
        tensor = read(name)
        if first in shared and not torch.equal(shared[first], tensor):
            raise LmmError(
                f"{files.folder}: the config ties {place[name]!r} to {first!r} (tie_word_embeddings), but the file holds two different "
                f"tensors: set tie_word_embeddings to false"
            )
        shared.setdefault(first, tensor)
    parameters = {name: nn.Parameter(value, requires_grad=False) for name, value in shared.items()}
    buffers = {name: read(name) for name in place if name not in owner}
    return {**{name: parameters[first] for name, first in owner.items()}, **buffers}
