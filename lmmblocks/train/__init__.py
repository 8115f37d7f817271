"""Training: stages, the step, checkpoints, the loop. Names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import TrainResult as TrainResult
    from .loop import train as train
    from .optimizer import print_trainable as print_trainable
    from .stage import Stage as Stage
    from .stage import stage1 as stage1
    from .stage import stage2 as stage2

_HOMES = {
    "Stage": "stage",
    "TrainResult": "loop",
    "print_trainable": "optimizer",
    "stage1": "stage",
    "stage2": "stage",
    "train": "loop",
}

__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
