"""In which dtype a model is loaded: the decoder's, whatever the other parts were stored in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ...compose.dtypes import COMPUTED, by_elements, name_of
from ...spec import LmmError
from .tensors import WeightFiles

DECODER = "language_model."
ROLES = {"vision_tower": "encoder", "multi_modal_projector": "projector", "language_model": "decoder", "arrange": "tiles"}
"""First part of a tensor's name in the model -> the part it belongs to."""


def tables_of(model: Any) -> tuple[str, ...]:
    """Return the names of a model's tensors that have one row per token id: its table and its head."""
    ends = [model.decoder.table, getattr(model.decoder, "head_weight", None)]
    return tuple(name for name, value in model.named_parameters(remove_duplicate=False) if any(value is end for end in ends))


def decoder_dtype(files: WeightFiles) -> torch.dtype | None:
    """Return the floating-point dtype of most of the decoder's weights, under the model's names; None when there are none.

    Raises:
        LmmError: one that nothing computes in (8-bit floats).
    """
    own = {name: _dtype(kind) for name, kind in files.dtypes.items() if name.startswith(DECODER)}
    found = by_elements((dtype, math.prod(files.shapes[name])) for name, dtype in own.items() if dtype is not None and dtype.is_floating_point)
    if not found:
        return None
    if found[0] not in COMPUTED:
        raise LmmError(
            f"{files.folder}: the decoder's weights are stored as {name_of(found[0])}, in which nothing here computes: choose a dtype, such as "
            f"load(..., dtype=torch.bfloat16)"
        )
    return found[0]


def mixture(dtypes: Mapping[str, Any], chosen: torch.dtype) -> str | None:
    """Say which parts are stored in another floating-point dtype than the one that all get; None if none is.

    Args:
        dtypes: role of a part -> names of its dtypes on the disk.
        chosen: what all parts get.
    """
    others = {}
    for role, names in dtypes.items():
        kinds = [kind for name in names if (kind := _dtype(name)) is not None and kind.is_floating_point]
        if any(kind != chosen for kind in kinds):
            others[role] = " and ".join(map(name_of, dict.fromkeys(kinds)))
    return ", ".join(f"{role} {found}" for role, found in others.items()) or None


def by_role(files: WeightFiles) -> dict[str, tuple[str, ...]]:
    """Return the dtypes of each part, under the model's names."""
    held: dict[str, dict[str, None]] = {}
    for name, kind in files.dtypes.items():
        role = name.split(".")[0]
        held.setdefault(ROLES.get(role, role), {})[kind] = None
    return {role: tuple(kinds) for role, kinds in held.items()}


def _dtype(name: str) -> torch.dtype | None:
    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else None
