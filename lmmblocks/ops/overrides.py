"""Choices per module: a vision tower on one implementation, the first layer of the language model on another.

How it works: patterns are matched once. Each module of the model that may call an op gets the choices that hold for it, and hooks that set
them around its ``forward``. That modules further in get hooks too is for activation checkpointing: a block that is computed again in the
backward pass is called alone, without the modules around it, and has to choose as before.

Non-goals: ops that are called outside of any matched module's ``forward`` (``LMM.loss`` calls the fused loss itself) follow ``backend(...)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ..spec import LmmError, closest
from .dispatch import check_choices
from .forced import note_overrides, pop, push

_ACTIVE: dict[int, str] = {}
_COUNT = itertools.count()


class Override:
    """Implementations for the modules of a model; holds until :meth:`remove`, or the end of a ``with`` block.

    A pattern is matched against the names of ``model.named_modules()`` as a shell does it: ``*`` also stands for dots, ``""`` is the model.
    It holds from the outermost modules that it matches inwards; deeper in, another pattern may match and wins there. Of several at one
    module the later wins. Inside, choices win over a ``with backend(...)`` around the model, and lose against a call's own ``backend=``.

    Under ``torch.compile`` the hooks are traced into the graph, without a break in it; code that was compiled without them, or with others,
    is compiled again.

    Attributes:
        modules: what holds for each module that calls ops, by name.
    """

    def __init__(self, model: nn.Module, choices: Mapping[str, Mapping[str, str]]) -> None:
        """
        Args:
            model: whose modules are matched.
            choices: pattern -> op -> name of an implementation, or ``"auto"``.

        Raises:
            LmmError: a pattern that matches no module that could call an op, an unknown op or implementation; all of them at once.
        """
        named = dict(model.named_modules())
        _check(named, choices)
        self.modules = {name: chosen for name, chosen in _per_module(named, choices).items() if chosen and _may_call_ops(named[name])}
        self._handles: list[RemovableHandle] = []
        for name, chosen in self.modules.items():
            enter = _Enter(chosen)
            self._handles.append(named[name].register_forward_pre_hook(enter))
            self._handles.append(named[name].register_forward_hook(_Leave(enter), always_call=True, prepend=True))

        _ACTIVE[id(self)] = f"override {next(_COUNT)}"
        note_overrides(", ".join(_ACTIVE.values()))

    def remove(self) -> None:
        """Give the choices back; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        _ACTIVE.pop(id(self), None)
        note_overrides(", ".join(_ACTIVE.values()))

    def __enter__(self) -> Override:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


class _Enter:
    """Forward pre-hook; a class, so that a model with hooks can still be copied and pickled."""

    def __init__(self, choices: dict[str, str]) -> None:
        self.choices = choices

    def __call__(self, module: nn.Module, args: Any) -> None:
        push(self.choices, self)


class _Leave:
    def __init__(self, enter: _Enter) -> None:
        self.enter = enter

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        pop(self.enter)


def _per_module(named: Mapping[str, nn.Module], choices: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Return what holds for each module: what holds around it, and the patterns that match it and nothing around it."""
    holds: dict[str, dict[str, str]] = {}
    matched: dict[str, frozenset[str]] = {}
    for name in named:  # a module comes before those inside it
        around = next((outer for outer in _around(name) if outer in holds), None)
        known = matched[around] if around is not None else frozenset()
        new = [pattern for pattern in choices if pattern not in known and fnmatchcase(name, pattern)]
        holds[name] = dict(holds[around]) if around is not None else {}
        for pattern in new:
            holds[name] |= choices[pattern]
        matched[name] = known | frozenset(new)
    return holds


def _around(name: str) -> Iterable[str]:
    """Yield the names of the modules around one, from the inside: ``a.b``, ``a`` and ``""`` for ``a.b.c``."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _may_call_ops(module: nn.Module) -> bool:
    """Return whether a module could call an op of ours in its ``forward``: those of ``torch.nn`` don't."""
    return not type(module).__module__.startswith("torch.nn.")


def _check(named: Mapping[str, nn.Module], choices: Mapping[str, Mapping[str, str]]) -> None:
    problems = []
    for pattern, chosen in choices.items():
        found = [name for name in named if fnmatchcase(name, pattern)]
        inside = [each for name in found for each in named[name].modules()]
        if not found:
            problems.append(f"no module is named like {pattern!r}{_nearest(pattern, named)}")
        elif not any(map(_may_call_ops, inside)):
            problems.append(f"{pattern!r} matches only modules of torch.nn ({found[0]!r}), which call no op: name the module around them")
        try:
            check_choices(chosen)
        except LmmError as error:
            problems.append(f"{pattern!r}: {error}")
    if problems:
        raise LmmError(f"backend.override: {'; '.join(problems)}")


def _nearest(pattern: str, named: Mapping[str, nn.Module]) -> str:
    """Name the module whose name is nearest to a pattern that matches none."""
    return closest(pattern, named) or closest(pattern.replace("*", "").strip("."), named) or f"; the outermost are {_outermost(named)}"


def _outermost(named: Mapping[str, nn.Module]) -> str:
    return ", ".join(repr(name) for name in named if name and "." not in name) or "none"
