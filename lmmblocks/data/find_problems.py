"""Apply the record rules and the image checks to a whole file of records."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

from ..spec import LmmError, machine_failure
from .check_images import ImageCheck, Progress, check_images
from .problems import PROBLEM_KINDS, Problem
from .read_json import BrokenJson
from .record_form import form_of
from .record_rules import image_path, image_problem, record_problems


def find_problems(
    records: Sequence[Any],
    images_dir: str | os.PathLike,
    *,
    images: ImageCheck,
    progress: Progress | None = None,
) -> tuple[dict[int, list[Problem]], int]:
    """Return the problems of each record that has any, notes included, and the number of image files looked at.

    Args:
        records: parsed JSON values.
        images_dir: folder the image paths are relative to.
        images: how deep to look into image files.
        progress: see ``check_images``.

    Raises:
        LmmError: the images folder does not exist, or is a file, although a record names an image.
        MachineError: the machine doesn't let us look into it.
    """
    found: dict[int, list[Problem]] = {}
    users: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        problems, paths = _of_record(record, images_dir)
        if problems:
            found[index] = problems
        for path in paths:
            users.setdefault(path, []).append(index)
    if users:
        _require_folder(images_dir)
    for path, problems in check_images(list(users), depth=images, progress=progress).items():
        for index in users[path]:
            found.setdefault(index, []).extend(problems)
    return found, len(users)


def errors_of(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems that make a record unusable, without the notes."""
    return [problem for problem in problems if not PROBLEM_KINDS[problem.code].note]


def _of_record(record: Any, images_dir: str | os.PathLike) -> tuple[list[Problem], list[str]]:
    """Return the problems of one record, and the image files to look at."""
    if isinstance(record, BrokenJson):
        return [Problem("broken_json", str(record))], []
    if not isinstance(record, dict):
        return record_problems(record), []
    form = form_of(record)
    problems = record_problems(record, form)
    if any(problem.code == "wrong_type" for problem in problems):
        return problems, []
    outside = [(name, image_problem(images_dir, name)) for name in form.images]
    problems += [problem for _, problem in outside if problem is not None]
    return problems, [image_path(images_dir, name) for name, problem in outside if problem is None]


def _require_folder(images_dir: str | os.PathLike) -> None:
    """Refuse an images folder that is none, and say so if it is the machine that doesn't show it."""
    name = os.fspath(images_dir)
    try:
        is_folder = stat.S_ISDIR(os.stat(name).st_mode)
    except (OSError, ValueError) as error:
        machine = machine_failure(f"images folder {name} cannot be read", error)
        raise machine or LmmError(f"images folder {name} does not exist: give the folder the image paths are relative to") from error
    if not is_folder:
        raise LmmError(f"images folder {name} is a file: give the folder the image paths are relative to")
