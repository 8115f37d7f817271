"""Which implementation of an op runs, and why each other one did not.

Motivation: users must be able to see, force and add implementations per op, and ``auto`` must never break a model.

How it works: every op owns a ladder of :class:`Implementation`, fastest first; the reference is last and takes everything. A call
walks the ladder and takes the first whose ``supports(call)`` and ``trusted(call)`` are True. A forced name that refuses raises with its
reason. The choice can be set, from the strongest to the weakest, for one call (``backend="..."``), for the modules of a model that match
a pattern (:meth:`~lmmblocks.ops.backend.backend.override`), for a block of code (:class:`~lmmblocks.ops.backend.backend`), and for a process
(``LMMBLOCKS_BACKEND="attention=reference,rms_norm=torch"``).

Nothing is remembered from call to call: a verdict may depend on strides and lengths, and costs less than a launch. What is constant
(what is installed, what a device can do) is remembered by those who find it out.

Under ``torch.compile`` the ladder is walked while tracing and the choice is part of the graph, guarded by what it read: a ``with`` block or
an override that changes is seen, and compiled again. So is every size and host length that a verdict reads for a constant, by comparing it with
one or by writing it into a reason: reasons that ``auto`` meets on its way to a kernel name no sizes. What ``fullgraph=True`` costs:

- Triton's kernels read no length of a segment. One graph has the sizes of the first batch, one serves all others, however many segments they have.
  (Sizes that change later than others cost a graph more; ``torch._dynamo.mark_dynamic`` on the tensors of a plan spares it.)
- The ``torch`` and ``reference`` attention are made of host lengths and cost a graph for each packing, up to
  ``torch._dynamo.config.recompile_limit``: pack to fixed lengths, or leave attention out of what is compiled.
- An encoder costs a graph for each number of images: compile ``model.language_model`` alone where it varies.
- ``torch.compile(dynamic=True)`` makes symbols of floats too, which autograd functions refuse; ``torch._dynamo.config.specialize_float = True``
  keeps them constant.

Non-goals: autotuning, and any decision that needs device data.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..spec import LmmError, closest, first_line
from . import forced

ENVIRONMENT = "LMMBLOCKS_BACKEND"
_LOG = logging.getLogger("lmmblocks.dispatch")


def always(*args: Any, **kwargs: Any) -> bool | str:
    return True


@dataclass(frozen=True)
class Implementation:
    """One way to run an op.

    Attributes:
        name: the word users write, ``reference``, ``torch``, ``triton``, ``cuda``.
        run: the callable, same signature for all implementations of the op.
        supports: same arguments; True, or the reason it refuses, which binds a forced choice too.
        trusted: same arguments; True, or the reason why ``auto`` passes it by although it could: a kernel that was never proven on a GPU.
        foreign: it runs another package's code. When that raises, ``auto`` says so once and never takes it again in this process.
    """

    name: str
    run: Callable[..., Any]
    supports: Callable[..., bool | str] = always
    trusted: Callable[..., bool | str] = always
    foreign: bool = False


_LADDERS: dict[str, list[Implementation]] = {}
"""What ``ops/ladders.py`` lists, with the implementations that users put on top."""

_CONSIDER = "?"
_PARSED: dict[str, dict[str, str]] = {}
_LAST: dict[str, tuple[str, list[tuple[str, str]]]] = {}
_BROKEN: dict[tuple[str, str], str] = {}
_LOGGED: set[str] = set()


def begin_with(ladders: Mapping[str, tuple[Implementation, ...]]) -> None:
    """Take the library's own ladders; called once, when ``lmmblocks.ops`` is imported."""
    _LADDERS.update((op, list(ladder)) for op, ladder in ladders.items())


def put_on_top(op: str, implementation: Implementation) -> None:
    """Make ``auto`` try an implementation before all others of ``op``.

    Raises:
        LmmError: the op is unknown, or the name is taken.
    """
    if op not in _LADDERS:
        raise _unknown_op(op)
    if implementation.name in {entry.name for entry in _LADDERS[op]}:
        raise LmmError(f"op {op!r} already has an implementation {implementation.name!r}: choose another name")
    _LADDERS[op].insert(0, implementation)


def ladders() -> dict[str, tuple[str, ...]]:
    """Return the names on the ladder of every op, fastest first."""
    return {op: tuple(entry.name for entry in _LADDERS[op]) for op in sorted(_LADDERS)}


def dispatch(op: str, *args: Any, backend: str = "auto", **kwargs: Any) -> Any:
    """Run ``op`` with the implementation that is forced, or the first on its ladder that supports the call."""
    name = backend if backend != "auto" else chosen(op)
    entry = _walk(op, args, kwargs) if name == "auto" else _select_forced(op, name, args, kwargs)
    if entry.foreign and name == "auto" and not torch.compiler.is_compiling():
        return _run_foreign(op, entry, args, kwargs)
    return entry.run(*args, **kwargs)


def select(op: str, *args: Any, backend: str = "auto", **kwargs: Any) -> Implementation:
    """Return the implementation that :func:`dispatch` would run.

    Raises:
        LmmError: the forced implementation is unknown or refuses this call; the message gives its reason.
    """
    name = backend if backend != "auto" else chosen(op)
    return _walk(op, args, kwargs) if name == "auto" else _select_forced(op, name, args, kwargs)


class Considered(Exception):
    """Ends a call that was made to be considered only; ``verdicts`` are those of the op that it came to."""

    def __init__(self, op: str, found: list[tuple[str, bool | str]]) -> None:
        self.op, self.verdicts = op, found


def consider(call: Callable[[], Any]) -> Considered:
    """Make a call up to the first op that it comes to, which doesn't run: its ladder says what ``auto`` would do."""
    before = forced.innermost()
    forced.push(dict.fromkeys(_LADDERS, _CONSIDER), call)
    try:
        call()
    except Considered as considered:
        return considered
    finally:
        forced.restore(before)
    raise AssertionError("the call came to no op")


def verdicts(op: str, *args: Any, **kwargs: Any) -> list[tuple[str, bool | str]]:
    """Return for each implementation of ``op``, fastest first, True or why ``auto`` would pass it by; nothing runs."""
    return [(entry.name, _verdict(op, entry, args, kwargs)) for entry in _LADDERS[op]]


def _verdict(op: str, entry: Implementation, args: tuple, kwargs: dict) -> bool | str:
    verdict = entry.supports(*args, **kwargs)
    if verdict is True:
        verdict = entry.trusted(*args, **kwargs)
    if verdict is True and entry.foreign:
        verdict = _BROKEN.get((op, entry.name), True)
    return verdict


def _walk(op: str, args: tuple, kwargs: dict) -> Implementation:
    refused: list[tuple[str, str]] = []
    for entry in _LADDERS[op]:
        verdict = _verdict(op, entry, args, kwargs)
        if verdict is True:
            _LAST[op] = (entry.name, refused)
            if refused and op not in _LOGGED and not torch.compiler.is_compiling():
                _LOGGED.add(op)
                _LOG.debug("%s runs as %s: %s", op, entry.name, "; ".join(f"{name}: {reason}" for name, reason in refused))
            return entry
        refused.append((entry.name, str(verdict)))
    raise AssertionError(f"the reference of {op} must take every call: {refused}")


def _run_foreign(op: str, entry: Implementation, args: tuple, kwargs: dict) -> Any:
    try:
        return entry.run(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # other people's code: whatever goes wrong in it is a reason, and is told
        first = first_line(error)
        _BROKEN[op, entry.name] = f"it failed with {type(error).__name__}: {first}; not tried again in this process"
        _LOG.warning("%s: %s failed and is passed by from now on: %s: %s", op, entry.name, type(error).__name__, first)
        return dispatch(op, *args, **kwargs)


def _select_forced(op: str, name: str, args: tuple, kwargs: dict) -> Implementation:
    if name == _CONSIDER:
        raise Considered(op, verdicts(op, *args, **kwargs))
    entry = find(op, name)
    verdict = entry.supports(*args, **kwargs)
    if verdict is not True:
        raise LmmError(f"backend {name!r} was asked for op {op!r} but refuses this call: {verdict}; use 'auto' or 'reference'")
    _LAST[op] = (entry.name, [])
    return entry


def find(op: str, name: str) -> Implementation:
    """Return an implementation by name.

    Raises:
        LmmError: an unknown op or implementation; names the closest one.
    """
    if op not in _LADDERS:
        raise _unknown_op(op)
    for entry in _LADDERS[op]:
        if entry.name == name:
            return entry
    names = [entry.name for entry in _LADDERS[op]]
    raise LmmError(f"op {op!r} has no implementation {name!r}; it has {names}, or 'auto'{closest(str(name), names)}")


def _unknown_op(op: str) -> LmmError:
    return LmmError(f"unknown op {op!r}; known: {sorted(_LADDERS)}{closest(op, _LADDERS)}")


def check_choices(asked: Mapping[str, str]) -> None:
    """Raise LmmError when an op or one of its implementations is unknown; ``"auto"`` fits every op."""
    for op, name in asked.items():
        if name != "auto" or op not in _LADDERS:
            find(op, name)


def chosen(op: str) -> str:
    """Return the forced implementation of ``op``, or ``"auto"``."""
    if torch.compiler.is_compiling() and forced.overrides_are(op):
        raise AssertionError(f"asked to be guarded: no override is named {op}")
    here = forced.chosen()
    if op in here:
        return here[op]
    text = os.environ.get(ENVIRONMENT)
    return _from_environment(text).get(op, "auto") if text else "auto"


def check_environment() -> None:
    """Raise LmmError when what the environment chooses is wrong: to be asked before a part is tried, which would be blamed for it."""
    _from_environment(os.environ.get(ENVIRONMENT, ""))


def _from_environment(text: str) -> dict[str, str]:
    if text not in _PARSED:
        parsed = {}
        for entry in filter(str.strip, text.split(",")):
            op, equals, name = (part.strip() for part in entry.partition("="))
            if not equals:
                raise LmmError(f"{ENVIRONMENT}={text!r}: expected 'op=implementation' pairs joined by commas, found {entry!r}")
            parsed[op] = name
        try:
            check_choices(parsed)
        except LmmError as error:
            raise LmmError(f"{ENVIRONMENT}={text!r}: {error}") from error
        _PARSED[text] = parsed
    return _PARSED[text]


def last_runs() -> list[tuple[str, str, tuple[str, ...], str, list[tuple[str, str]]]]:
    """Return per op its name, what is forced, its ladder, what ran last, and why each faster implementation was passed by."""
    return [(op, chosen(op), names, *_LAST.get(op, ("-", []))) for op, names in ladders().items()]
