"""Blocks from what a user may write for one: a name, ``package.module:Class``, a ``Block`` with options, a class, or the thing itself.

A projector is made as ``Class(in_dim, out_dim, **options)``. A reducer or a hook is made as ``Class(**options)``; where its constructor
names ``in_dim`` (the encoder's width) or ``out_dim`` (the decoder's), it gets them. A class with
``from_spec(spec, out_dim, **options)`` is made by that: it sees the encoder's whole ``FeatureSpec``. Encoders and decoders are config dataclasses.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch.nn as nn

from .. import registry
from ..config import Block, is_config
from ..spec import FeatureSpec, LmmError, refuse_unknown
from ..spec.options import WIDTHS


@dataclass(frozen=True)
class Recipe:
    """How one block is made once the encoder and the decoder are known.

    Attributes:
        kind: ``projector``, ``reducer`` or ``hook``.
        block: name and options, which the config remembers.
        maker: the class.
        made: the block itself, when that is what was passed.
    """

    kind: str
    block: Block
    maker: Any
    made: Any = None

    def make(self, spec: FeatureSpec, out_dim: int) -> Any:
        """Return the block.

        Raises:
            LmmError: options it doesn't know, with the closest one, a constructor that can't be called so, or what the constructor refuses.
        """
        if self.made is not None:
            return self.made
        return _called(self.kind, self.maker, spec, out_dim, self.block.options)


def recipe(kind: str, swap: Any) -> Recipe:
    """Return how to make a block from what a user wrote; unknown names are refused here.

    Raises:
        LmmError: an unknown name, or something that is no block.
    """
    if isinstance(swap, (str, Block)):
        block = Block(swap) if isinstance(swap, str) else swap
        return Recipe(kind, block, registry.resolve(kind, block.type))
    if inspect.isclass(swap):
        return Recipe(kind, Block(registry.name_of(kind, swap)), swap)
    if isinstance(swap, nn.Module) or (kind == "hook" and callable(swap)):
        return Recipe(kind, Block(registry.name_of(kind, type(swap)), _options_of(kind, swap)), type(swap), swap)
    raise LmmError(f"{kind}={swap!r}: expected a name, a Block, a class or a module")


def recipes(kind: str, swaps: Any) -> list[Recipe]:
    """Return how to make several blocks.

    Raises:
        LmmError: not a list, or as :func:`recipe`.
    """
    if not isinstance(swaps, Sequence) or isinstance(swaps, str):
        raise LmmError(f"{kind}s={swaps!r}: expected a list of names, Blocks, classes or modules, such as [{swaps!r}]")
    return [recipe(kind, swap) for swap in swaps]


def named_config(kind: str, swap: Any) -> Any:
    """Return the config that a registered name, ``package.module:Class`` or a ``Block`` stands for, None for any other word.

    Raises:
        LmmError: what the name stands for is no config dataclass, or options that it refuses.
    """
    if isinstance(swap, str) and (":" in swap or swap in registry.names(kind)):
        swap = Block(swap)
    if not isinstance(swap, Block):
        return None
    made = registry.resolve(kind, swap.type)
    if not (is_dataclass(made) and isinstance(made, type)):
        raise LmmError(f"{kind} {swap.type!r} is {made!r}, expected a config dataclass with build(): name that")
    try:
        return made(**swap.options)
    except TypeError as error:
        known = [f.name for f in fields(made)]
        raise LmmError(f"{kind} {swap.type!r} can't be made from {dict(swap.options)}: {error}; its fields: {known}") from error


def _called(kind: str, maker: Any, spec: FeatureSpec, out_dim: int, options: Mapping[str, Any]) -> Any:
    parameters = inspect.signature(maker).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = [name for name in parameters if name not in WIDTHS]
        refuse_unknown(f"{kind} {maker.__name__}: unknown options", options, known)
    if hasattr(maker, "from_spec"):
        _check_call(kind, maker, (spec.dim, out_dim), options, "(in_dim, out_dim, **options)")
        return maker.from_spec(spec, out_dim, **options)
    if kind == "projector":
        _check_call(kind, maker, (spec.dim, out_dim), options, "(in_dim, out_dim, **options)")
        return maker(spec.dim, out_dim, **options)
    widths = {name: width for name, width in zip(WIDTHS, (spec.dim, out_dim)) if name in parameters}
    _check_call(kind, maker, (), {**widths, **options}, "(**options), and in_dim and out_dim where it names them,")
    return maker(**widths, **options)


def _check_call(kind: str, maker: Any, args: tuple, options: Mapping[str, Any], form: str) -> None:
    """Check the constructor against the arguments, so that a mistake inside of it isn't taken for a wrong signature."""
    signature = inspect.signature(maker)
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        raise LmmError(
            f"{kind} {maker.__name__} is made as {form} with options {dict(options)}, but its constructor takes {signature}: {error}"
        ) from error


def _options_of(kind: str, made: Any) -> dict[str, Any]:
    """Return what a block was made with; a config that doesn't know it would describe another one."""
    if hasattr(made, "options"):
        return dict(made.options)
    if is_config(made):
        return {f.name: getattr(made, f.name) for f in fields(made) if f.init}
    parameters = [*inspect.signature(type(made)).parameters]
    if set(parameters) - set(WIDTHS):
        raise LmmError(
            f"{kind} {type(made).__name__!r} takes {parameters} but doesn't say what it was made with, which saving needs: pass its "
            f"class or a Block, give it an 'options' attribute (all arguments but in_dim and out_dim), or compose it yourself with "
            f"LMM(encoder, projector, decoder)"
        )
    return {}
