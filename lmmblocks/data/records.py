"""LLaVA's JSON format as a sequence of samples.

Every record is checked when the file is loaded, by the rules of ``lmmblocks data check``; images are opened when a batch
needs them. Nothing is dropped silently: ``policy="error"`` refuses the file and names the first offenders, ``policy="skip"``
leaves records out, counts them by reason, and says so in the log.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, overload

from ..spec import LmmError, MachineError, Sample
from .check_images import ImageCheck
from .find_problems import errors_of, find_problems
from .problems import Problem
from .read_json import read_records
from .record_form import form_of
from .record_rules import image_path

log = logging.getLogger(__name__)

_FIRST_OFFENDERS = 5


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that was left out.

    Attributes:
        index: its place in the file, from 0.
        id: its id, if it has one.
        problems: all reasons.
    """

    index: int
    id: Any
    problems: tuple[Problem, ...]

    def __str__(self) -> str:
        name = f"record {self.index}" if self.id is None else f"record {self.index} (id {self.id!r})"
        return f"{name}: " + "; ".join(f"{problem.code}: {problem.detail}" for problem in self.problems)


class Records(Sequence[Sample]):
    """The usable records of a file, each given as a ``Sample`` with full image paths.

    Attributes:
        images_dir: folder the image paths are relative to.
        skipped: records left out, with reasons; empty unless the policy is ``skip``.
    """

    def __init__(self, raw: Sequence[Mapping[str, Any]], images_dir: str | os.PathLike, skipped: Sequence[Skipped] = ()) -> None:
        self._raw = raw
        self.images_dir = os.fspath(images_dir)
        self.skipped = tuple(skipped)

    def __len__(self) -> int:
        return len(self._raw)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> Sample | Records:
        """Return one sample; a slice gives ``Records`` again (with nothing in ``skipped``)."""
        if isinstance(index, slice):
            return Records(self._raw[index], self.images_dir)
        record = self._raw[index]
        form = form_of(record)
        return Sample(form.messages, [image_path(self.images_dir, name) for name in form.images], record.get("id"))

    def raw(self, index: int) -> Mapping[str, Any]:
        """Return a record as it stands in the file, with all its keys."""
        return self._raw[index]

    @cached_property
    def lengths(self) -> list[int]:
        """LLaVA's sampler lengths: words over all turns, positive with image and negative for text only.

        Source: haotian-liu/LLaVA ``train/train.py:683-690``. Image tokens are not counted.
        """
        forms = map(form_of, self._raw)
        words = ((sum(len(message["content"].split()) for message in form.messages), form.images) for form in forms)
        return [count if images else -count for count, images in words]

    def skip_report(self) -> str:
        """Return one line: how many records were left out, and how often for which reason."""
        total = len(self) + len(self.skipped)
        if not self.skipped:
            return f"all {total} records are used"
        reasons = Counter(code for skipped in self.skipped for code in {problem.code for problem in skipped.problems})
        counts = ", ".join(f"{count} {code}" for code, count in reasons.most_common())
        return f"skipped {len(self.skipped)} of {total} records: {counts}"


def load_records(
    json_path: str | os.PathLike,
    images_dir: str | os.PathLike,
    *,
    policy: Literal["error", "skip"] = "error",
    images: ImageCheck = "exists",
    way_out: str = "bad_samples=skip of the stage, which is policy='skip' of load_records",
) -> Records:
    """Load a LLaVA JSON (or ``.jsonl``) file.

    Args:
        json_path: list of ``{"id", "image", "conversations"}``; ``image`` is a path, a list of paths, or absent. ``record_form`` says
            what else is read.
        images_dir: folder the image paths are relative to.
        policy: ``error`` refuses a file with unusable records; ``skip`` leaves them out and logs how many and why.
        images: ``exists`` asks for each file's size; ``decode`` also reads every pixel, so that no corrupt image is met later.
        way_out: what leaves unusable records out where this is called, for the message.

    Returns:
        The usable records, in the order of the file.

    Raises:
        LmmError: the file or the folder is missing, the JSON is broken (with line and column), a record is unusable under
            ``policy="error"``, or none is usable.
        MachineError: the machine can't read an image, under either policy: the record may be sound.
    """
    if policy not in ("error", "skip"):
        raise LmmError(f"policy {policy!r} is unknown: expected 'error' or 'skip'")
    name = os.fspath(json_path)
    everything = read_records(name)
    found, _ = find_problems(everything, images_dir, images=images)
    skipped = []
    for index in sorted(found):
        if errors := errors_of(found[index]):
            record = everything[index]
            skipped.append(Skipped(index, record.get("id") if isinstance(record, dict) else None, tuple(errors)))
    _refuse_machine(skipped)
    if skipped and policy == "error":
        raise LmmError(_refusal(name, images_dir, skipped, len(everything), way_out))
    left_out = {entry.index for entry in skipped}
    records = Records([r for index, r in enumerate(everything) if index not in left_out], images_dir, skipped)
    if not len(records):
        first = f"; the first: {skipped[0]}" if skipped else ": the file is an empty list"
        raise LmmError(f"{name} has no usable record{first}")
    if skipped:
        log.warning("%s: %s; the first: %s", name, records.skip_report(), skipped[0])
    return records


def _refuse_machine(skipped: Sequence[Skipped]) -> None:
    """Raise if the machine is the reason why a record can't be used."""
    unread = [(entry, problem) for entry in skipped for problem in entry.problems if problem.code == "unreadable_image"]
    if unread:
        entry, problem = unread[0]
        raise MachineError(
            f"record {entry.index}: {problem.detail}; {len(unread)} images can't be read by this machine, no record is left out for it"
        )


def _refusal(name: str, images_dir: str | os.PathLike, skipped: Sequence[Skipped], total: int, way_out: str) -> str:
    """Name the first offenders and the two ways out."""
    first = "\n  ".join(str(entry) for entry in skipped[:_FIRST_OFFENDERS])
    more = f"\n  and {len(skipped) - _FIRST_OFFENDERS} more" if len(skipped) > _FIRST_OFFENDERS else ""
    return (
        f"{name}: {len(skipped)} of {total} records cannot be used:\n  {first}{more}\n"
        f"mend them (lmmblocks data check {name} --images {os.fspath(images_dir)} lists all kinds), "
        f"or leave them out with {way_out}"
    )
