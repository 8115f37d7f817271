"""One empty image through reducers and projector, before any real one: widths and counts must be what the parts say."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..spec import PATCHES, Grid, Instruction, TileGrid, VisionFeatures, image_count
from .image_rows import as_grid, goes_before, out_grid_of, projected_count
from .images_apart import Run, drawn_twice, images_that_mix, small_enough

OF_THE_MODEL = frozenset({"instruction", "table"})
"""What a projector may require that the model fills in, not the encoder."""

_ANY_SIDE = 8
"""Patches along a side of the empty image of an encoder that takes any size."""
_UNEVEN = (Grid(6, 8), Grid(8, 5), Grid(3, 7))
"""Grids that such an encoder may give too."""


def row_mismatches(encoder: Any, projector: Any, decoder: Any, reducers: Sequence[Any], max_length: int | None) -> Iterator[str]:
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
            f"projector {name_of(projector)} needs more than each patch alone: use a projector such as 'mlp', or a reducer after the "
            f"projector (before_projector=False)"
        )
        return
    rows = yield from _projector_rows(projector, decoder, given)
    state = None if rows is None else projected_count(projector.out_grid, seen)
    for reducer in reducers:
        if rows is None or goes_before(reducer):
            continue
        rows = yield from _reducer_rows(reducer, features, rows, state)
        state = None if rows is None else reducer.out_count(state)
    if rows is not None and spec.image_size:
        yield from _count_mismatches(encoder, projector, reducers, grid, rows.shape[0], max_length)
    elif rows is not None:
        yield from _uneven_mismatches(spec, projector, reducers, decoder.table, features.patches)


def _takes_what_is_left(projector: Any, seen: Any) -> bool:
    """Whether a projector can go on after a reducer, which leaves patches only: on a grid, or else it takes each alone or all as a set."""
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
    name, what = f"reducer {name_of(reducer)}", _rows_named(state)
    try:
        expected = image_count(reducer.out_count(state))
        kept = _run(reducer, features, rows, (state,))
    except (RuntimeError, ValueError, LookupError) as error:
        if needs_data(error, rows):
            return None
        yield f"{name} can't take {what} of width {rows.shape[1]}: {type(error).__name__}: {error}"
        return None
    if not _is_rows(kept):
        yield f"{name} returns {_kind(kept)}, expected a tensor (rows, {rows.shape[1]}): return the rows only, its out_count() counts them"
        return None
    if kept.shape[0] != expected:
        yield _disagreement(name, what, expected, kept.shape[0], "out_count")
        return None
    if kept.shape[1] != rows.shape[1]:
        yield f"{name} gives width {kept.shape[1]} for rows of width {rows.shape[1]}: let its forward() keep the width"
        return None
    twice = drawn_twice(rows, torch.Generator().manual_seed(1)).unflatten(0, (2, rows.shape[0]))

    def run(some: VisionFeatures, images: Sequence[int]) -> Any:
        own = some.patches if goes_before(reducer) else twice[list(images)].flatten(0, 1)
        return _run(reducer, some, own, (state,) * len(images))

    return (yield from _several_images(reducer, name, "out_count", run, features, kept))


def _projector_rows(projector: Any, decoder: Any, given: VisionFeatures) -> Generator[str, None, Tensor | None]:
    """Yield what is wrong with the projector; return its rows of a blank image, None if nobody can go on with them."""
    grid, name = given.grids[0], f"projector {name_of(projector)}"
    try:
        expected = image_count(projector.out_grid(grid))
        rows = _run(projector, given)
    except (RuntimeError, ValueError, LookupError) as error:
        if needs_data(error, given.patches):
            return None
        yield f"{name} can't take {grid} patches of width {given.patches.shape[1]}: {type(error).__name__}: {error}"
        return None
    if not _is_rows(rows):
        yield f"{name} returns {_kind(rows)}, expected a tensor (rows, {decoder.dim}): return the rows only, its out_grid() counts them"
        return None
    if rows.shape[0] != expected:
        yield _disagreement(name, str(grid), expected, rows.shape[0], "out_grid")
    if rows.shape[1] != decoder.dim:
        yield f"{name} gives width {rows.shape[1]}, decoder {name_of(decoder)} takes {decoder.dim}: make the projector with out_dim={decoder.dim}"
    if rows.shape != (expected, decoder.dim):
        return None
    return (yield from _several_images(projector, name, "out_grid", lambda some, _: _run(projector, some), given, rows))


def _disagreement(name: str, what: str, expected: int, found: int, counter: str) -> str:
    return f"{name} says one image of {what} becomes {expected} rows, but gives {found}: make its {counter}() and what its forward() returns agree"


def _rows_named(state: Any) -> str:
    return f"{state} patches" if isinstance(state, Grid) else f"{state} rows"


def _uneven_mismatches(spec: Any, projector: Any, reducers: Sequence[Any], table: Tensor, like: Tensor) -> Iterator[str]:
    """Images of an encoder that takes any size: uneven grids too are counted as they come out, each alone."""
    for grid in _UNEVEN:
        features = blank_features(spec, grid, like)
        features.table = table
        try:
            wrong = _first_disagreement(projector, reducers, features)
        except (RuntimeError, ValueError, LookupError):
            continue  # refused aloud, and nobody knows whether the encoder ever gives this one
        if wrong is not None:
            yield wrong
            return


def _first_disagreement(projector: Any, reducers: Sequence[Any], features: VisionFeatures) -> str | None:
    """Return which part of the chain gives one image another number of rows than it counts."""
    given, seen = features, features.grids[0]
    for reducer in filter(goes_before, reducers):
        rows, (grid,), seen = _run(reducer, given, given.patches, given.grids), given.grids, reducer.out_count(given.grids[0])
        if rows.shape[0] != image_count(seen):
            return _disagreement(f"reducer {name_of(reducer)}", _rows_named(grid), image_count(seen), rows.shape[0], "out_count")
        given = VisionFeatures(rows, (as_grid(seen),), instruction=features.instruction, table=features.table)
    rows, state = _run(projector, given), projected_count(projector.out_grid, seen)
    if rows.shape[0] != image_count(state):
        return _disagreement(f"projector {name_of(projector)}", str(given.grids[0]), image_count(state), rows.shape[0], "out_grid")
    for reducer in reducers:
        if not goes_before(reducer):
            rows, what, state = _run(reducer, features, rows, (state,)), _rows_named(state), reducer.out_count(state)
            if rows.shape[0] != image_count(state):
                return _disagreement(f"reducer {name_of(reducer)}", what, image_count(state), rows.shape[0], "out_count")
    return None


def _several_images(part: Any, name: str, counter: str, run: Run, given: VisionFeatures, rows: Tensor) -> Generator[str, None, Tensor | None]:
    """Two images at once give the rows that each gives alone, one after the other."""
    if not small_enough(part, given):
        return rows
    try:
        problem = images_that_mix(run, part, counter, given)
    except (RuntimeError, ValueError, LookupError) as error:
        if needs_data(error, given.patches):
            return rows
        yield f"{name} takes one image of {given.grids[0]} patches and can't take two: {type(error).__name__}: {error}"
        return None
    if problem:
        yield f"{name} {problem}"
    return None if problem else rows


def _count_mismatches(encoder: Any, projector: Any, reducers: Sequence[Any], grid: Grid, rows: int, max_length: int | None) -> Iterator[str]:
    """What one image, or the smallest cut of one, becomes has to fit into a segment."""
    arrangement = getattr(encoder, "arrangement", None)
    if arrangement is not None:
        try:
            rows = arrangement.rows_of(TileGrid(Grid(1, 2), grid, 2, 1), out_grid_of(projector, reducers))
        except ValueError as error:
            yield f"projector {name_of(projector)} can't take the tiles of encoder {name_of(encoder)}: {error}"
            return
    if max_length and rows > max_length:
        yield (f"one image becomes {rows} rows, max_length is {max_length}: raise max_length, or use a projector or a reducer that gives fewer rows")


def needs_data(error: BaseException, tried_with: Tensor) -> bool:
    """Whether a part could not be tried because its tensors hold no values, as for rows that are found in the data: nothing is wrong with it."""
    return tried_with.is_meta and (isinstance(error, NotImplementedError) or "meta" in str(error))


def name_of(part: Any) -> str:
    """Return what to call a part in a message."""
    return repr(type(part).__name__)


def _is_rows(result: Any) -> bool:
    return isinstance(result, Tensor) and result.dim() == 2


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
