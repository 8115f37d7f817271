"""``lmmblocks.backend``: choose, add and explain implementations of ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from . import dispatch, forced
from .explain import table
from .overrides import Override


class backend:
    """Choose implementations inside a ``with`` block; ``"auto"`` gives the choice back.

    >>> from lmmblocks import ops
    >>> with backend(attention="reference"):
    ...     backend.chosen("attention")
    'reference'
    """

    def __init__(self, **asked: str) -> None:
        dispatch.check_choices(asked)
        self._asked = asked
        self._before: list[forced.Frame | None] = []

    def __enter__(self) -> backend:
        self._before.append(forced.innermost())
        forced.push(self._asked, self)
        return self

    def __exit__(self, *exc: object) -> None:
        forced.restore(self._before.pop())

    @staticmethod
    def chosen(op: str) -> str:
        """Return the forced implementation of ``op``, or ``"auto"``."""
        return dispatch.chosen(op)

    @staticmethod
    def register(op: str, name: str, run: Callable[..., Any], supports: Callable[..., bool | str] | None = None) -> None:
        """Put an implementation of your own on top of the ladder of ``op``; both functions get what its reference gets.

        For ``attention`` that is one :class:`~lmmblocks.ops.AttentionCall`.
        """
        dispatch.put_on_top(op, dispatch.Implementation(name, run, supports or dispatch.always))

    @staticmethod
    def override(model: nn.Module, patterns: Mapping[str, Mapping[str, str]]) -> Override:
        """Choose implementations for the modules of a model whose names match a pattern; see :class:`~lmmblocks.ops.overrides.Override`."""
        return Override(model, patterns)

    @staticmethod
    def explain(width: int = 100) -> str:
        """Return per op what ran last, what is forced, its ladder, and why each faster implementation was passed by; wrapped at ``width``."""
        return table(dispatch.last_runs(), width)
