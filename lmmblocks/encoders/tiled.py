"""An encoder of fixed size for images of any size: the picture is cut into tiles, each tile is encoded as an image (anyres).

Motivation: a 336 px tower sees no small print. How it works: ``preprocess`` cuts and remembers how (``TileGrid``); the tower and the
projector see one image per tile; the ``arrangement`` puts the projected rows back together, without the rows that show nothing
but padding and with a learned row at the end of each line. LLaVA-NeXT (``llava_arch.py:prepare_inputs_labels_for_multimodal``,
``mm_patch_merge_type="spatial_unpad"``; transformers' ``LlavaNextForConditionalGeneration``) and LLaVA-1.5-HD (arXiv 2310.03744, 3.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch.nn as nn

from ..images.pixels import TiledPixels
from ..images.tiles import LLAVA_NEXT_RESOLUTIONS, Resolution, TilePreprocess, resolution_problem
from ..spec import PATCHES, ByKeywords, LmmError, VisionFeatures
from ..spec.fields import field_problems
from .clip import CLIPConfig
from .tile_arrangement import TileArrangement


@dataclass(frozen=True)
class TiledConfig(metaclass=ByKeywords):
    """A tower and how images are cut for it; the defaults are LLaVA-NeXT's.

    Attributes:
        tower: config of the encoder that sees the tiles.
        pinpoints: (height, width) in pixels that a picture may be scaled into: multiples of the tower's image size. LLaVA-1.5-HD's are
            ``resolutions_up_to(6, 224)``.
        merge: ``spatial`` puts the rows of all tiles together as one large grid, ``flat`` keeps tile after tile.
        unpad: leave out rows of patches that show padding only; ``spatial`` only.
        newline: a learned row at the end of every line of patches.
        global_view: ``first``, ``last`` (after the tiles) or ``none``: where the rows of the whole picture, squashed to one tile, go.
        most_tiles: a picture of more rows than so many tiles have is made smaller, row grid and all, before the ends of its lines are added
            (LLaVA-OneVision's ``anyres_max_9``); ``spatial`` only. None = no limit.

    Raises:
        LmmError: values that make no sense, all of them in one message.
    """

    tower: Any = field(default_factory=CLIPConfig, metadata={"block": "encoder"})
    pinpoints: tuple[Resolution, ...] = LLAVA_NEXT_RESOLUTIONS
    merge: str = "spatial"
    unpad: bool = True
    newline: bool = True
    global_view: str = "first"
    most_tiles: int | None = None

    def __post_init__(self) -> None:
        problems = field_problems(self) or list(self._problems())
        if problems:
            raise LmmError("TiledConfig: " + "; ".join(problems))
        object.__setattr__(self, "pinpoints", tuple((height, width) for height, width in self.pinpoints))

    def _problems(self) -> Iterator[str]:
        if not hasattr(self.tower, "build"):
            yield f"tower needs a config dataclass such as CLIPConfig(...), found {self.tower!r}"
        yield from self.arrangement.problems()
        problem = resolution_problem(self.pinpoints)
        if problem:
            yield f"pinpoints: {problem}"

    @property
    def arrangement(self) -> TileArrangement:
        """What becomes of the projected rows."""
        return TileArrangement(self.merge, self.unpad, self.newline, self.global_view, self.most_tiles)

    def around(self, tower: Any) -> TiledConfig:
        """Return the same tiles for another tower's config."""
        return replace(self, tower=tower)

    def preprocess_of(self, tower: Any) -> TilePreprocess:
        """Return how pictures become tiles, for a tower's own preprocessing."""
        return TilePreprocess(tower, self.pinpoints, self.global_view != "none")

    def build(self) -> Tiled:
        """Return the encoder with random weights."""
        return Tiled(self)


class Tiled(nn.Module):
    """A tower that sees tiles.

    Args:
        config: of the tower and the tiles.
        tower: the encoder itself; None = a new one with random weights.

    Attributes:
        spec: what the tower emits for each tile.
        preprocess: how a picture becomes tiles.
        arrangement: how the projected rows of the tiles become the rows of the picture.

    Raises:
        LmmError: pinpoints that are not made of whole tiles.
    """

    def __init__(self, config: TiledConfig, tower: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.tower: Any = config.tower.build() if tower is None else tower
        if getattr(self.tower, "arrangement", None) is not None:
            raise LmmError(f"TiledConfig: the tower {type(self.tower).__name__!r} cuts images into tiles itself: use it alone")
        self.spec = self.tower.spec
        self.arrangement = config.arrangement
        self.preprocess = config.preprocess_of(self.tower.preprocess)

    @classmethod
    def of(cls, tower: nn.Module, **options: Any) -> Tiled:
        """Cut images for an encoder that exists already, with its weights and its preprocessing; options as of ``TiledConfig``."""
        return cls(TiledConfig(tower.config, **options), tower)

    @property
    def frozen(self) -> bool:
        """Whether the tower computes without autograd."""
        return self.tower.frozen

    @frozen.setter
    def frozen(self, value: bool) -> None:
        self.tower.frozen = value

    def forward(self, pixels: TiledPixels, *, need: frozenset[str] = PATCHES) -> VisionFeatures:
        """Encode every tile as an image.

        Args:
            pixels: tiles of ``I`` images.
            need: extras beside ``patches``, a subset of ``spec.offers``.

        Returns:
            Packed features with one grid per tile.

        Raises:
            LmmError: pixels of another preprocessing, or something the tower doesn't offer.
        """
        if not isinstance(pixels, TiledPixels):
            raise LmmError(f"encoder 'tiled' needs TiledPixels, found {type(pixels).__name__}: use its own preprocess")
        return self.tower(pixels.tiles, need=need)
