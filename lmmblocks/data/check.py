"""Find what is wrong with a data file before any training. Everything is reported at once, with counts and the first offenders of each kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..spec import LmmError, Sample, closest
from ..spec.fields import is_whole
from .check_images import Progress
from .check_report import CheckReport, Finding, Offender, findings_of
from .find_problems import errors_of, find_problems
from .problems import PROBLEM_KINDS, Problem
from .read_json import BrokenJson, read_records
from .record_form import Form, form_of
from .record_keys import other_keys
from .records import Records
from .sample_reader import Reading

__all__ = ["CheckReport", "Finding", "Offender", "check_file"]

_UNREADABLE = ("broken_json", "wrong_type", "bad_role", "path_escape", "url_image")


def check_file(
    json_path: str | os.PathLike,
    images_dir: str | os.PathLike,
    *,
    max_tokens: int | None = None,
    read: Callable[[Sample], Reading] | None = None,
    limit: int = 5,
    allow: Sequence[str] = (),
    questions: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Check every record and decode every image of a LLaVA JSON or ``.jsonl`` file.

    Args:
        json_path: the records.
        images_dir: folder the image paths are relative to.
        max_tokens: longest sample allowed, image rows included; None = any length.
        read: reads samples as the model will, see ``sample_reader``, and refuses what its template does; None = none is read. What doesn't
            count rows leaves words and one row per image to count, which no tokenizer undercuts by much, and which finds the worst only.
        limit: offenders listed per kind; all are counted.
        questions: whether the file is for ``lmmblocks eval``, which asks one question a record.
        allow: codes that are reported but don't make the file unfit.
        progress: called with the number of image files done and of all.

    Returns:
        The report; ``report.ok`` says whether the file is fit for training.

    Raises:
        LmmError: the file or the images folder cannot be opened, or an option makes no sense.
    """
    if unknown := [code for code in allow if code not in PROBLEM_KINDS]:
        raise LmmError(f"unknown problem code {unknown[0]!r}{closest(unknown[0], PROBLEM_KINDS)}; known: {', '.join(PROBLEM_KINDS)}")
    if limit < 0:
        raise LmmError(f"found limit={limit}, expected 0 or more")
    if max_tokens is not None and max_tokens < 1:
        raise LmmError(f"found max_tokens={max_tokens}, expected 1 or more")
    name, folder = os.fspath(json_path), os.fspath(images_dir)
    try:
        records = read_records(name)
    except BrokenJson as error:
        broken = findings_of([(Offender(None, None, str(error)), Problem("broken_json", ""))], limit=max(limit, 1), allow=allow)
        return CheckReport(name, folder, 0, 0, 0, broken)
    found, image_files = find_problems(records, folder, images="decode", progress=progress)
    _add_duplicate_ids(records, found)
    if questions:
        _add_questions(records, folder, found)
    if read is not None or max_tokens is not None:
        _add_readings(records, folder, found, max_tokens, read)
    places = list(_places(records, found))
    if not records:
        places.append((Offender(None, None, f"{name} is an empty list"), Problem("no_records", "")))
    forms = {index: form_of(record) for index, record in enumerate(records) if isinstance(record, dict)}
    places += _other_keys(records, forms)
    text_only = sum(not form.images for form in forms.values())
    return CheckReport(name, folder, len(records), text_only, image_files, findings_of(places, limit=limit, allow=allow))


def _add_duplicate_ids(records: Sequence[Any], found: dict[int, list[Problem]]) -> None:
    """Report every record whose id an earlier one has."""
    first_use: dict[Any, int] = {}
    for index, record in enumerate(records):
        name = record.get("id") if isinstance(record, dict) else None
        if not isinstance(name, str) and not is_whole(name):
            continue
        first = first_use.setdefault(name, index)
        if first != index:
            found.setdefault(index, []).append(Problem("duplicate_id", f"id of record {first}"))


def _other_keys(records: Sequence[Any], forms: Mapping[int, Form]) -> list[tuple[Offender, Problem]]:
    """Count the keys that nobody reads, one entry a key: at the top of a record, and in its turns."""
    counts: dict[str, int] = {}
    first: dict[str, int] = {}
    for index, form in forms.items():
        for key in [*other_keys(records[index]), *(f"{key} of a turn" for key in sorted(form.turn_keys))]:
            counts[key] = counts.get(key, 0) + 1
            first.setdefault(key, index)
    return [
        (
            Offender(None, None, f"{key}: in {count} records, the first is record {first[key]}"),
            Problem("other_keys", ""),
        )
        for key, count in counts.items()
    ]


def _add_questions(records: Sequence[Any], images_dir: str, found: dict[int, list[Problem]]) -> None:
    """Report what evaluation refuses of records that are sound otherwise."""
    from ..eval.questions import question_of

    for index, record in enumerate(records):
        if errors_of(found.get(index, [])):
            continue
        try:
            question_of(Records([record], images_dir)[0], record)
        except LmmError as error:
            found.setdefault(index, []).append(Problem("bad_question", str(error)))


def _add_readings(
    records: Sequence[Any],
    images_dir: str,
    found: dict[int, list[Problem]],
    max_tokens: int | None,
    read: Callable[[Sample], Reading] | None,
) -> None:
    """Report what is found by reading a record as a model does; one without readable turns can't be read."""
    for index, record in enumerate(records):
        problems = found.get(index, [])
        if any(problem.code in _UNREADABLE for problem in problems):
            continue
        sample = Records([record], images_dir)[0]
        try:
            reading = Reading() if read is None else read(sample)
        except LmmError as error:
            new = [] if errors_of(problems) else [Problem("untokenisable", str(error))]  # else the reason is reported already
        else:
            new = _too_long(sample, reading, max_tokens)
            new += [Problem("special_in_text", f"a text spells {token!r}") for token in reading.spelled]
        if new:
            found.setdefault(index, []).extend(new)


def _too_long(sample: Sample, reading: Reading, max_tokens: int | None) -> list[Problem]:
    length = _least_tokens(sample) if reading.rows is None else reading.rows
    if max_tokens is None or length <= max_tokens:
        return []
    least = "at least " if reading.rows is None else ""
    return [Problem("too_long", f"{least}{length} tokens, allowed {max_tokens}")]


def _least_tokens(sample: Sample) -> int:
    """Words and images."""
    return len(sample.images) + sum(len(message["content"].split()) for message in sample.messages)


def _places(records: Sequence[Any], found: Mapping[int, list[Problem]]) -> Iterator[tuple[Offender, Problem]]:
    """All problems in the order of the file."""
    for index in sorted(found):
        name = records[index].get("id") if isinstance(records[index], dict) else None
        shown = name if isinstance(name, (str, int)) else None
        yield from ((Offender(index, shown, problem.detail), problem) for problem in found[index])
