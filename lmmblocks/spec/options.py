"""A block remembers what it was made with: its config has to say it, and the constructor's signature knows all of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from .fields import plain

WIDTHS = ("in_dim", "out_dim")
"""Arguments that follow from the encoder and the decoder; no config holds them."""

Made = TypeVar("Made", bound=type)


def remembers_options(cls: Made) -> Made:
    """Give the objects of a class ``options``: all arguments of the constructor but the widths, defaults too, as JSON holds them.

    A derived class with a constructor of its own is decorated again; its arguments count then.

    >>> @remembers_options
    ... class Scale:
    ...     def __init__(self, in_dim, out_dim, by=2.0, sides=(1, 2)): ...
    >>> Scale(4, 8, by=3.0).options
    {'by': 3.0, 'sides': [1, 2]}
    """
    made: Any = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(made)

    @functools.wraps(made)
    def __init__(self: Any, *args: Any, **keywords: Any) -> None:
        made(self, *args, **keywords)
        given = signature.bind(self, *args, **keywords)
        given.apply_defaults()
        _, *named = given.arguments.items()
        # After the constructor: that of a base class has remembered fewer.
        self.options = {name: _stored(value) for name, value in named if name not in WIDTHS}

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


def _stored(value: Any) -> Any:
    """Return a copy of lists and mappings as JSON gives them back."""
    if isinstance(value, Mapping):
        return {key: _stored(entry) for key, entry in value.items()}
    return [_stored(entry) for entry in value] if isinstance(value, (list, tuple)) else plain(value)
