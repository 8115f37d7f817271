"""Preprocessing as plain values and back, by the name of its exact class: never a base class, which would see other pictures.

A preprocessing is a dataclass of plain values (and of other preprocessings, in fields with ``metadata={"block": "preprocess"}``), or a class with
``to_dict()`` and a class method ``from_dict(values)``. Its class is found by a registered name or ``package.module:Class``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from .. import registry
from ..spec import LmmError, closest

SQUARE = "square"
"""The kind that is meant where plain values name none: one square picture."""


def preprocess_to_dict(preprocess: Any) -> dict[str, Any]:
    """Return a preprocessing as plain values that survive a round trip through JSON.

    Raises:
        LmmError: a class that doesn't say how it is written down and made again.
    """
    cls = type(preprocess)
    kind = registry.name_of("preprocess", cls)
    if hasattr(cls, "to_dict") and hasattr(cls, "from_dict"):
        values = dict(preprocess.to_dict())
    elif is_dataclass(cls) and not hasattr(cls, "to_dict"):
        values = {f.name: _plain(f.metadata.get("block"), getattr(preprocess, f.name)) for f in fields(cls) if f.init}
    else:
        raise LmmError(
            f"image preprocessing {cls.__name__!r} can't be written down: make it a dataclass of plain values, or give it to_dict() and a class "
            f"method from_dict(values)"
        )
    values.pop("kind", None)
    return values if kind == SQUARE else {"kind": kind, **values}


def preprocess_from_dict(values: Mapping[str, Any]) -> Any:
    """Rebuild what :func:`preprocess_to_dict` wrote down.

    Raises:
        LmmError: an unknown kind, unknown or missing keys.
    """
    rest = dict(values)
    kind = rest.pop("kind", SQUARE)
    if not isinstance(kind, str) or (":" not in kind and kind not in registry.names("preprocess")):
        known = registry.names("preprocess")
        raise LmmError(
            f"image preprocessing of kind {kind!r}{closest(str(kind), known)}; known: {', '.join(known)}, or 'package.module:Class'; if a file of "
            f"your own registers {kind!r}, import it first"
        )
    cls = registry.resolve("preprocess", kind)
    if hasattr(cls, "from_dict"):
        return cls.from_dict(rest)
    if not is_dataclass(cls):
        raise LmmError(f"image preprocessing of kind {kind!r} is {cls!r}: expected a dataclass, or a class with from_dict(values)")
    return _from_fields(cls, kind, rest)


def _from_fields(cls: Any, kind: str, values: Mapping[str, Any]) -> Any:
    known = {f.name: f for f in fields(cls) if f.init}
    unknown = [f"{key!r}{closest(str(key), known)}" for key in values if key not in known]
    missing = [name for name, f in known.items() if name not in values and f.default is f.default_factory is MISSING]
    if unknown or missing:
        raise LmmError(
            f"image preprocessing of kind {kind!r}: unknown keys {', '.join(unknown) or 'none'}; missing keys {', '.join(missing) or 'none'}; "
            f"expected {', '.join(known)}"
        )
    return cls(**{name: _value(known[name].metadata.get("block"), value) for name, value in values.items()})


def _plain(block: str | None, value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(block, entry) for entry in value]
    return value if block is None else preprocess_to_dict(value)


def _value(block: str | None, value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_value(block, entry) for entry in value)
    return value if block is None else preprocess_from_dict(value)
