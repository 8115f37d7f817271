"""A run that is refused leaves nothing after: what it added to its folder goes, and so do the folders it made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

WRITTEN = ("settings.json", "losses.csv", "tensorboard", "checkpoints")
"""What a run writes before its first checkpoint is whole."""


@contextmanager
def removing_leftovers(out: Path, names: Sequence[str] = (), *, keep: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Remove at the end, failed or not, what the body added; nothing that was there before, and no folder that holds anything else.

    Args:
        out: the folder.
        names: files and folders in it that the body may add; what it adds beside them stays.
        keep: asked at the end; True keeps everything.
    """
    added = [out / name for name in names if not (out / name).exists()]
    folders = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        yield
    finally:
        if not keep():
            _remove(added, folders)


def _remove(paths: Sequence[Path], folders: Sequence[Path]) -> None:
    """What can't be removed stays, as what has failed before is the error to tell; folders go from the innermost, if empty."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink()
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
