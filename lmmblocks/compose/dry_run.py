"""One empty image through reducers and projector, before any real one: widths and counts must be what the parts say."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..spec import PATCHES, Grid, Instruction, TileGrid, VisionFeatures, image_count
from .image_rows import as_grid, goes_before, out_grid_of, projected_count
from .images_apart import images_that_mix, small_enough

OF_THE_MODEL = frozenset({"instruction", "table"})
"""What a projector may require that the model fills in, not the encoder."""

_ANY_SIDE = 8
"""Patches along a side of the empty image of an encoder that takes any size."""
_UNEVEN = (Grid(6, 8), Grid(8, 5), Grid(3, 7))
"""Grids that such an encoder may give too."""


def row_mismatches(
    encoder: Any, projector: Any, decoder: Any, reducers: Sequence[Any], max_length: int | None
) -> Iterator[str]:
    """Run reducers and projector on one empty image: widths and counts must be what they say."""
    spec = encoder.spec
    side = spec.image_size // spec.patch if spec.image_size else _ANY_SIDE
    grid = spec.grid or Grid(side, side)
    features = blank_features(spec, grid, next(iter(projector.parameters()), torch.zeros(())))
    features.table = decoder.table
    before = [reducer for reducer in reducers if goes_before(reducer)]
    given, seen = features, grid
    for reducer in before:
        if given is not features and not frozenset(reducer.requires) <= PATCHES:
            yield (
                f"reducer {name_of(reducer)} requires {sorted(reducer.requires)}, but {name_of(before[0])} runs before it and leaves patches "
                f"only: keep one of them"
            )
            return
        rows = yield from _reducer_rows(reducer, given, given.patches, given.grids[0])
        if rows is None:
            return
        seen = reducer.out_count(given.grids[0])
        given = VisionFeatures(rows, (as_grid(seen),), instruction=features.instruction, table=features.table)
    if before and not _takes_what_is_left(projector, seen):
        yield (
            f"reducer {name_of(before[-1])} runs before the projector and leaves patches{'' if isinstance(seen, Grid) else ' without a grid'}, "
            f"projector {name_of(projector)} needs more than each patch alone: use a projector such as 'mlp', or a reducer behind the "
            f"projector (before_projector=False)"
        )
        return
    rows = yield from _projector_rows(projector, decoder, given)
    if rows is not None and not spec.image_size and not before:
        rows = yield from _other_grids(projector, spec, given, rows)
    if rows is not None:
        rows = yield from _several_images(projector, given, rows)
    state = None if rows is None else projected_count(projector.out_grid, seen)
    for reducer in reducers:
        if rows is None or goes_before(reducer):
            continue
        rows = yield from _reducer_rows(reducer, features, rows, state)
        state = None if rows is None else reducer.out_count(state)
    if rows is not None and spec.image_size:
        yield from _count_mismatches(encoder, projector, reducers, grid, rows.shape[0], max_length)


def _takes_what_is_left(projector: Any, seen: Any) -> bool:
    """Whether a projector can go on behind a reducer, which leaves patches only: on a grid, or else it takes each alone or all as a set."""
    if not frozenset(projector.requires) - OF_THE_MODEL <= PATCHES:
        return False
    if isinstance(seen, Grid):
        return True
    probes = Grid(1, 5), Grid(2, 2)
    try:
        made = [projector.out_grid(grid) for grid in probes]
    except ValueError:
        return False
    fixed_number = made[0] == made[1] and not isinstance(made[0], Grid)
    return fixed_number or tuple(made) == probes


def _reducer_rows(reducer: Any, features: VisionFeatures, rows: Tensor, state: Any) -> Generator[str, None, Tensor | None]:
    """Yield what is wrong with a reducer; return its rows of a blank image, None if there are none."""
    name, what = name_of(reducer), f"{state} patches" if isinstance(state, Grid) else f"{state} rows"
    try:
        expected = image_count(reducer.out_count(state))
        result = _run(reducer, features, rows, (state,))
    except (RuntimeError, ValueError, LookupError) as error:
        if needs_data(error, rows):
            return None
        yield f"reducer {name} can't take {what} of width {rows.shape[1]}: {type(error).__name__}: {error}"
        return None
    if not _is_rows(result):
        yield f"reducer {name} returns {_kind(result)}, expected (rows_MD, rows of each image)"
        return None
    counts = tuple(result[1])
    if counts != (expected,) or tuple(result[0].shape) != (expected, rows.shape[1]):
        yield (
            f"reducer {name} says one image of {what} becomes {expected} rows of width {rows.shape[1]}, but gives {tuple(result[0].shape)} "
            f"(counts {counts}): make its out_count() and what its forward() returns agree"
        )
        return None
    return result[0]


def _projector_rows(projector: Any, decoder: Any, given: VisionFeatures) -> Generator[str, None, Tensor | None]:
    """Yield what is wrong with the projector; return its rows of a blank image, None if nobody can go on with them."""
    grid, name = given.grids[0], name_of(projector)
    try:
        expected = image_count(projector.out_grid(grid))
        rows = _run(projector, given)
    except (RuntimeError, ValueError, LookupError) as error:
        if needs_data(error, given.patches):
            return None
        yield f"projector {name} can't take {grid} patches of width {given.patches.shape[1]}: {type(error).__name__}: {error}"
        return None
    if not isinstance(rows, Tensor) or rows.dim() != 2:
        yield f"projector {name} returns {_kind(rows)}, expected rows_MD alone, a tensor (rows, {decoder.dim}), which out_grid() counts"
        return None
    if rows.shape[0] != expected:
        yield _disagreement(name, grid, expected, rows.shape[0])
    if rows.shape[1] != decoder.dim:
        yield (
            f"projector {name} gives width {rows.shape[1]}, decoder {name_of(decoder)} takes {decoder.dim}: make the projector "
            f"with out_dim={decoder.dim}"
        )
    return rows if rows.shape == (expected, decoder.dim) else None


def _disagreement(name: str, grid: Grid, expected: int, found: int) -> str:
    return (
        f"projector {name} says one image of {grid} becomes {expected} rows, but gives {found}: make its out_grid() and what its "
        f"forward() returns agree"
    )


def _other_grids(projector: Any, spec: Any, given: VisionFeatures, rows: Tensor) -> Generator[str, None, Tensor | None]:
    """Images of an encoder that takes any size: uneven grids too are counted as they come out, each alone."""
    for grid in _UNEVEN:
        features = blank_features(spec, grid, given.patches)
        features.table = given.table
        try:
            expected = image_count(projector.out_grid(grid))
            found = _run(projector, features).shape[0]
        except (RuntimeError, ValueError, LookupError):
            continue  # refused aloud, and nobody knows whether the encoder ever gives this one
        if found != expected:
            yield _disagreement(name_of(projector), grid, expected, found)
            return None
    return rows


def _several_images(projector: Any, given: VisionFeatures, rows: Tensor) -> Generator[str, None, Tensor | None]:
    """Two images at once give the rows that each gives alone, one behind the other."""
    if not small_enough(projector, given):
        return rows
    name = name_of(projector)
    try:
        problem = images_that_mix(lambda features: _run(projector, features), projector, given)
    except (RuntimeError, ValueError, LookupError) as error:
        if needs_data(error, given.patches):
            return rows
        yield f"projector {name} takes one image of {given.grids[0]} patches and can't take two: {type(error).__name__}: {error}"
        return None
    if problem:
        yield f"projector {name} {problem}"
    return None if problem else rows


def _count_mismatches(
    encoder: Any, projector: Any, reducers: Sequence[Any], grid: Grid, rows: int, max_length: int | None
) -> Iterator[str]:
    """What one image, or the smallest cut of one, becomes has to fit into a segment."""
    arrangement = getattr(encoder, "arrangement", None)
    if arrangement is not None:
        try:
            rows = arrangement.rows_of(TileGrid(Grid(1, 2), grid, 2, 1), out_grid_of(projector, reducers))
        except ValueError as error:
            yield f"projector {name_of(projector)} can't take the tiles of encoder {name_of(encoder)}: {error}"
            return
    if max_length and rows > max_length:
        yield (
            f"one image becomes {rows} rows, max_length is {max_length}: raise max_length, or use a projector or a reducer that gives "
            f"fewer rows"
        )


def needs_data(error: BaseException, tried_with: Tensor) -> bool:
    """Whether a part could not be tried because its tensors hold no values, as for rows that are found in the data: nothing is wrong with it."""
    return tried_with.is_meta and (isinstance(error, NotImplementedError) or "meta" in str(error))


def name_of(part: Any) -> str:
    """Return what to call a part in a message."""
    return repr(type(part).__name__)


def _is_rows(result: Any) -> bool:
    return isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor) and result[0].dim() == 2


def _kind(result: Any) -> str:
    """Describe what a projector or a reducer returned."""
    if isinstance(result, Tensor):
        return f"a tensor {tuple(result.shape)}"
    return f"({', '.join(map(_kind, result))})" if isinstance(result, tuple) else type(result).__name__


def blank_features(spec: Any, grid: Grid, like: Tensor) -> VisionFeatures:
    """Return zeros for one image with everything an encoder offers, in the dtype and on the device of ``like``."""
    zeros = like.new_zeros
    each = spec.dim // max(1, len(spec.layers))
    return VisionFeatures(
        patches=zeros(grid.rows, spec.dim),
        grids=(grid,),
        prefix=zeros(1, spec.prefix, spec.dim),
        layers={layer: zeros(grid.rows, each) for layer in spec.layers},
        keys=zeros(grid.rows, 1, each),
        cls_attn=zeros(grid.rows),
        towers=tuple(_blank_tower(tower, grid, zeros) for tower in spec.towers),
        instruction=Instruction.of([[0]], device=like.device),
    )


def _blank_tower(spec: Any, grid: Grid, zeros: Any) -> VisionFeatures:
    side = spec.image_size // spec.patch if spec.image_size else 0
    own = spec.grid or (Grid(side, side) if side else grid)
    return VisionFeatures(patches=zeros(own.rows, spec.dim), grids=(own,))


@torch.no_grad()
def _run(part: Any, *args: Any) -> Any:
    """Run a part without changing its buffers."""
    if not isinstance(part, nn.Module):
        return part(*args)
    buffers = {name: buffer.clone() for name, buffer in part.named_buffers()}
    return torch.func.functional_call(part, buffers, args)
