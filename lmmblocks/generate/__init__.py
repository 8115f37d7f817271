"""Answers from a model: greedy or sampled, streamed, batched, or turn by turn. Names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversation import Conversation as Conversation
    from .engine import generate as generate
    from .engine import generate_stream as generate_stream
    from .options import Options as Options
    from .sampling import Sampling as Sampling

_HOMES = {
    "Conversation": "conversation",
    "Options": "options",
    "Sampling": "sampling",
    "generate": "engine",
    "generate_stream": "engine",
}

__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562): the command line reads this package without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
