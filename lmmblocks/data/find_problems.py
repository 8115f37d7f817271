"""Apply the record rules and the image checks to a whole file of records."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..spec import LmmError
from .check_images import ImageCheck, Progress, check_images
from .record_rules import PROBLEM_KINDS, Problem, image_names, record_problems, resolve_image


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
    """
    found = {index: problems for index, record in enumerate(records) if (problems := record_problems(record))}
    users: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        if any(problem.code in ("wrong_type", "broken_json") for problem in found.get(index, ())):
            continue
        for name in image_names(record):
            try:
                users.setdefault(resolve_image(images_dir, name), []).append(index)
            except LmmError as error:
                found.setdefault(index, []).append(Problem("path_escape", str(error)))
    if users and not os.path.isdir(images_dir):
        what = "is a file" if os.path.exists(images_dir) else "does not exist"
        raise LmmError(f"images folder {os.fspath(images_dir)} {what}: give the folder the image paths are relative to")
    for path, problems in check_images(list(users), depth=images, progress=progress).items():
        for index in users[path]:
            found.setdefault(index, []).extend(problems)
    return found, len(users)


def errors_of(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems that make a record unusable, without the notes."""
    return [problem for problem in problems if not PROBLEM_KINDS[problem.code].note]
