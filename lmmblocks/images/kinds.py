"""The kinds of preprocessing by the name they have in plain values, and the way back from these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec import LmmError, closest
from .fused import FusedPreprocess
from .native import NativePreprocess
from .preprocess import ImagePreprocess
from .tiles import TilePreprocess

KINDS = ("tiles", "fused", "native")
"""``kind`` in the plain values; those of a single square have none."""


def preprocess_from_dict(values: Mapping[str, Any]) -> Any:
    """Rebuild a preprocessing from its ``to_dict``.

    Raises:
        LmmError: an unknown kind, unknown or missing keys.
    """
    rest = dict(values)
    kind = rest.pop("kind", None)
    if kind is None:
        return ImagePreprocess.from_dict(rest)
    known = {
        "tiles": ("tower", "resolutions", "global_view"),
        "fused": ("towers", "common"),
        "native": ("patch_px", "max_patches", "mean", "std", "resample"),
    }.get(kind)
    if known is None:
        raise LmmError(
            f"image preprocessing of kind {kind!r}{closest(str(kind), KINDS)}; known: {', '.join(KINDS)}, or none"
        )
    if sorted(rest) != sorted(known):
        raise LmmError(
            f"image preprocessing of kind {kind!r}: expected the keys {', '.join(known)}, found {', '.join(rest)}"
        )
    if kind == "native":
        return NativePreprocess(**rest)
    if kind == "fused":
        return FusedPreprocess(
            tuple(map(preprocess_from_dict, rest["towers"])), rest["common"] and tuple(rest["common"])
        )
    resolutions = tuple(tuple(entry) for entry in rest["resolutions"])
    return TilePreprocess(preprocess_from_dict(rest["tower"]), resolutions, rest["global_view"])
