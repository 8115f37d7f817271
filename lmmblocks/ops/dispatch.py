"""Which implementation of an op runs, and why each other one did not.

Motivation: users must be able to see, force and add implementations per op, and ``auto`` must never break a model.

How it works: every op owns a ladder of :class:`Implementation`, fastest first; the reference is last and takes everything. A call
walks the ladder and takes the first whose ``supports(call)`` is True. A forced name that refuses raises with its reason. The choice
can be set for a block of code (:class:`backend`), for a process (``LMMBLOCKS_BACKEND="attention=reference,rms_norm=torch"``) or for
one call (``backend="..."``).

Non-goals: autotuning, and any decision that needs device data.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any

from ..spec import LmmError, closest

ENVIRONMENT = "LMMBLOCKS_BACKEND"


@dataclass(frozen=True)
class Implementation:
    """One way to run an op.

    Attributes:
        name: the word users write, ``reference``, ``torch``, ``triton``, ``cuda``.
        run: the callable, same signature for all implementations of the op.
        supports: same arguments; True, or the reason it refuses.
    """

    name: str
    run: Callable[..., Any]
    supports: Callable[..., bool | str] = field(default=lambda *args, **kwargs: True)


_LADDERS: dict[str, list[Implementation]] = {}
_FORCED: ContextVar[dict[str, str] | None] = ContextVar("lmmblocks_backend", default=None)
_LAST: dict[str, tuple[str, list[tuple[str, str]]]] = {}


def register_implementation(op: str, implementation: Implementation, *, before: str | None = None) -> None:
    """Add an implementation to the ladder of ``op``, in front of ``before`` (default: at the end).

    Raises:
        LmmError: the name is taken, or ``before`` is not on the ladder.
    """
    ladder = _LADDERS.setdefault(op, [])
    names = [entry.name for entry in ladder]
    if implementation.name in names:
        raise LmmError(f"op {op!r} already has an implementation {implementation.name!r}: choose another name")
    if before is not None and before not in names:
        raise LmmError(f"op {op!r} has no implementation {before!r} to stand before; it has {names}")
    ladder.insert(len(ladder) if before is None else names.index(before), implementation)


def dispatch(op: str, *args: Any, backend: str = "auto", **kwargs: Any) -> Any:
    """Run ``op`` with the implementation that is forced, or the first on its ladder that supports the call."""
    return select(op, *args, backend=backend, **kwargs).run(*args, **kwargs)


def select(op: str, *args: Any, backend: str = "auto", **kwargs: Any) -> Implementation:
    """Return the implementation that :func:`dispatch` would run.

    Raises:
        LmmError: the forced implementation is unknown or refuses this call; the message gives its reason.
    """
    forced = backend if backend != "auto" else _forced(op)
    if forced != "auto":
        return _select_forced(op, forced, args, kwargs)
    refused: list[tuple[str, str]] = []
    for entry in _LADDERS[op]:
        verdict = entry.supports(*args, **kwargs)
        if verdict is True:
            _LAST[op] = (entry.name, refused)
            return entry
        refused.append((entry.name, str(verdict)))
    raise AssertionError(f"the reference of {op} must take every call: {refused}")


def _select_forced(op: str, forced: str, args: tuple, kwargs: dict) -> Implementation:
    entry = _find(op, forced)
    verdict = entry.supports(*args, **kwargs)
    if verdict is not True:
        raise LmmError(f"backend {forced!r} was asked for op {op!r} but refuses this call: {verdict}; use 'auto' or 'reference'")
    _LAST[op] = (entry.name, [])
    return entry


def _find(op: str, name: str) -> Implementation:
    if op not in _LADDERS:
        raise LmmError(f"unknown op {op!r}; known: {sorted(_LADDERS)}{closest(op, _LADDERS)}")
    for entry in _LADDERS[op]:
        if entry.name == name:
            return entry
    names = [entry.name for entry in _LADDERS[op]]
    raise LmmError(f"op {op!r} has no implementation {name!r}; it has {names}{closest(name, names)}")


def _forced(op: str) -> str:
    chosen = _FORCED.get()
    if chosen and op in chosen:
        return chosen[op]
    text = os.environ.get(ENVIRONMENT)
    return _from_environment(text).get(op, "auto") if text else "auto"


def _from_environment(text: str) -> dict[str, str]:
    choices = {}
    for entry in text.split(","):
        op, equals, name = entry.strip().partition("=")
        if not equals:
            raise LmmError(f"{ENVIRONMENT}={text!r}: expected 'op=implementation' pairs joined by commas, found {entry!r}")
        if name != "auto":
            _find(op, name)
        choices[op] = name
    return choices


class backend:
    """Choose implementations inside a ``with`` block; ``"auto"`` gives the choice back.

    >>> from lmmblocks import ops
    >>> with backend(attention="reference"):
    ...     backend.chosen("attention")
    'reference'
    """

    def __init__(self, **choices: str) -> None:
        for op, name in choices.items():
            if name != "auto" or op not in _LADDERS:
                _find(op, name)
        self._choices = choices
        self._token: Token | None = None

    def __enter__(self) -> backend:
        self._token = _FORCED.set({**(_FORCED.get() or {}), **self._choices})
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._token is not None
        _FORCED.reset(self._token)

    @staticmethod
    def chosen(op: str) -> str:
        """Return the forced implementation of ``op``, or ``"auto"``."""
        return _forced(op)

    @staticmethod
    def register(op: str, name: str, run: Callable[..., Any], supports: Callable[..., bool | str] | None = None) -> None:
        """Put an implementation of your own on top of the ladder of ``op``."""
        ladder = _LADDERS.get(op) or [_find(op, name)]
        entry = Implementation(name, run) if supports is None else Implementation(name, run, supports)
        register_implementation(op, entry, before=ladder[0].name)

    @staticmethod
    def explain() -> str:
        """Return a table: op, its ladder, what is forced, what ran last and why each other one was refused."""
        rows = [("op", "ladder", "set to", "ran last", "refused because")]
        for op in sorted(_LADDERS):
            last, refused = _LAST.get(op, ("-", []))
            reasons = "; ".join(f"{name}: {reason}" for name, reason in refused) or "-"
            rows.append((op, " > ".join(e.name for e in _LADDERS[op]), _forced(op), last, reasons))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)
