"""The samples of a run by their place: whatever has a length and takes an index, each one checked to be a sample when it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from ..spec import LmmError, Sample, as_sample

_WANTED = "expected what has a length and takes an index, such as a list of lmmblocks.Sample or what load_records gives"


class Samples(Sequence[Sample]):
    """What a run reads its data through.

    Args:
        records: a list, ``Records``, a ``Dataset`` of torch: anything with ``len()`` and ``[index]``. It is read by index from 0 to its
            length, never until it raises, which a ``Dataset`` need not do.

    Raises:
        LmmError: something that can't be read twice or in any order (a generator, ``map``, an iterable dataset), a mapping, a text.
    """

    def __init__(self, records: Any) -> None:
        kind = type(records).__name__
        if isinstance(records, (Mapping, str, bytes)):
            raise LmmError(f"train reads a sequence of samples, found a {kind}: {_WANTED}")
        if not (hasattr(records, "__len__") and hasattr(records, "__getitem__")):
            end = ": pass list(...) of it, if it ends" if hasattr(records, "__iter__") else ""
            raise LmmError(f"train reads its samples in an order of its own and more than once, found {kind}, which can't be: {_WANTED}{end}")
        self.records = records
        try:
            self._length = len(records)
        except TypeError as error:  # torch's IterableDataset has the method and no length
            raise LmmError(f"train needs the number of samples, and len() of {kind} says: {error}: {_WANTED}") from error

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: Any) -> Any:
        """Return a sample.

        Raises:
            LmmError: there is none at a place below the length, or it is something else.
        """
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        try:
            sample = self.records[place]
        except LookupError as error:
            raise LmmError(f"records[{place}] of {len(self)}: {type(error).__name__}: {error}: {_WANTED}") from error
        return as_sample(sample, f"records[{place}]")
