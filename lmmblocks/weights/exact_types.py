"""What may be written as a block of somebody else's library: the library's own class exactly, since a subclass may compute something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..images.preprocess import ImagePreprocess
from ..images.tiles import TilePreprocess


def preprocess_problems(preprocess: Any) -> Iterator[str]:
    """Yield why a preprocessing isn't what an image processor of transformers does, in tiles or alone."""
    square = preprocess.tower if type(preprocess) is TilePreprocess else preprocess
    if square is not None and type(square) is not ImagePreprocess:
        yield f"image preprocessing {type(square).__name__!r} (expected 'ImagePreprocess')"
