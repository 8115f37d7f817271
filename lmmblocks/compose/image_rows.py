"""From the encoder's features to the rows that are spliced: reducers in front, projector, reducers after, tiles put together.

Reducers run in the order given. One with ``before_projector = True`` works on the encoder's features (where PruMerge and VisionZip merge tokens), the
others on the projected rows. Counting (:class:`RowCount`, host arithmetic) and computing (:func:`connected`) walk the same chain.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..spec import Grid, LmmError, VisionFeatures, image_count

if TYPE_CHECKING:
    from torch import Tensor

GridOrCount = Any
"""A ``Grid`` where rows form one, else their number."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The images of a batch, ready to be spliced.

    Attributes:
        features: the encoder's, as it gave them; None without images.
        rows_MD: in the decoder's width.
        counts: rows of each image.
        tiles: how many of the features' grids belong to each image.
    """

    features: VisionFeatures | None
    rows_MD: Tensor
    counts: tuple[int, ...]
    tiles: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowCount:
    """What one image (or tile) of an encoder's grid becomes: the arithmetic of the whole chain.

    Attributes:
        before: ``out_count`` of the reducers before the projector.
        project: ``out_grid`` of the projector.
        after: ``out_count`` of the reducers after it.
    """

    before: tuple[Callable[[Any], GridOrCount], ...]
    project: Callable[[Grid], GridOrCount]
    behind: tuple[Callable[[Any], GridOrCount], ...]

    def __call__(self, grid: Grid) -> GridOrCount:
        """Return the grid, or the number of rows."""
        given = early_count(self.before, grid)
        state = projected_count(self.project, given)
        for step in self.behind:
            state = step(state)
        return state


def goes_before(reducer: Any) -> bool:
    """Whether a reducer works on the encoder's features."""
    return bool(getattr(reducer, "before_projector", False))


def out_grid_of(projector: Any, reducers: Collection[Any]) -> Callable[[Grid], GridOrCount]:
    """Return the only counter of image rows: the projector's ``out_grid``, chained with the reducers' ``out_count``."""
    if not len(reducers):
        return projector.out_grid
    before = tuple(reducer.out_count for reducer in reducers if goes_before(reducer))
    behind = tuple(reducer.out_count for reducer in reducers if not goes_before(reducer))
    return RowCount(before, projector.out_grid, behind)


def early_count(before: Sequence[Callable[[Any], GridOrCount]], grid: Grid) -> GridOrCount:
    """Return what the reducers before the projector make of a grid."""
    state: GridOrCount = grid
    for step in before:
        state = step(as_grid(state))
    return state


def projected_count(project: Callable[[Grid], GridOrCount], given: GridOrCount) -> GridOrCount:
    """Return what the projector makes of it; rows that lay on no grid lie on none after it."""
    state = project(as_grid(given))
    return state if isinstance(given, Grid) else image_count(state)


def as_grid(state: GridOrCount) -> Grid:
    """Return a grid as it is, and a number of rows as one line of patches, which a projector takes."""
    return state if isinstance(state, Grid) else Grid(1, int(state))


def reduced_features(features: VisionFeatures, reducers: Collection[Any]) -> VisionFeatures:
    """Run the reducers before the projector; what comes out has patches only."""
    for reducer in reducers:
        if goes_before(reducer):
            rows_MC = reducer(features, features.patches, features.grids)
            grids = tuple(as_grid(reducer.out_count(grid)) for grid in features.grids)
            _check_sum(reducer, "out_count", rows_MC, grids)
            features = VisionFeatures(rows_MC, grids, instruction=features.instruction, table=features.table)
    return features


def connected(features: VisionFeatures, projector: Any, reducers: Collection[Any]) -> tuple[Tensor, tuple[int, ...]]:
    """Return the rows of each image (or tile), and their numbers, as ``out_grid`` and ``out_count`` have them.

    Raises:
        LmmError: a part gives another number of rows than it counts, which the plan goes by.
    """
    given = reduced_features(features, reducers)
    before = [reducer.out_count for reducer in reducers if goes_before(reducer)]
    state = [projected_count(projector.out_grid, early_count(before, grid)) for grid in features.grids]
    rows_MD = projector(given)
    _check_sum(projector, "out_grid", rows_MD, state)
    for reducer in reducers:
        if not goes_before(reducer):
            rows_MD = reducer(features, rows_MD, tuple(state))
            state = [reducer.out_count(entry) for entry in state]
            _check_sum(reducer, "out_count", rows_MD, state)
    return rows_MD, tuple(map(image_count, state))


def _check_sum(part: Any, counter: str, rows: Any, state: Sequence[GridOrCount]) -> None:
    name, counts = type(part).__name__, tuple(map(image_count, state))
    if isinstance(rows, tuple):
        raise LmmError(f"{name} returns a tuple: return the rows only, its {counter}() counts them")
    if rows.shape[0] != sum(counts):
        raise LmmError(
            f"{name} gives {rows.shape[0]} rows for {len(counts)} images, and its {counter}() counts {_shown(counts)}: make its {counter}() and "
            f"what its forward() returns agree"
        )


def _shown(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts[:8])) + (", ..." if len(counts) > 8 else "") or "no"
