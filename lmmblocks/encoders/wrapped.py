"""Vision transformers of other libraries as encoder blocks: their modules compute, the selection and the extras are ours.

A library says in :class:`TowerParts` how its tower is taken apart; :class:`WrappedViT` does the rest.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn as nn
from torch import Tensor

from ..spec import LmmError, first_line
from ..spec.versions import too_old
from .vit import ViTEncoder, select_problems


@dataclass(frozen=True)
class TowerParts:
    """A tower taken apart.

    Attributes:
        dim: width ``C``.
        layers: number of blocks.
        patch: side of a patch in pixels.
        image_size: side of the square input in pixels.
        prefix: tokens before the patches.
        has_cls: whether the first of them is CLS.
        blocks: the transformer layers.
        states_behind: called with pixels and numbers of blocks; returns the hidden states ``(I, prefix + P, C)`` after these, running no
            block after the last of them.
        query_and_keys: called with a block and the hidden state that enters it; returns the first token's query and all keys
            ``(I, ..., N, E)``. None where the block's attention isn't of the kind that this is known of.
    """

    dim: int
    layers: int
    patch: int
    image_size: int
    prefix: int
    has_cls: bool
    blocks: Any
    states_behind: Callable[[Tensor, list[int]], list[Tensor]]
    query_and_keys: Callable[[Any, Tensor], tuple[Tensor, Tensor]] | None


class WrappedViT(ViTEncoder):
    """An encoder block around a tower of another library.

    Args:
        config: of the encoder; ``select`` is read.
        parts: the tower taken apart. Its module must be registered by the subclass.
        preprocess: how a picture becomes pixels.
        name: of the encoder, in messages.

    Raises:
        LmmError: the selection names hidden states that the tower doesn't have.
    """

    def __init__(self, config: Any, parts: TowerParts, preprocess: Any, *, name: str) -> None:
        problems = list(select_problems(config.select, parts.layers))
        if problems:
            raise LmmError(f"{type(config).__name__}: {'; '.join(problems)}")
        offers = {"patches", "layers"} | ({"prefix"} if parts.prefix else set())
        if parts.query_and_keys is not None:
            offers |= {"keys", "cls_attn"} if parts.has_cls else {"keys"}
        super().__init__(config, preprocess, name=name, prefix=parts.prefix, offers=frozenset(offers), shape=parts)
        self.parts = parts

    def _states(self, pixels: Tensor, wanted: frozenset[int]) -> dict[int, Tensor]:
        """State 0 is what enters the first block, state k what leaves the k-th."""
        parts, entered = self.parts, {}
        if not pixels.shape[0]:
            side = parts.image_size // parts.patch
            return dict.fromkeys(wanted, pixels.new_zeros(0, parts.prefix + side * side, parts.dim))
        behind = sorted(state - 1 for state in wanted if state) or [0]
        hook = parts.blocks[0].register_forward_pre_hook(lambda block, given: entered.update({0: given[0]}))
        try:
            states = parts.states_behind(pixels, behind)
        finally:
            hook.remove()
        return {**entered, **{block + 1: state for block, state in zip(behind, states)}}

    def _query_and_keys(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.parts.query_and_keys is not None
        return self.parts.query_and_keys(self.parts.blocks[layer], x)


def optional_package(package: str, extra: str) -> Any:
    """Import a package that an optional extra of this one installs.

    Raises:
        LmmError: it isn't there, is older than the extra declares, or doesn't fit the torch that is.
    """
    if problems := too_old(extra=extra):
        raise LmmError(f"encoder {extra!r}: {'; '.join(problems)}")
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise LmmError(f"encoder {extra!r} needs the package {error.name!r}: pip install 'lmmblocks[{extra}]'") from error
    except (ImportError, RuntimeError, OSError) as error:  # torchvision that was built for another torch
        raise LmmError(
            f"encoder {extra!r} needs the package {package!r}, which can't be imported: {first_line(error)}: install a torchvision that fits torch"
        ) from error


def square(pair: Any, what: str) -> int:
    """Return the side of a square given as a pair or a number.

    Raises:
        LmmError: the sides differ.
    """
    sides = set(pair) if isinstance(pair, (tuple, list)) else {pair}
    if len(sides) != 1:
        raise LmmError(f"{what} must be square, found {pair}")
    return int(sides.pop())


def plain_blocks(blocks: Any, kinds: tuple[type, ...], attention: tuple[type, ...]) -> bool:
    """Say whether every block and its attention are of exactly these classes."""
    return all(type(block) in kinds and type(getattr(block, "attn", None)) in attention for block in blocks)


def module_list(blocks: Any, name: str) -> nn.ModuleList:
    """Return the blocks of a tower.

    Raises:
        LmmError: they are no list of layers.
    """
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or not len(blocks):
        raise LmmError(f"{name} is no vision transformer: its blocks are {type(blocks).__name__}, expected a list of layers")
    return blocks  # type: ignore[return-value]
