"""Several encoders on the same image, each with its own preprocessing and image size.

``channels``: all towers' features side by side on one grid, as Prismatic's DINOv2 + SigLIP (arXiv 2402.07865, ``DinoSigLIPViTBackbone``);
grids that differ are interpolated (bilinear, corners not aligned, fp32: Cambrian-1's ``base_encoder.py``). ``list``: each tower's
features on its own grid, for projectors that read several (Cambrian-1's SVA, arXiv 2406.16860).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..images.fused import FusedPreprocess
from ..images.pixels import FusedPixels
from ..spec import PATCHES, ByKeywords, FeatureSpec, Grid, LmmError, VisionFeatures

TOWERS = frozenset({"towers"})
COMBINE = {"channels": PATCHES | TOWERS, "list": TOWERS}
"""How features are combined -> what that offers. ``list`` offers no ``patches``: who reads only these would lose the other towers."""


@dataclass(frozen=True)
class FusedConfig(metaclass=ByKeywords):
    """Encoders that see the same images.

    Attributes:
        towers: configs of two or more encoders, in the order of their channels.
        combine: ``channels`` or ``list``.
        grid: of ``channels``: rows and columns that every tower's features are brought to; None = the first tower's own.

    Raises:
        LmmError: fewer than two towers, or settings that contradict each other.
    """

    towers: tuple[Any, ...] = field(metadata={"block": "encoder"})
    combine: str = "channels"
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "towers", tuple(self.towers))
        problems = list(self._problems())
        if problems:
            raise LmmError("FusedConfig: " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if len(self.towers) < 2:
            yield f"towers needs at least two encoders, found {len(self.towers)}: use a single one without fusing"
        without = [type(tower).__name__ for tower in self.towers if not hasattr(tower, "build")]
        if without:
            yield f"towers must be config dataclasses such as CLIPConfig(...), found {without}"
        if self.combine not in COMBINE:
            yield f"combine {self.combine!r} is none of {sorted(COMBINE)}"
        if self.grid is not None and self.combine == "list":
            yield f"grid {self.grid} has no effect with combine='list', where each tower keeps its own: leave it out"
        whole = self.grid is None or (len(self.grid) == 2 and all(isinstance(n, int) and n > 0 for n in self.grid))
        if not whole:
            yield f"grid must be (rows, columns), found {self.grid!r}"

    def build(self) -> Fused:
        """Return the encoder with random weights."""
        return Fused(self)


class Fused(nn.Module):
    """Several encoders as one.

    Args:
        config: the towers' configs and how they are combined.
        towers: the encoders themselves; None = new ones with random weights.

    Attributes:
        spec: what it emits; ``spec.towers`` says it of each tower.
        preprocess: how a picture becomes each tower's pixels.

    Raises:
        LmmError: a tower that can't be fused.
    """

    def __init__(self, config: FusedConfig, towers: Sequence[nn.Module] | None = None) -> None:
        super().__init__()
        self.config = config
        self.towers: Any = nn.ModuleList(towers if towers is not None else (tower.build() for tower in config.towers))
        problems = list(_tower_problems(self.towers))
        if problems:
            raise LmmError("FusedConfig: " + "; ".join(problems))
        specs: tuple[Any, ...] = tuple(tower.spec for tower in self.towers)
        first, joined = specs[0], config.combine == "channels"
        self.spec = FeatureSpec(
            dim=sum(spec.dim for spec in specs) if joined else first.dim,
            patch=first.patch,
            image_size=first.image_size,
            layers=(),
            offers=COMBINE[config.combine],
            towers=specs,
            grid=Grid(*config.grid) if config.grid else first.grid,
        )
        self.preprocess = FusedPreprocess(tuple(tower.preprocess for tower in self.towers), config.grid)

    @classmethod
    def of(cls, *towers: nn.Module, combine: str = "channels", grid: tuple[int, int] | None = None) -> Fused:
        """Fuse encoders that exist already, with their weights and their preprocessing."""
        return cls(FusedConfig(tuple(tower.config for tower in towers), combine, grid), towers)

    @property
    def frozen(self) -> bool:
        """Whether all towers compute without autograd."""
        return all(tower.frozen for tower in self.towers)

    @frozen.setter
    def frozen(self, value: bool) -> None:
        for tower in self.towers:
            tower.frozen = value

    def forward(self, pixels: FusedPixels, *, need: frozenset[str] = PATCHES) -> VisionFeatures:
        """Encode the same images with every tower.

        Args:
            pixels: of ``I`` images, for each tower.
            need: ``patches`` and ``towers``, as far as ``spec.offers`` has them.

        Returns:
            ``channels``: ``patches`` ``(M, sum of C)`` on the common grid. ``list``: ``patches`` and ``grids`` of the first tower.
            With ``towers`` in ``need``: every tower's features as well.

        Raises:
            LmmError: pixels of another preprocessing, or something that isn't offered.
        """
        if not isinstance(pixels, FusedPixels) or len(pixels.towers) != len(self.towers):
            found = f"of {len(pixels.towers)} towers" if isinstance(pixels, FusedPixels) else type(pixels).__name__
            raise LmmError(f"encoder 'fused' needs FusedPixels of {len(self.towers)} towers, found {found}: use its own preprocess")
        if not need <= self.spec.offers:
            raise LmmError(f"encoder 'fused' can't give {sorted(need - self.spec.offers)}; it offers {sorted(self.spec.offers)}")
        each = tuple(tower(own) for tower, own in zip(self.towers, pixels.towers))
        grids = each[0].grids if self.config.grid is None else (Grid(*self.config.grid),) * len(pixels)
        if self.config.combine == "channels":
            patches = torch.cat([on_grids(features.patches, features.grids, grids) for features in each], -1)
        else:
            patches = each[0].patches
        return VisionFeatures(patches, grids, towers=each if "towers" in need else ())


def on_grids(rows_MC: Tensor, grids: Sequence[Grid], wanted: Sequence[Grid]) -> Tensor:
    """Interpolate packed features of each image to another grid.

    Args:
        rows_MC: features.
        grids: of each image now.
        wanted: of each image then; where it is the same, nothing is computed.

    Returns:
        Packed features on the wanted grids, in the dtype they had.
    """
    if tuple(grids) == tuple(wanted):
        return rows_MC
    if len({*grids}) == len({*wanted}) == 1:
        return _interpolated(rows_MC.unflatten(0, (len(grids), -1)), grids[0], wanted[0]).flatten(0, 1)
    pieces = rows_MC.split([grid.rows for grid in grids])
    return torch.cat([_interpolated(piece[None], old, new)[0] for piece, old, new in zip(pieces, grids, wanted)])


def _interpolated(rows_IPC: Tensor, old: Grid, new: Grid) -> Tensor:
    if old == new:
        return rows_IPC
    maps_ICHW = rows_IPC.transpose(1, 2).unflatten(2, (old.h, old.w)).float()
    return F.interpolate(maps_ICHW, (new.h, new.w), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2).to(rows_IPC.dtype)


def _tower_problems(towers: Iterable[Any]) -> Iterator[str]:
    for index, tower in enumerate(towers):
        name = f"tower {index} ({type(tower).__name__})"
        if getattr(tower, "arrangement", None) is not None:
            yield f"{name} cuts images into tiles: fuse first and cut then, as TiledConfig(tower=FusedConfig(...))"
        elif "patches" not in tower.spec.offers:
            yield f"{name} offers no patches: fuse its towers here directly"
        elif tower.spec.image_size is None:
            yield f"{name} has no fixed image size, so the grids of the towers can't be known before the images: use one with a size"
