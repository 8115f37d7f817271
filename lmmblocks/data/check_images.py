"""Decode image files in parallel and say what is wrong with each; every file is opened once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from PIL import Image

from ..images.failures import ImageError
from ..images.load import open_image, require_bytes
from ..images.rgb import is_deep, is_transparent, to_rgb, turn_of
from ..spec import MachineError
from .problems import Problem

ImageCheck = Literal["exists", "decode"]
Progress = Callable[[int, int], None]
"""Called with the number of files done and the number of all files."""

_MOST_WORKERS = 16  # each holds one decoded image; PIL decodes without the interpreter's lock
_FILES_PER_ROUND = 1024


def check_images(paths: Sequence[str], *, depth: ImageCheck = "decode", progress: Progress | None = None) -> dict[str, list[Problem]]:
    """Return the problems of each file that has any.

    Args:
        paths: distinct image files.
        depth: ``exists`` looks for the file and its size only; ``decode`` reads every pixel, which is what finds a truncated
            file, and adds notes on animations and misleading file names.
        progress: called after every round of files.
    """
    look = _decode_problems if depth == "decode" else _file_problems
    Image.init()
    found: dict[str, list[Problem]] = {}
    workers = min(_MOST_WORKERS, os.cpu_count() or 1)
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # PIL also warns about what is reported here
        for start in range(0, len(paths), _FILES_PER_ROUND):
            names = paths[start : start + _FILES_PER_ROUND]
            found |= {name: problems for name, problems in zip(names, pool.map(look, names)) if problems}
            if progress is not None:
                progress(start + len(names), len(paths))
    return found


def _file_problems(path: str) -> list[Problem]:
    try:
        require_bytes(path)
    except (ImageError, MachineError) as error:
        return [_problem(error)]
    return []


def _decode_problems(path: str) -> list[Problem]:
    try:
        with open_image(path) as image:
            to_rgb(image, path)
            return _notes(image, path)
    except (ImageError, MachineError) as error:
        return [_problem(error)]


def _problem(error: ImageError | MachineError) -> Problem:
    return Problem(f"{error.kind if isinstance(error, ImageError) else 'unreadable'}_image", str(error))


def _notes(image: Image.Image, path: str) -> list[Problem]:
    """What is unusual about a sound image. An MPO file is a camera's JPEG with a preview behind it."""
    notes = []
    actual = "JPEG" if image.format == "MPO" else image.format
    expected = Image.registered_extensions().get(os.path.splitext(path)[1].lower(), actual)
    if expected not in (actual, image.format):
        notes.append(Problem("wrong_extension", f"image {path} is {actual}, its name says {expected}"))
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append(Problem("animated_image", f"image {path} is an animated {actual}"))
    if turn_of(image) is not None:
        notes.append(Problem("turned_image", f"image {path} has the EXIF orientation {image.getexif()[0x0112]}"))
    if is_transparent(image):
        notes.append(Problem("transparent_image", f"image {path} has the mode {image.mode} and transparent pixels"))
    if is_deep(image):
        values = np.asarray(image)
        notes.append(Problem("deep_image", f"image {path} has the mode {image.mode}, values {values.min():g} to {values.max():g}"))
    return notes
