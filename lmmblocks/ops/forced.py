"""Who has chosen which implementation, in this thread and now: the ``with`` blocks and modules that a call is in.

A stack of frames, ``(choices, the frame around, who set them)``; the choices of a frame include those around it. No ``ContextVar``:
``torch.compile`` can't trace one, but reads, and guards, what stands here.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

Frame = tuple[dict[str, str], Any, object]


class _Thread(threading.local):
    """The innermost frame of a thread.

    A thread that has chosen nothing follows the thread that imported this module: autograd recomputes checkpointed blocks in threads of its
    own.
    """

    def __init__(self) -> None:
        self.leads = False
        self.frame: Frame | None = None


_THREAD = _Thread()
_THREAD.leads = True
_LEADER: dict[str, Frame | None] = {"frame": None}
_HOOKED = {"overrides": ""}


def chosen() -> dict[str, str]:
    """Return what is chosen here and now, by op."""
    frame = _THREAD.frame or _LEADER["frame"]
    return {} if frame is None else frame[0]


def innermost() -> Frame | None:
    """Return the innermost frame that this thread has set itself."""
    return _LEADER["frame"] if _THREAD.leads else _THREAD.frame


def restore(frame: Frame | None) -> None:
    """Make ``frame`` the innermost of this thread."""
    if _THREAD.leads:
        _LEADER["frame"] = frame
    else:
        _THREAD.frame = frame


def push(choices: Mapping[str, str], owner: object) -> None:
    """Let ``choices`` hold in this thread, over those that do, until ``owner`` takes them back."""
    restore(({**chosen(), **choices}, innermost(), owner))


def pop(owner: object) -> None:
    """Take back the last :func:`push` of ``owner`` in this thread and what was left above it; nothing when there is none."""
    frame = innermost()
    while frame is not None and frame[2] is not owner:
        frame = frame[1]
    if frame is not None:
        restore(frame[1])


def note_overrides(active: str) -> None:
    """Say which overrides are set: compiled code that chose without them, or with others, is then compiled again."""
    _HOOKED["overrides"] = active


def overrides_are(active: str) -> bool:
    """Return whether exactly these are set. To be asked while compiling: the answer is guarded, as hooks of modules are not."""
    return _HOOKED["overrides"] == active
