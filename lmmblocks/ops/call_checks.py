"""What public functions ask of a call before its ladder is walked, so that a mistake is told by us and not by whichever implementation runs.

Comparisons of shapes and dtypes alone, under a microsecond together; sizes are written down only where the call is refused.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..spec import LmmError, Segments


def misfit(needs: str, **tensors: Tensor) -> LmmError:
    """Return the error of a call whose tensors don't fit together.

    Args:
        needs: the op and what it expects.
        tensors: what was found, by the names of the arguments.

    >>> import torch
    >>> misfit("swiglu needs gate and up of one shape", gate=torch.ones(2), up=torch.ones(3))
    LmmError('swiglu needs gate and up of one shape: found gate (2,), up (3,)')
    """
    return LmmError(f"{needs}: found {', '.join(f'{name} {tuple(tensor.shape)}' for name, tensor in tensors.items())}")


def no_segments(op: str, name: str, found: Any) -> LmmError:
    """Return the error of a call that was given something else for segments."""
    listed = isinstance(found, (list, tuple)) and len(found) < 9
    made = f"Segments.of({list(found)})" if listed else "Segments.of([length, ...], device=...)"
    return LmmError(f"{op}: {name} must be lmmblocks.Segments, found {type(found).__name__}: make them with {made}")


def require_segments(op: str, name: str, segments: Any) -> None:
    """Raise LmmError where packed lengths aren't ``Segments``."""
    if not isinstance(segments, Segments):
        raise no_segments(op, name, segments)
