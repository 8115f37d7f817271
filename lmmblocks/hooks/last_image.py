"""Which image each row of a pass sees, where a row sees one at most: the last of its sequence up to its own place (Flamingo's rule).

Rows that see the same image lie side by side, so a pass is cut into runs: a run is the queries, its image the keys of one attention segment,
and no mask is made. All of it is host arithmetic on lengths and spans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..decoders.context import LayerContext
from ..spec import ImageSpan, LmmError


@dataclass(frozen=True)
class LastImage:
    """The runs of a pass.

    Attributes:
        lengths: rows of each run; they add up to the pass.
        images: what each run sees: the number of an image, or None before the first one of its sequence.
    """

    lengths: tuple[int, ...]
    images: tuple[int | None, ...]

    @staticmethod
    def of(lengths: Sequence[int], starts: Sequence[int], spans: Sequence[ImageSpan]) -> LastImage:
        """Cut a pass into runs.

        Args:
            lengths: rows of the pass in each segment.
            starts: where the first of these rows is in its sequence: what a cache has read already.
            spans: of the images of the pass and of those read before, in order.

        >>> LastImage.of([5], [0], [ImageSpan(0, 0, 2, 1)])
        LastImage(lengths=(2, 3), images=(None, 0))
        """
        runs = list(_runs(lengths, starts, spans))
        return LastImage(tuple(rows for rows, _ in runs), tuple(image for _, image in runs))

    @cached_property
    def shown(self) -> tuple[int, ...]:
        """The images that are seen, one for each run that sees one."""
        return tuple(image for image in self.images if image is not None)

    @cached_property
    def seeing(self) -> tuple[int, ...]:
        """The lengths of the runs that see an image."""
        return tuple(rows for rows, image in zip(self.lengths, self.images) if image is not None)

    def taken(self, rows_TD: Tensor) -> Tensor:
        """Return the rows that see an image."""
        if len(self.shown) == len(self.images):
            return rows_TD
        parts = rows_TD.split(list(self.lengths))
        return torch.cat([rows_TD[:0], *(part for part, image in zip(parts, self.images) if image is not None)])

    def put_back(self, rows_TD: Tensor, seeing_TD: Tensor) -> Tensor:
        """Return all rows, with new ones in the places of those that see an image."""
        if len(self.shown) == len(self.images):
            return seeing_TD
        new = iter(seeing_TD.split(list(self.seeing)))
        parts = rows_TD.split(list(self.lengths))
        return torch.cat([part if image is None else next(new) for part, image in zip(parts, self.images)])


def starts_of(context: LayerContext, name: str) -> tuple[int, ...]:
    """Return where the rows of a pass begin in their sequences; ``name`` of the hook that asks is for the message.

    Raises:
        LmmError: a hook dropped rows of this pass, so that the place of a row is no longer known on the host.
    """
    if context.kept_rows is not None:
        raise LmmError(
            f"hook {name!r} before layer {context.layer} can't tell which image a row sees, because a hook before it dropped rows: "
            f"let {name!r} name layers up to the one where rows are dropped, and stand first in the list of hooks"
        )
    return (0,) * len(context.segments.lengths_q) if context.cache is None else tuple(context.cache.lengths)


def _runs(lengths: Sequence[int], starts: Sequence[int], spans: Sequence[ImageSpan]) -> Iterator[tuple[int, int | None]]:
    """Yield rows and image of each run that has rows."""
    for segment, (start, length) in enumerate(zip(starts, lengths)):
        image, at, end = None, start, start + length
        for span in spans:
            if span.segment != segment or span.start >= end:
                continue
            if span.start > at:
                yield span.start - at, image
                at = span.start
            image = span.image
        if at < end:
            yield end - at, image
