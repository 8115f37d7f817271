"""Two images at once: projectors and reducers hand on rows without saying whose they are, so each image has to find its own at its place.

``out_grid`` and ``out_count`` say how many rows an image has, and the sum is compared in every pass. Rows that went to the image beside have the
right sum; they show where the rows of two images are compared with those of each alone, on features of no meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..decoders.vision import selected
from ..spec import Instruction, VisionFeatures

MOST_MULTIPLICATIONS = 10**10
"""Of the passes together: about half a second of one core. A larger part is not tried with two images."""


Run = Callable[[VisionFeatures, Sequence[int]], Tensor]
"""A part on features of some of two images, without a trace; which they are comes second."""


def small_enough(part: Any, given: VisionFeatures) -> bool:
    """Whether two images, and each alone, cost little enough."""
    weights = sum(parameter.numel() for parameter in part.parameters()) if isinstance(part, nn.Module) else 0
    return given.patches.is_meta or 4 * given.patches.shape[0] * weights <= MOST_MULTIPLICATIONS


def images_that_mix(run: Run, part: Any, counter: str, given: VisionFeatures) -> str | None:
    """Return what is wrong with the rows of two images, to be said of the part; None if nothing is.

    Args:
        run: the part, which leaves no trace.
        part: its modules, which are asked as they answer questions (``eval``).
        counter: name of the method that counts its rows.
        given: features of one image, whose shapes the two get.
    """
    both = _two(given)
    with _evaluated(part):
        rows = run(both, (0, 1))
        first, second = (run(_alone(both, image), (image,)) for image in range(2))
    count = first.shape[0]
    if rows.shape[0] != count + second.shape[0]:
        return (
            f"gives {count} rows for one image of {given.grids[0]} and {rows.shape[0]} for two: make its {counter}() and what its "
            f"forward() returns agree"
        )
    if rows.is_meta:
        return None
    for image, (got, own, other) in enumerate(((rows[:count], first, second), (rows[count:], second, first))):
        strange = _of_the_other(got, own, other)
        if strange is not None:
            return (
                f"gives two images the right number of rows, but row {strange} of image {image} is one of image {1 - image}: let its forward() "
                f"return image after image, of each as many rows as {counter}() says"
            )
    return None


def _of_the_other(got: Tensor, own: Tensor, other: Tensor) -> int | None:
    """Return the first row that isn't the image's own at its place, and is a row of the other image."""
    wrong = (~_near(got, own)).nonzero()[:, 0].tolist()
    return next((row for row in wrong if _near(got[row].expand_as(other), other).any() and not _near(got[row].expand_as(own), own).any()), None)


def _near(a: Tensor, b: Tensor) -> Tensor:
    """Return which rows agree but for rounding."""
    tolerance = 1e-3 if a.dtype == torch.float32 else 1e-6 if a.dtype == torch.float64 else 5e-2
    return (a - b).abs().amax(-1) <= tolerance * b.abs().amax(-1).clamp(min=1e-12)


def drawn_twice(tensor: Tensor, random: torch.Generator) -> Tensor:
    """Return random values for two images, each of the shape of the one given."""
    return torch.rand((2 * tensor.shape[0], *tensor.shape[1:]), generator=random).to(tensor)


def _two(given: VisionFeatures) -> VisionFeatures:
    """Return random features of two images, each of the shapes of the one given."""
    random = torch.Generator().manual_seed(0)

    def drawn(tensor: Tensor | None) -> Any:
        return None if tensor is None else drawn_twice(tensor, random)

    return replace(
        given,
        patches=drawn(given.patches),
        grids=given.grids * 2,
        prefix=drawn(given.prefix),
        layers={layer: drawn(rows) for layer, rows in given.layers.items()},
        keys=drawn(given.keys),
        cls_attn=drawn(given.cls_attn),
        towers=tuple(map(_two, given.towers)),
        instruction=None if given.instruction is None else Instruction.of([[0], [0]], device=given.patches.device),
    )


def _alone(both: VisionFeatures, image: int) -> VisionFeatures:
    return replace(selected(both, [image]), instruction=None if both.instruction is None else both.instruction.select([image]))


@contextmanager
def _evaluated(module: Any) -> Iterator[None]:
    """Switch off what a pass of training draws at random or takes from the batch."""
    training = [each for each in module.modules() if each.training] if isinstance(module, nn.Module) else []
    for each in training:
        each.training = False
    try:
        yield
    finally:
        for each in training:
            each.training = True
