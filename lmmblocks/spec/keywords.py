"""What a class says about keywords that it doesn't have, one rule for all values that users make: ``class Stage(metaclass=ByKeywords)``.

A metaclass, so that it holds for classes derived from ours as well, for ``dataclasses.replace``, and not when a value is unpickled.
"""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import LmmError, closest


class ByKeywords(ABCMeta):
    """Metaclass of dataclasses: arguments that don't fit are a mistake of the user's, told with the closest name.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Shape(metaclass=ByKeywords):
    ...     layers: int
    >>> Shape(layer=2)
    Traceback (most recent call last):
    lmmblocks.spec.errors.LmmError: Shape: missing 'layers'; unknown keywords 'layer'; did you mean 'layers'?; known: layers
    """

    if not TYPE_CHECKING:  # type checkers read the dataclass's own signature

        def __call__(cls, *args: Any, **keywords: Any) -> Any:
            try:
                return super().__call__(*args, **keywords)
            except TypeError as error:
                problem = _misfit(cls, args, keywords)
                if problem is None:
                    raise
                raise LmmError(problem) from error


def _misfit(cls: type, args: tuple, keywords: Mapping[str, Any]) -> str | None:
    """Say what about a call doesn't fit a class, None where it fits and something inside went wrong."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    try:
        signature.bind(None, *args, **keywords)
    except TypeError as error:
        _, *parameters = signature.parameters.values()
        known = [each.name for each in parameters]
        positional = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        given = {*positional[: len(args)], *keywords}
        unknown = [f"{name!r}{closest(name, known)}" for name in keywords if name not in known]
        missing = [repr(each.name) for each in parameters if each.default is each.empty and each.name not in given]
        problems = [f"{len(args)} values without a name, expected at most {len(positional)}"] if len(args) > len(positional) else []
        problems += [f"missing {', '.join(missing)}"] if missing else []
        problems += [f"unknown keywords {', '.join(unknown)}; known: {', '.join(known)}"] if unknown else []
        return f"{cls.__name__}: {'; '.join(problems or [str(error)])}"
    return None
